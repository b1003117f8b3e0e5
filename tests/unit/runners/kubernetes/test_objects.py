"""Objects of one run on Kubernetes: what is made of its plan and options, and what never stands in a manifest."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.errors import SpecError
from prefect_launch.runners.base import Labels
from prefect_launch.runners.remote.kubernetes.code import pack_code
from prefect_launch.runners.remote.kubernetes.fields import check_fields
from prefect_launch.runners.remote.kubernetes.holding import HOLD, QUEUE_LABEL, Hold, is_held, release_patch
from prefect_launch.runners.remote.kubernetes.kinds import first
from prefect_launch.runners.remote.kubernetes.manifest_checks import pod_templates
from prefect_launch.runners.remote.kubernetes.objects import (
    BESIDE,
    OUTPUTS_PATH,
    RUNS,
    build_objects,
    check_plan,
    labels_of,
    preview_objects,
    selector_of,
    with_owner,
)
from prefect_launch.runners.remote.kubernetes.rules import check_pod
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from prefect_launch.runners.remote.kubernetes.watch import run_of
from prefect_launch.spec.code_options import BuildRequest
from tests.unit.runners.kubernetes.plans import ITEM, LABELS, NAME, SECRET, job_options, make_plan, pod_manifest

#: Of a patch that releases an object: the mark of the hold goes with it.
UNMARKED = {"metadata": {"annotations": {HOLD: None}}}
WHOLE = {"cpus": 2, "memory": "2g", "gpus": 1, "volumes": ["data:/data:ro"], "shm-size": "1g", "ttl": 60}


def pod_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a Job's pods."""
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


def container_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the first container of a Job."""
    container: dict[str, Any] = pod_of(manifest)["containers"][0]
    return container


def env_of(container: dict[str, Any]) -> dict[str, Any]:
    """Return a container's variables by name."""
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


@pytest.mark.parametrize("options", [{}, WHOLE, job_options(), {**job_options(), **WHOLE}])
def test_made_manifest_has_only_fields_of_the_api(options: dict[str, Any]) -> None:
    made = build_objects(make_plan(options, command=("python", "train.py"), args=("--lr", "1"), env={"A": "1"}))

    check_fields(made.manifest["metadata"], "V1ObjectMeta", "metadata")
    check_fields(made.manifest["spec"], "V1JobSpec", "spec")
    check_pod("pod", pod_of(made.manifest), in_job=True)
    assert made.manifest["metadata"]["name"] == NAME
    assert len(NAME) <= 63


def test_short_form_is_a_job_of_one_container_that_is_never_restarted() -> None:
    made = build_objects(make_plan(WHOLE, command=("python", "train.py"), args=("--lr", "1")))

    spec, container = made.manifest["spec"], container_of(made.manifest)
    amounts = {"cpu": "2", "memory": "2Gi", "nvidia.com/gpu": "1"}
    assert (spec["backoffLimit"], pod_of(made.manifest)["restartPolicy"]) == (0, "Never")
    assert spec["ttlSecondsAfterFinished"] == 60
    assert container["command"] == ["python", "train.py"]
    assert container["args"] == ["--lr", "1"]
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert {"mountPath": "/data", "name": "launch-volume-0", "readOnly": True} in container["volumeMounts"]


def test_evidence_of_a_jobs_end_stays_until_the_agent_has_read_it() -> None:
    assert "ttlSecondsAfterFinished" not in build_objects(make_plan()).manifest["spec"]


