"""Rights of the agent in `examples/kubernetes`: each is used, each that is missing is named, no other is used."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import yaml

from prefect_launch.core.masking import Mask
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.kubernetes import events
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from tests.support.kubernetes_api import KubernetesApi, scripted_api
from tests.support.kubernetes_pods import JobPods
from tests.unit.runners.kubernetes.plans import ITEM, LABELS, NAME, SECRET

EXAMPLE = Path(__file__).parents[4] / "examples" / "kubernetes"
ACCOUNT, SERVICES = EXAMPLE / "base" / "account.yaml", EXAMPLE / "services" / "role.yaml"
LIMIT_SECONDS = 60.0
NAMESPACE = {"kind": "Namespace", "metadata": {"name": "default"}}
_VERBS = {"POST": "create", "PATCH": "patch", "DELETE": "delete", "GET": "get"}
_REQUEST = re.compile(r"(\w+) /(?:api/v1|apis/[^/]+/[^/]+)/namespaces/[^/]+/(\w+)(?:/([^/?]+)(/log)?)?(\?.*)?")


def granted(file: Path = ACCOUNT) -> list[str]:
    """What a Role of the example grants, as "verb resource"."""
    (role,) = (each for each in yaml.safe_load_all(file.read_text()) if each["kind"] == "Role")
    return sorted(
        f"{verb} {resource}" for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]
    )


def used(api: KubernetesApi) -> set[str]:
    """What was asked of a server, as "verb resource"."""
    found = set()
    for request in api.requests:
        if match := _REQUEST.fullmatch(request):
            method, plural, name, part, query = match.groups()
            verb = _VERBS[method]
            if method == "GET" and not name:
                verb = "watch" if "watch=true" in (query or "") else "list"
            found.add(f"{verb} {plural}{part or ''}")
    return found


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    """A scripted server that the kubeconfig leads to."""
    with scripted_api() as api:
        api.store.create(("api/v1", "namespaces"), "", NAMESPACE)
        monkeypatch.setenv("KUBECONFIG", str(api.write_kubeconfig(tmp_path / "kubeconfig")))
        yield api


@pytest.mark.parametrize("right", granted())
async def test_right_that_an_agent_lacks_is_named_by_its_check(api: KubernetesApi, tmp_path: Path, right: str) -> None:
    api.denied = {right}
    runner = KubernetesRunner(tmp_path / "home")
    findings = {one.name: one for one in await runner.diagnose({})}
    await runner.aclose()
    if right == "list events":  # Without it a run goes on, and less is told of it.
        assert findings["rights"].detail.endswith("without list events, why a job waits may not be told")
    else:
        assert findings["rights"].detail == f"Give the agent's account a Role in default with: {right}."


def service(api_version: str, kind: str) -> dict[str, Any]:
    """An additional service of a queue."""
    return {"config": {"apiVersion": api_version, "kind": kind, "metadata": {"name": "a-${item_id}"}}}


@pytest.mark.parametrize("right", granted(SERVICES))
async def test_right_on_additional_services_that_an_agent_lacks_is_named_by_its_check(
    api: KubernetesApi, tmp_path: Path, right: str
) -> None:
    api.custom = {"deployments": ("apps/v1", "Deployment"), "statefulsets": ("apps/v1", "StatefulSet")}
    kinds = [("v1", "Pod"), ("v1", "Service"), ("apps/v1", "Deployment"), ("apps/v1", "StatefulSet")]
    api.denied = {right}
    runner = KubernetesRunner(tmp_path / "home")
    findings = {one.name: one for one in await runner.diagnose({"additional-services": [service(*of) for of in kinds]})}
    without = {one.name: one for one in await runner.diagnose({"additional-services": "{{services}}"})}
    await runner.aclose()
    assert findings["rights"].detail == f"Give the agent's account a Role in default with: {right}."
    assert without["rights"].is_ok is (right not in granted())


async def test_each_right_of_the_example_is_used_by_runs_and_no_other(
    api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_FIRST_SECONDS", 0.01)
    plan = plan_with_code_and_secret(tmp_path)
    left_of_an_older_job(api)
    runner = KubernetesRunner(tmp_path / "home")
    handle = await runner.create(plan)
    assert await runner.create(plan) == handle
    await runner.start(handle)
    waiting = asyncio.create_task(runner.wait_running(handle, ignore))
    await until_asked(api, "GET .*/events")
    pods = JobPods(api, "default", NAME)
    pod = pods.create()
    pods.run()
    await asyncio.wait_for(waiting, LIMIT_SECONDS)
    watching = asyncio.create_task(runner.watch(handle, plan))
    api.log("default", pod, pods.pods[0]["spec"]["containers"][0]["name"], "up")
    await until_asked(api, "GET .*/log")
    await end_slowly(api, runner, handle, pods)
    await asyncio.wait_for(watching, LIMIT_SECONDS)
    await runner.remove(handle)
    await runner.aclose()
    assert used(api) == set(granted())


def plan_with_code_and_secret(folder: Path) -> RunPlan:
    code = folder / "code"
    code.mkdir()
    (code / "main.py").write_text("print(1)\n")
    return RunPlan(
        item_id=ITEM,
        run_id="r",
        run_dir=folder,
        image="python:3.12",
        command=("python", "main.py"),
        code_dir=code,
        env={"TOKEN": SECRET},
        labels=LABELS,
        mask=Mask([SECRET]),
    )


def left_of_an_older_job(api: KubernetesApi) -> None:
    """What an older Job of the item owned, and the cluster has not removed yet."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "older", "uid": "older"}
    labels = {Labels.ITEM: ITEM}
    for plural, kind, name in (("secrets", "Secret", f"{NAME}-env"), ("configmaps", "ConfigMap", f"{NAME}-code")):
        metadata: dict[str, Any] = {"name": name, "labels": labels, "ownerReferences": [owner]}
        made = {"apiVersion": "v1", "kind": kind, "metadata": metadata}
        api.store.create(("api/v1", plural), "default", made)


async def end_slowly(api: KubernetesApi, runner: KubernetesRunner, handle: str, pods: JobPods) -> None:
    """Stop a run whose pod takes a while to end."""
    api.store.holds_deletions = True
    stopping = asyncio.create_task(runner.stop(handle, 1.0))
    await until_asked(api, "DELETE .*/pods/")
    pods.end_pod(143)
    api.store.holds_deletions = False
    for plural, group in (("pods", "api/v1"), ("jobs", "apis/batch/v1")):
        for one in api.store.list((group, plural), "default"):
            api.store.delete((group, plural), "default", one["metadata"]["name"])
    await asyncio.wait_for(stopping, LIMIT_SECONDS)


async def ignore(reason: str) -> None:
    """Take no notice of why a run waits."""


async def until_asked(api: KubernetesApi, request: str) -> None:
    with anyio.fail_after(LIMIT_SECONDS):
        while not api.asked(request):  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.02)
