"""Options of Vertex AI's runner: what a queue says, who may set it, and the custom job that is made of it."""

from __future__ import annotations

import subprocess
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import create_job, launch_add
from prefect_launch.client.api import use_api
from prefect_launch.core.masking import Mask
from prefect_launch.errors import LaunchError, QueueError, SpecError, UnsafeSpecError
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.vertex.labels import as_google, from_google
from prefect_launch.runners.remote.vertex.options import custom_job
from prefect_launch.runners.remote.vertex.runner import VertexRunner
from prefect_launch.spec.launch_spec import LaunchSpec
from prefect_launch.testing import InMemoryApi
from tests.support.queue_config import make_config
from tests.unit.runners.vertex.world import SPEC


def spec_with(**pool: Any) -> dict[str, Any]:
    """Return a spec whose only worker pool has these fields, too."""
    made = deepcopy(SPEC)
    made["worker_pool_specs"][0] |= pool
    return made


def plan_of(tmp_path: Path, **changes: Any) -> RunPlan:
    """Return a plan."""
    given: dict[str, Any] = {"image": "train:1", "options": {"spec": SPEC}, "labels": {Labels.CLAIM: "c1"}, **changes}
    return RunPlan(item_id="item", run_id="run", run_dir=tmp_path, **given)


def container(plan: RunPlan, pool: int = 0) -> dict[str, Any]:
    """Return the container of a pool of the job that is made of a plan."""
    made: dict[str, Any] = custom_job(plan)["jobSpec"]["workerPoolSpecs"][pool]["containerSpec"]
    return made


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"spec": {**SPEC, "worker_pool_specs": []}}, r"spec.worker_pool_specs is \[\]: .* at least one worker pool"),
        ({"spec": {"worker_pool_specs": SPEC["worker_pool_specs"]}}, r"no staging_bucket.* Set it, such as gs://"),
        ({"spec": {**SPEC, "staging_bucket": "bucket"}}, r"spec.staging_bucket is 'bucket': it must be a bucket"),
        ({"spec": {**SPEC, "stagingbuckets": 1}}, r"Unknown field 'stagingbuckets' in .*spec. Did you mean"),
        ({"spec": {**SPEC, "project": "other"}}, r"spec.project is 'other': it is the agent's: clouds.gcp.project"),
        ({"spec": {**SPEC, "stagingBucket": "gs://two-buckets"}}, "given twice, in two spellings"),
        ({"spec": spec_with(machine_spec={})}, "it names no machine. Add a machine_spec"),
        ({"spec": spec_with(replica_count=2)}, r"\[0\].replica_count is 2: the first worker pool has one machine"),
        ({"spec": spec_with(replica_count=0)}, r"replica_count is 0: it must be a whole number from 1"),
        (
            {"spec": spec_with(machine_spec={"machine_type": "n1", "accelerator_count": 1})},
            "accelerator_type and accelerator_count go together",
        ),
        ({"spec": {**SPEC, "labels": {"Team": "a"}}}, "its key 'Team' must be at most 63 small letters"),
        ({"spec": {**SPEC, "labels": {"prefect_launch_item": "a"}}}, "is prefect-launch's own"),
        ({"spec": SPEC, "run": {"timeout": "soon"}}, r"run.timeout is 'soon': Invalid duration"),
        ({"spec": SPEC, "run": {"scheduling_strategy": "CHEAP"}}, "one of STANDARD, ON_DEMAND, LOW_COST, SPOT"),
        ({"spec": SPEC, "run": {"sync": True}}, r"run.sync is True: an agent never waits in a call"),
        ({"spec": SPEC, "env": {"a b": "1"}}, r"env is 'a b': the name of a variable must be"),
        ({"spec": SPEC, "secrets": "perhaps"}, r"secrets is 'perhaps': it must be true or false"),
        ({"run": {}}, "has no 'spec', which says what the jobs run on"),
    ],
)
def test_wrong_option_is_refused_with_its_place_and_value(options: dict[str, Any], words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        VertexRunner.check_together(VertexRunner.check_options(options))


def test_pool_without_a_container_is_refused() -> None:
    pool = {"machine_spec": {"machine_type": "n1-standard-4"}, "python_package_spec": {}}
    for written in (pool, {"machine_spec": pool["machine_spec"]}):
        with pytest.raises(SpecError, match="container_spec"):
            VertexRunner.check_options({"spec": {**SPEC, "worker_pool_specs": [written]}})


def test_queue_with_a_wrong_spec_is_not_made() -> None:
    with pytest.raises(QueueError, match="staging_bucket"):
        make_config("vertex", {"spec": {"worker_pool_specs": [{**SPEC["worker_pool_specs"][0], "container_spec": {}}]}})


def test_reference_s_name_of_the_resource_is_understood_in_queues_and_items() -> None:
    config = make_config("gcp-vertex", {"resource_args": {"gcp-vertex": {"spec": SPEC}}})
    assert (config.resource, config.resource_args) == ("vertex", {"spec": SPEC})
    spec = LaunchSpec(job="train", resource="gcp-vertex", resource_args={"gcp-vertex": {"env": {"A": "1"}}})
    assert (spec.resource, spec.resource_args) == ("vertex", {"vertex": {"env": {"A": "1"}}})


def test_camel_case_and_snake_case_make_the_same_job(tmp_path: Path) -> None:
    camel = {
        "workerPoolSpecs": [
            {"machineSpec": {"machineType": "n1-standard-4"}, "replicaCount": 1, "containerSpec": {"imageUri": "x"}}
        ],
        "stagingBucket": SPEC["staging_bucket"] + "/",
    }
    assert custom_job(plan_of(tmp_path, options={"spec": camel})) == custom_job(plan_of(tmp_path))


def test_run_arguments_stand_where_the_api_has_them(tmp_path: Path) -> None:
    run = {"service_account": "a@b", "timeout": "1h", "scheduling_strategy": "SPOT", "disable_retries": True}
    spec = {**SPEC, "encryption_spec_key_name": "key", "base_output_dir": "gs://models/out", "labels": {"team": "ml"}}
    made = custom_job(plan_of(tmp_path, options={"spec": spec, "run": run}))
    assert made["displayName"] == "launch-item-1"
    assert made["labels"] == {"team": "ml", "prefect_launch_claim": "c1"}
    assert made["encryptionSpec"] == {"kmsKeyName": "key"}
    assert made["jobSpec"]["serviceAccount"] == "a@b"
    assert made["jobSpec"]["scheduling"] == {"timeout": "3600s", "disableRetries": True, "strategy": "SPOT"}
    assert made["jobSpec"]["baseOutputDirectory"] == {"outputUriPrefix": "gs://models/out/launch-item-1-c1/"}


def test_command_of_the_image_stays_where_the_job_has_none(tmp_path: Path) -> None:
    spec = spec_with(container_spec={"command": ["own"], "args": ["--own"]})
    options = {"options": {"spec": spec}}
    plain = container(plan_of(tmp_path, **options))
    assert (plain["imageUri"], plain["command"], plain["args"]) == ("train:1", ["own"], ["--own"])
    given = container(plan_of(tmp_path, command=("python", "t.py"), args=("--lr", "1"), **options))
    assert (given["command"], given["args"]) == (["python", "t.py"], ["--lr", "1"])
    bare = container(plan_of(tmp_path))
    assert {"command", "args"} & bare.keys() == set()


def test_pools_of_the_job_get_its_image_and_another_keeps_its_own(tmp_path: Path) -> None:
    first = SPEC["worker_pool_specs"][0]
    helper = {**first, "container_spec": {"image_uri": "reducer:2", "command": ["reduce"]}}
    pools = [first, {**first, "replica_count": 3}, helper]
    plan = plan_of(tmp_path, command=("train",), env={"A": "1"}, options={"spec": {**SPEC, "worker_pool_specs": pools}})
    images = [(one["imageUri"], one.get("command")) for one in (container(plan, number) for number in range(3))]
    assert images == [("train:1", ["train"]), ("train:1", ["train"]), ("reducer:2", ["reduce"])]
    assert {"name": "A", "value": "1"} in container(plan, 2)["env"]


def test_variables_are_added_to_the_queues_and_arrive_as_they_are(tmp_path: Path) -> None:
    spec = spec_with(container_spec={"env": [{"name": "MINE", "value": "$(X)"}, {"name": "A", "value": "old"}]})
    env = container(plan_of(tmp_path, env={"A": "$(HOME) $x"}, options={"spec": spec, "env": {"B": "2"}}))["env"]
    found = {one["name"]: one["value"] for one in env}
    assert (found["MINE"], found["A"], found["B"]) == ("$(X)", "$$(HOME) $x", "2")
    assert found["LAUNCH_OUTPUT_DIR"] == "/gcs/launch-tests/team/launch/launch-item-1-c1"
    assert len(found) == len(env)


@pytest.mark.parametrize(
    "changes",
    [
        {"env": {"KEY": "hunter22"}},
        {"args": ("--key=hunter22",)},
        {"options": {"spec": spec_with(container_spec={"env": [{"name": "K", "value": "hunter22"}]})}},
    ],
)
def test_secret_is_refused_unless_the_owner_lets_google_show_it(tmp_path: Path, changes: dict[str, Any]) -> None:
    plan = plan_of(tmp_path, mask=Mask(["hunter22"]), **changes)
    with pytest.raises(QueueError, match="Secret Manager") as refused:
        VertexRunner(tmp_path).check(plan)
    assert "hunter22" not in str(refused.value)
    VertexRunner(tmp_path).check(plan.model_copy(update={"options": {**plan.options, "secrets": True}}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"code_dir": Path("/code")}, "Vertex AI takes no code into an image that is there"),
        ({"working_dir": "sub"}, "in the folder 'sub', and it has no command"),
        ({"file_overrides": {"c.yaml": {}}}, "changes c.yaml in the job's code"),
        ({"env": {"a-b": "1"}}, "the name of a variable"),
    ],
)
def test_plan_that_a_container_of_the_service_cannot_run_is_refused(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(SpecError, match=words):
        VertexRunner(tmp_path).check(plan_of(tmp_path, **changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stagingbuckets": 1}, "Unknown field 'stagingbuckets'"),
        ({"staging_bucket": "bucket"}, "spec.staging_bucket is 'bucket': it must be a bucket"),
    ],
)
def test_queue_whose_spec_names_the_image_of_its_items_is_checked_when_it_is_made(
    changes: dict[str, Any], words: str
) -> None:
    assert "${image_uri}" in str(make_config("vertex", {"spec": SPEC}).resource_args)
    with pytest.raises(LaunchError, match=words):
        make_config("vertex", {"spec": {**SPEC, **changes}})
    make_config("vertex", {"spec": {**SPEC, "staging_bucket": "${bucket}"}})  # Of an agent's config: known later.


def test_job_with_a_base_image_is_refused_before_it_is_queued(tmp_path: Path) -> None:
    api = InMemoryApi(entity="acme")
    (tmp_path / "train.py").write_text("print(1)\n")
    with use_api(api):
        api.create_run_queue("gcp", "vertex", config={"spec": SPEC})
        create_job(str(tmp_path), "code", name="train", entrypoint="python train.py", base_image="python:3.12")
        with pytest.raises(SpecError, match=r"in the image 'python:3.12' as it is, .* without a base image"):
            launch_add(job="train", queue_name="gcp")
        assert list(api.items(queue="gcp")) == []


def test_item_that_names_its_own_image_is_queued() -> None:
    api = InMemoryApi(entity="acme")
    with use_api(api):
        api.create_run_queue("gcp", "vertex", config={"spec": SPEC})
        launch_add(
            docker_image="host.example/train:1",
            entry_point=["train"],
            queue_name="gcp",
            config={"docker": {"pin": False}},
        )
    assert len(list(api.items(queue="gcp"))) == 1


def test_command_runs_in_the_folder_of_the_image_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    plan = plan_of(tmp_path, command=("sh", "-c", 'pwd; echo "$1"', "sh"), args=("a b",), working_dir="sub")
    made = container(plan)
    done = subprocess.run([*made["command"], *made["args"]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str((tmp_path / "sub").resolve()), "a b"]


@pytest.mark.parametrize(
    "options",
    [
        {"run": {"serviceAccount": "admin@x"}},
        {"spec": {"staging_bucket": "gs://other-bucket"}},
        {"spec": {"worker_pool_specs": [{"nfsMounts": []}]}},
    ],
)
def test_submitter_says_neither_who_nor_where_a_job_is(options: dict[str, Any]) -> None:
    with pytest.raises(UnsafeSpecError, match="by the queue's owner only"):
        VertexRunner.check_submitter_options(options)


def test_limits_count_machines_and_accelerators_of_all_pools() -> None:
    machine = {"machine_type": "n1", "accelerator_type": "NVIDIA_TESLA_T4", "accelerator_count": 2}
    pool = {"machine_spec": machine, "container_spec": {"image_uri": "train:1"}}
    spec = {**SPEC, "worker_pool_specs": [pool, {**pool, "replica_count": 3}]}
    found = VertexRunner.amounts({"spec": spec})
    assert (found["gpus"].number, found["replicas"].number) == (8, 4)
    with pytest.raises(QueueError, match=r"asks for 8 \(on 4 machines\) of 'gpus' in all, and at most 4"):
        make_config("vertex", {"spec": spec, "limits": {"gpus": 4}})


def test_labels_come_back_exactly_from_what_google_takes() -> None:
    labels = {
        Labels.ITEM: "3b98f3c1-6c1f-4d6e-9d55-0a4d3a5f6f10",
        Labels.CLAIM: "",
        Labels.AGENT: "Box_1.ünï" * 9,
        Labels.RUN_ID: "UPPER and_lower-",
        Labels.QUEUE: "_2",
    }
    made = as_google(labels)
    assert from_google({**made, "team": "ml"}) == labels
    assert all(len(key) <= 63 and len(value) <= 63 for key, value in made.items())
    assert set("".join(made.values())) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