def test_manifest_of_the_queue_keeps_what_its_owner_wrote() -> None:
    pod = {
        "spec": {
            "restartPolicy": "OnFailure",
            "containers": [
                {"name": "main", "image": "old", "env": [{"name": "DIR", "value": "/d/$(LAUNCH_RUN_ID)"}]},
                {"name": "side", "image": "proxy", "command": ["proxy"]},
            ],
        }
    }
    options = {**job_options(pod, backoffLimit=3, activeDeadlineSeconds=9), "metadata": {"name": "mine"}}

    made = build_objects(make_plan(options, command=("run",), env={"LAUNCH_RUN_ID": "r1"}))

    main, side = pod_of(made.manifest)["containers"]
    assert side == {"name": "side", "image": "proxy", "command": ["proxy"], "env": []}
    assert (main["image"], main["command"]) == ("registry.example.com/train:1", ["run"])
    names = [one["name"] for one in main["env"]]
    assert names.index("LAUNCH_RUN_ID") < names.index("DIR")
    assert env_of(main)["DIR"] == "/d/$(LAUNCH_RUN_ID)"
    assert (made.manifest["spec"]["backoffLimit"], made.manifest["spec"]["activeDeadlineSeconds"]) == (3, 9)
    assert made.manifest["metadata"]["annotations"][Labels.WANTED_NAME] == "mine"


def test_secret_is_in_no_manifest_wherever_its_variable_was_named() -> None:
    options = {
        **job_options(pod_manifest(env=[{"name": "OWN", "value": f"key={SECRET}"}])),
        "env": {"TOKEN": SECRET},
    }

    made = build_objects(make_plan(options, env={"WANDB_API_KEY": SECRET, "PLAIN": "x"}))

    secret = made.owned[0]
    env = env_of(container_of(made.manifest))
    assert SECRET not in json.dumps(made.manifest)
    assert {name for name, value in env.items() if isinstance(value, dict)} == {"OWN", "TOKEN", "WANDB_API_KEY"}
    key = env["OWN"]["secretKeyRef"]["key"]
    assert base64.b64decode(secret["data"][key]).decode() == f"key={SECRET}"
    assert env["PLAIN"] == "x"


def test_secret_outside_of_variables_is_refused_without_being_shown() -> None:
    options = job_options(pod_manifest(args=["--token", SECRET]))

    with pytest.raises(SpecError) as refused:
        build_objects(make_plan(options))

    assert "args[1]" in str(refused.value)
    assert SECRET not in str(refused.value)


def test_preview_shows_no_value_of_a_variable() -> None:
    shown = json.dumps(preview_objects(make_plan({"env": {"A": "a-value"}}, env={"TOKEN": SECRET, "B": "b-value"})))

    assert SECRET not in shown
    assert "a-value" not in shown
    assert "b-value" not in shown
    assert f"Secret {NAME}-env" in shown


@pytest.mark.parametrize("text", ["$(HOME)", "$$", "a$(B)c$D", "$HOME"])
def test_text_of_the_job_reaches_it_as_it_is(text: str) -> None:
    made = build_objects(make_plan(command=("sh", "-c", text), env={"A": text}))

    container = container_of(made.manifest)
    assert _expanded(container["command"][2]) == text
    assert _expanded(env_of(container)["A"]) == text


def _expanded(text: str) -> str:
    """Do as the kubelet does with a text that names no known variable."""
    out, i = "", 0
    while i < len(text):
        if text[i] == "$" and text[i + 1 : i + 2] == "$":
            out, i = out + "$", i + 2
        else:
            assert not text.startswith("$(", i), "a reference would be replaced"
            out, i = out + text[i], i + 1
    return out


def test_labels_that_kubernetes_does_not_take_are_annotations_and_are_read_back() -> None:
    made = build_objects(make_plan())

    metadata = made.manifest["metadata"]
    assert Labels.QUEUE not in metadata["labels"]
    assert metadata["annotations"][Labels.QUEUE] == LABELS[Labels.QUEUE]
    assert labels_of(made.manifest) == LABELS
    assert selector_of({Labels.CLAIM: "c1", Labels.QUEUE: "my queue, ü"}) == f"{RUNS},{Labels.CLAIM}=c1"


