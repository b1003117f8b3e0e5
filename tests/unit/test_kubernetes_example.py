"""The kustomization in `examples/kubernetes`, and what its README says of it."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml

from prefect_launch.settings.agent_config import AgentConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "kubernetes"


def objects(*path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(EXAMPLE.joinpath(*path).read_text()))


def rights(*path: str) -> dict[str, set[str]]:
    (role,) = (each for each in objects(*path) if each["kind"] == "Role")
    found = defaultdict[str, set[str]](set)
    for rule in role["rules"]:
        for resource in rule["resources"]:
            found[resource] |= set(rule["verbs"])
    return found


def test_readme_of_the_example_lists_the_rights_of_its_role() -> None:
    said: dict[str, set[str]] = {}
    for names, verbs in re.findall(r"^\| ([\w/, ]+): ([\w, ]+) \|", (EXAMPLE / "README.md").read_text(), re.MULTILINE):
        said |= {name: set(verbs.split(", ")) for name in names.split(", ")}
    assert said == rights("base", "account.yaml")


def test_role_of_the_example_grants_nothing_by_a_wildcard_and_reads_no_secret_that_it_cannot_name() -> None:
    for role in (rights("base", "account.yaml"), rights("services", "role.yaml")):
        assert "*" not in {*role, *(verb for verbs in role.values() for verb in verbs)}
        assert not {"list", "watch"} & role.get("secrets", set())


def test_pod_of_the_example_is_unprivileged_and_keeps_its_host_and_home() -> None:
    deployment = next(each for each in objects("base", "agent.yaml") if each["kind"] == "Deployment")
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]["type"]) == (1, "Recreate")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["hostname"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    home = next(mount for mount in container["volumeMounts"] if "persistentVolumeClaim" in volumes[mount["name"]])
    assert {"name": "PREFECT_HOME", "value": home["mountPath"]} in container["env"]


def test_files_that_the_kustomizations_of_the_example_name_are_there() -> None:
    for folder in (EXAMPLE, EXAMPLE / "base", EXAMPLE / "services"):
        (kustomization,) = objects(folder.name if folder != EXAMPLE else "", "kustomization.yaml")
        generators = kustomization.get("configMapGenerator", []) + kustomization.get("secretGenerator", [])
        named = [*kustomization["resources"], *(file for each in generators for file in each.get("files", ()))]
        named += [file for each in generators for file in each.get("envs", ())]
        assert named
        assert [name for name in named if not (folder / name).exists()] == []


def test_agent_config_of_the_example_is_one_that_an_agent_reads() -> None:
    for path in (("agent-config.yaml",), ("base", "agent-config.yaml")):
        (config,) = objects(*path)
        assert AgentConfig(**config).queues == ("kubernetes",)