@pytest.mark.parametrize(
    ("hold", "spec", "released"),
    [
        (Hold.SUSPEND, {}, {"spec": {"suspend": False}}),
        (Hold.PARALLELISM, {}, {"spec": {"parallelism": 1}}),
        (Hold.PARALLELISM, {"parallelism": 4, "completions": 8}, {"spec": {"parallelism": 4}}),
    ],
)
def test_job_is_held_and_released_with_what_it_was_to_have(
    hold: Hold, spec: dict[str, Any], released: dict[str, Any]
) -> None:
    made = build_objects(make_plan(job_options(**spec)), hold=hold)

    assert is_held(made.manifest, made.kind)
    assert release_patch(made.manifest, made.kind) == {**UNMARKED, **released}
    after = {**made.manifest, "spec": {**made.manifest["spec"], **released["spec"]}}
    assert not is_held(after, made.kind)
    # Somebody else, such as Kueue, may hold it again: it is none that was never started.
    unmarked = {name: value for name, value in made.manifest["metadata"]["annotations"].items() if name != HOLD}
    again = {**made.manifest, "metadata": {**made.manifest["metadata"], "annotations": unmarked}}
    assert not is_held(again, made.kind)


def test_job_that_the_clusters_own_queueing_starts_is_not_released_by_us() -> None:
    made = build_objects(make_plan(job_options(suspend=True)))

    assert made.manifest["spec"]["suspend"] is True
    assert release_patch(made.manifest, made.kind) is None


@pytest.mark.parametrize(
    "options",
    [
        {"labels": {QUEUE_LABEL: "team-a"}},
        {**job_options(), "metadata": {"labels": {QUEUE_LABEL: "team-a"}}},
        {**job_options(suspend=True), "metadata": {"labels": {QUEUE_LABEL: "team-a"}}},
        {
            "apiVersion": "kubeflow.org/v1",
            "kind": "PyTorchJob",
            "metadata": {"labels": {QUEUE_LABEL: "team-a"}},
            "spec": {"pytorchReplicaSpecs": {"Worker": {"template": pod_manifest(name="pytorch")}}},
        },
    ],
)
def test_job_of_a_queue_of_kueue_comes_into_it_at_its_release_and_is_resumed_by_kueue(options: dict[str, Any]) -> None:
    made = build_objects(make_plan(options))
    manifest = made.manifest

    assert first(manifest, made.kind.suspend) is True
    assert manifest["metadata"]["labels"][QUEUE_LABEL] == "prefect-launch-held"
    assert is_held(manifest, made.kind)
    assert release_patch(manifest, made.kind) == {
        "metadata": {"annotations": {HOLD: None}, "labels": {QUEUE_LABEL: "team-a"}}
    }
    manifest["metadata"]["labels"][QUEUE_LABEL] = "team-a"
    assert not is_held(manifest, made.kind)
    _, _, template = pod_templates(manifest, made.kind)[0]
    assert QUEUE_LABEL not in template["metadata"]["labels"]


@pytest.mark.parametrize(
    ("of_plan", "of_runner", "seconds"), [(None, 25.5, 26), (7.2, 25.5, 8), (0.0, 25.5, 1), (90.0, 10.0, 90)]
)
def test_pod_is_given_the_items_time_to_end_in_or_else_the_runners(
    of_plan: float | None, of_runner: float, seconds: int
) -> None:
    made = build_objects(make_plan(stop_seconds=of_plan), stop_seconds=of_runner)
    own = {"spec": {**pod_manifest()["spec"], "terminationGracePeriodSeconds": 5}}

    assert pod_of(made.manifest)["terminationGracePeriodSeconds"] == seconds
    kept = build_objects(make_plan(job_options(own), stop_seconds=of_plan), stop_seconds=of_runner)
    assert pod_of(kept.manifest)["terminationGracePeriodSeconds"] == 5


def test_init_container_that_fails_leaves_the_end_of_its_log_and_the_job_its_outputs_alone() -> None:
    pod = pod_manifest()
    own = {"name": "own", "image": "b", "terminationMessagePolicy": "File"}
    pod["spec"]["initContainers"] = [{"name": "fetch", "image": "b"}, own]

    made = build_objects(make_plan(job_options(pod)))

    policies = [one.get("terminationMessagePolicy") for one in pod_of(made.manifest)["initContainers"]]
    assert policies == ["FallbackToLogsOnError", "File"]
    assert "terminationMessagePolicy" not in container_of(made.manifest)
    assert container_of(made.manifest)["terminationMessagePath"] == OUTPUTS_PATH


def test_objects_beside_the_job_go_with_it() -> None:
    made = build_objects(make_plan(env={"TOKEN": SECRET}), pull_auths={"r.io": {"username": "u", "password": "p"}})
    owner = {**made.manifest, "metadata": {**made.manifest["metadata"], "uid": "u-1"}}

    owned = [with_owner(one, owner) for one in made.owned]

    assert [one["metadata"]["ownerReferences"][0]["uid"] for one in owned] == ["u-1", "u-1"]
    assert all(BESIDE in one["metadata"]["labels"] for one in owned)
    assert pod_of(made.manifest)["imagePullSecrets"] == [{"name": f"{NAME}-pull"}]


def test_service_of_a_kind_that_a_run_may_have_is_not_taken_for_the_run() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "redis"}, "spec": {"containers": [{"name": "r"}]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "load"}, "spec": {"template": pod_manifest()}}
    made = build_objects(make_plan(options={"additional_services": [{"config": pod}, {"config": job}]}))

    assert run_of(made.manifest) == NAME
    assert [run_of(service.manifest) for service in made.services] == ["", ""]


# --- code ---


def test_code_is_unpacked_onto_a_base_image_before_the_job_starts(tmp_path: Path) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "train.py").write_text("print(1)")
    plan = make_plan(code_dir=tmp_path, build_context="pkg", working_dir="sub", command=("python", "train.py"))

    code = pack_code(plan)
    assert code is not None
    made = build_objects(plan, code=code)

    pod, container = pod_of(made.manifest), container_of(made.manifest)
    archive = base64.b64decode(made.owned[-1]["binaryData"]["code.tar.gz"])
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        assert packed.getnames() == ["pkg", "pkg/train.py"]
        assert packed.getmember("pkg/train.py").mode & 0o666 == 0o666
    assert container["workingDir"] == "/workspace/pkg/sub"
    assert pod["initContainers"][0]["image"] == container["image"]
    assert {one["name"] for one in pod["volumes"]} >= {"launch-code", "launch-code-archive"}
    assert pack_code(plan) == code


def test_code_that_kubernetes_cannot_carry_is_refused_with_a_way_out(tmp_path: Path) -> None:
    import random

    (tmp_path / "data.bin").write_bytes(random.Random(0).randbytes(1_200_000))

    with pytest.raises(SpecError, match="an image is built"):
        pack_code(make_plan(code_dir=tmp_path))


def test_working_folder_relative_to_an_image_is_entered_by_a_shell() -> None:
    made = build_objects(make_plan(working_dir="sub", command=("python", "x.py")))

    assert container_of(made.manifest)["command"][:4] == ["/bin/sh", "-c", 'cd -- "$0" && exec "$@"', "sub"]


def test_container_without_any_image_is_refused() -> None:
    with pytest.raises(SpecError, match="has no image"):
        build_objects(make_plan(image=None))


def test_job_whose_image_is_still_to_be_built_is_checked_and_previewed(tmp_path: Path) -> None:
    request = BuildRequest(entry_point=("python", "train.py"))
    plan = make_plan(
        job_options(pod_manifest(image="${image_uri}")), image=None, build_request=request, code_dir=tmp_path
    )

    check_plan(plan)

    manifest = preview_objects(plan)["manifest"]
    assert container_of(manifest)["image"] == "to-be-built"
    assert "initContainers" not in pod_of(manifest)


# --- custom resources ---


def replicas(**counts: int) -> dict[str, Any]:
    """Return replica specs of a PyTorchJob."""
    return {
        name: {
            "replicas": count,
            "template": {
                "spec": {"containers": [{"name": "pytorch", "image": "x"}, {"name": "side", "image": "y"}]},
            },
        }
        for name, count in counts.items()
    }


def test_every_training_container_of_a_pytorch_job_runs_the_command() -> None:
    options = {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "spec": {"pytorchReplicaSpecs": replicas(Master=1, Worker=3)},
    }

    made = build_objects(make_plan(options, command=("torchrun", "x.py"), env={"A": "1"}))

    for spec in made.manifest["spec"]["pytorchReplicaSpecs"].values():
        main, side = spec["template"]["spec"]["containers"]
        assert main["command"] == ["torchrun", "x.py"]
        assert env_of(main)["A"] == "1"
        assert "command" not in side
        assert spec["template"]["metadata"]["labels"][Labels.ITEM] == ITEM
    assert release_patch(made.manifest, made.kind) == {**UNMARKED, "spec": {"runPolicy": {"suspend": False}}}


def test_template_that_an_alias_of_yaml_repeats_is_completed_once_for_each_place() -> None:
    template = pod_manifest(name="pytorch")
    template["spec"]["volumes"] = [{"name": "data", "emptyDir": {}}]
    template["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
    spec = {"pytorchReplicaSpecs": {name: {"replicas": 1, "template": template} for name in ("Master", "Worker")}}
    options = {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "spec": spec, "shm_size": "1g"}

    KubernetesRunner.check_together(KubernetesRunner.check_options(options))
    made = build_objects(make_plan(options))

    for role in made.manifest["spec"]["pytorchReplicaSpecs"].values():
        mounts = role["template"]["spec"]["containers"][0]["volumeMounts"]
        assert [one["mountPath"] for one in mounts] == ["/data", "/dev/shm", "/launch/outputs"]


def test_ray_job_takes_the_command_as_its_entry_point() -> None:
    pod = {"spec": {"containers": [{"name": "ray-head", "image": "ray"}]}}
    options = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "spec": {"entrypoint": "old", "rayClusterSpec": {"headGroupSpec": {"template": pod}}},
    }

    made = build_objects(make_plan(options, command=("python", "my train.py")))

    head = made.manifest["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert made.manifest["spec"]["entrypoint"] == "python 'my train.py'"
    assert "command" not in head


def test_kind_that_nobody_knows_is_described_by_the_queue() -> None:
    options = {
        "apiVersion": "example.com/v1",
        "kind": "Experiment",
        "spec": {"worker": {"pod": pod_manifest()}, "paused": False},
        "custom": {"pods": [{"template": "spec.worker.pod"}], "suspend": "spec.paused", "plural": "experimenta"},
    }

    made = build_objects(make_plan(options, command=("run",)))

    assert made.manifest["spec"]["worker"]["pod"]["spec"]["containers"][0]["command"] == ["run"]
    assert made.kind.resource == "experimenta"
    assert release_patch(made.manifest, made.kind) == {**UNMARKED, "spec": {"paused": False}}


# --- images ---


@pytest.mark.parametrize("image", ["localhost/train:1", "localhost:5000/train", "127.0.0.1:5000/train:1"])
def test_image_on_the_agents_own_machine_is_refused_for_a_cluster(image: str) -> None:
    with pytest.raises(SpecError, match="Push it to a registry that they reach"):
        build_objects(make_plan(image=image))


@pytest.mark.parametrize(
    "options",
    [{"node-registries": ["localhost:32000"]}, job_options(pod_manifest(imagePullPolicy="Never"))],
)
def test_image_that_the_nodes_have_by_themselves_is_taken(options: dict[str, Any]) -> None:
    made = build_objects(make_plan(options, image="localhost:32000/train:1"))

    assert container_of(made.manifest)["image"] == "localhost:32000/train:1"
