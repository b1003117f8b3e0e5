"""`explain_launch`: what would be queued and created, told without a trace."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from prefect_launch import aexplain_launch, create_job, explain_launch, launch_add
from prefect_launch.client.build_first import image_job
from prefect_launch.client.explain import Explanation, masked
from prefect_launch.core.states import ItemState
from prefect_launch.errors import InputError, LaunchError, NotFoundError, SpecError, UnsafeSpecError
from prefect_launch.queues.agent_status import AgentStatus, post_status
from prefect_launch.server.values import State
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import inputs, items

CONTAINER = {"memory": "1g", "env": {"TOKEN": "{{ prefect.blocks.secret.my-token }}", "MODE": "s3cr3t-mode"}}


def trace(api: InMemoryApi, folder: Path) -> Any:
    """All that a call could leave behind: on the server, in its job store, and on this machine."""
    store = api.server._store  # the fake's own records
    on_server = json.dumps(
        [len(store.items), sorted(store.pools), len(store.deployments), store.variables], default=str
    )
    return on_server, len(store.artifacts), sorted(str(path) for path in folder.rglob("*"))


def test_it_takes_the_arguments_of_launch_add() -> None:
    wanted = inspect.signature(launch_add, eval_str=True).parameters
    assert inspect.signature(explain_launch, eval_str=True).parameters == wanted
    assert inspect.signature(aexplain_launch, eval_str=True).parameters == wanted


def test_nothing_is_left_behind(job_api: InMemoryApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))
    before = trace(job_api, tmp_path)
    explain_launch(job="train", config=inputs(lr=0.1), queue_name="cpu")
    explain_launch(docker_image="busybox:1", queue_name="gpu", run_id="mine")
    explain_launch(docker_image="busybox:1")  # the queue `default` is not made
    for refused in ({"job": "trai"}, {"job": "train", "queue_name": "gpux"}, {"docker_image": "a b"}):
        with pytest.raises(LaunchError):
            explain_launch(**refused)  # type: ignore[arg-type]
    assert trace(job_api, tmp_path) == before


def test_container_is_told_as_the_agent_would_create_it(job_api: InMemoryApi) -> None:
    told = explain_launch(
        docker_image="team/box:1",
        queue_name="gpu",
        template_variables={"gpus": 2},
        entry_point=["python", "a.py"],
        resource_args={"local-container": CONTAINER},
        priority="high",
        run_id="r1",
    )
    assert (told.queue, told.resource, told.priority) == ("gpu", "local-container", "high")
    assert (told.image, told.digest, told.builds) == ("team/box:1", None, False)
    assert told.creates["Image"] == "team/box:1"
    assert told.creates["Entrypoint"] == ["python", "a.py"]
    assert told.creates["HostConfig"]["Memory"] == 1024**3
    assert told.creates["HostConfig"]["DeviceRequests"][0]["Count"] == 2
    assert told.creates["WorkingDir"] == "the image's own"
    assert told.creates["Labels"]["prefect-launch.run-id"] == "r1"
    assert told.creates["Labels"]["prefect-launch.queue"] == "gpu"


def test_project_of_a_folder_is_told_to_run_in_its_build_context(job_api: InMemoryApi, tmp_path: Path) -> None:
    project = tmp_path / "all" / "services" / "train"
    project.mkdir(parents=True)
    (project / "inside").mkdir()
    for folder in (project, project / "inside"):
        (folder / "run.py").write_text("")
    given: Any = {"entrypoint": "python run.py", "build_context": "services/train", "api": job_api}
    create_job(str(tmp_path / "all"), "code", name="part", **given)
    create_job(str(tmp_path / "all"), "code", name="based", base_image="python:3.12", **given)
    in_it: Any = {"config": {"overrides": {"working_dir": "inside"}}}
    assert explain_launch(job="part", queue_name="cpu").creates["cwd"].endswith("/code/services/train")
    assert explain_launch(job="part", queue_name="cpu", **in_it).creates["cwd"].endswith("/code/services/train/inside")
    assert explain_launch(job="based", queue_name="gpu").creates["WorkingDir"].endswith("/services/train")
    assert explain_launch(job="part", queue_name="gpu").builds


def test_variables_are_told_by_name_and_secrets_by_their_block(job_api: InMemoryApi) -> None:
    told = explain_launch(docker_image="box", queue_name="gpu", resource_args={"local-container": CONTAINER})
    assert told.options["env"] == ["MODE", "TOKEN (Secret block my-token)"]
    assert {"MODE", "TOKEN (Secret block my-token)", "LAUNCH_CONFIG"} <= set(told.creates["Env"])
    assert "s3cr3t-mode" not in told.model_dump_json()
    assert "s3cr3t-mode" not in str(told)


def test_input_that_is_called_like_the_variables_stays_as_it_is(job_api: InMemoryApi) -> None:
    told = explain_launch(docker_image="box", queue_name="gpu", config=inputs(env=3, e=2.7))
    assert told.parameters["overrides"]["run_config"] == {"env": 3, "e": 2.7}


def test_process_is_reported_with_its_command_and_the_jobs_version(job_api: InMemoryApi) -> None:
    told = explain_launch(job="train", config=inputs(lr=0.1), queue_name="cpu")
    assert (told.job, told.image, told.digest) == ("acme/digits/train:v0", None, None)
    assert told.creates["command"] == ["python", "main.py"]
    assert {"LAUNCH_CONFIG", "WANDB_RUN_ID", "VIRTUAL_ENV"} <= set(told.creates["env"])


def test_image_that_is_still_to_be_built_is_said_to_be(job_api: InMemoryApi) -> None:
    told = explain_launch(job="train", config=inputs(lr=0.1), queue_name="gpu")
    assert (told.image, told.builds, told.digest) == (None, True, None)
    assert told.creates["Entrypoint"] == ["python", "main.py"]


BUILT: dict[str, Any] = {"job": "train", "config": inputs(lr=0.1), "queue_name": "gpu", "build": True}
REPOSITORY = "registry.example:5000/team/train"


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this user's settings."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(tmp_path / "home"))
    folder = tmp_path / ".config/prefect-launch"
    folder.mkdir(parents=True)
    return folder


def test_image_that_would_be_built_first_is_reported_with_its_job_and_where_it_goes(
    job_api: InMemoryApi, user: Path, tmp_path: Path
) -> None:
    before = trace(job_api, tmp_path)
    told = explain_launch(**BUILT, repository=REPOSITORY, entry_point=["python", "other.py"])
    assert (told.built_of, told.pushed_to) == ("acme/digits/train:v0", REPOSITORY)
    assert told.job == told.parameters["job"] == "acme/digits/train-image:v0"
    assert (told.image, told.digest, told.builds) == (f"{REPOSITORY}:set-when-built", None, False)
    assert told.creates["Entrypoint"] == ["python", "other.py"]
    assert told.parameters["overrides"]["run_config"]["lr"] == 0.1
    assert "entry_point" not in told.parameters["overrides"]
    changes = {change.what: (change.asked, change.becomes, change.by) for change in told.changes}
    assert changes["job"] == ("train", "acme/digits/train-image:v0", "the build")
    assert trace(job_api, tmp_path) == before


def test_image_job_that_was_built_of_the_same_code_is_reported_with_its_digest(
    job_api: InMemoryApi, user: Path
) -> None:
    digest = "sha256:" + "a" * 64
    made = image_job(job_api.job("train"), f"{REPOSITORY}@{digest}", ("python", "main.py"))
    job_api.call(lambda session: session.jobs.put(made))
    told = explain_launch(**BUILT, repository=REPOSITORY)
    assert (told.job, told.digest) == ("acme/digits/train-image:v0", digest)
    told = explain_launch(**BUILT, repository=REPOSITORY, entry_point=["python", "other.py"])
    assert (told.job, told.digest) == ("acme/digits/train-image:v1", None)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"queue_name": None}, "without a queue"),
        ({"repository": None}, "Give repository"),
        ({"queue_name": "cpu"}, "Cannot build a docker image for the resource: local-process"),
        ({"job": None, "docker_image": "team/box:1", "config": {}}, "There is nothing to build"),
        ({"builder": "none"}, "builder.type: none"),
    ],
)
def test_build_that_launch_add_refuses_is_refused(
    job_api: InMemoryApi, user: Path, more: dict[str, Any], words: str
) -> None:
    arguments = {**BUILT, "repository": REPOSITORY, **more}
    (user / "agent.yaml").write_text(f"builder: {{type: {arguments.pop('builder', 'docker')}}}\n")
    with pytest.raises(SpecError, match=words) as explained:
        explain_launch(**arguments)
    with pytest.raises(SpecError) as added:
        launch_add(**arguments)
    assert str(explained.value) == str(added.value)


SMALL: dict[str, Any] = {
    "memory": "2g",
    "cpus": 1,
    "env": {"A": "1"},
    "limits": {"cpus": 4, "pids-limit": 512, "timeout": "2h"},
}


def test_what_the_queue_and_the_job_have_changed_is_reported(job_api: InMemoryApi) -> None:
    job_api.create_run_queue("small", "local-container", config=SMALL, submitter_options=["cpus"])
    told = explain_launch(docker_image="box", queue_name="small", resource_args={"local-container": {"cpus": 2}})
    changes = {change.what: (change.asked, change.becomes, change.by) for change in told.changes}
    assert changes["memory"] == (None, "2g", "the queue")
    assert changes["env.A"] == (None, "***", "the queue")
    assert changes["pids-limit"] == (None, 512, "the queue's limit")
    assert changes["timeout"] == (None, "2 h", "the queue's limit")
    assert "cpus" not in changes
    assert told.limits == SMALL["limits"]
    assert told.fixed == ("cpu-period", "cpu-quota", "env.A", "memory", "memory-swap")
    told = explain_launch(job="train", config=inputs(lr=0.1), queue_name="cpu")
    changes = {change.what: (change.asked, change.becomes, change.by) for change in told.changes}
    assert changes["job"] == ("train", "acme/digits/train:v0", "pinned")
    assert changes["input epochs"] == (None, 3, "the job's schema")
    assert "input lr" not in changes
    told = explain_launch(docker_image="box", queue_name="gpu")
    changes = {change.what: (change.asked, change.becomes, change.by) for change in told.changes}
    assert changes["variable gpus"] == (None, 1, "the queue's default")
    assert changes["gpus"] == (None, 1, "the queue, from the template variable gpus")


def test_place_is_the_one_behind_those_that_wait(job_api: InMemoryApi) -> None:
    for priority in (1, 3, 4):
        launch_add(docker_image="box", queue_name="gpu", priority=priority)
    told = explain_launch(docker_image="box", queue_name="gpu")
    assert told.waiting is not None
    assert told.waiting.position == "3rd of 4"
    assert told.waiting.reason.startswith("No agent is online")
    assert len(items(job_api)) == 3


def test_same_run_id_tells_the_item_that_is_there_and_another_spec_is_refused(job_api: InMemoryApi) -> None:
    there = launch_add(docker_image="box", queue_name="gpu", run_id="mine")
    assert explain_launch(docker_image="box", queue_name="gpu", run_id="mine").there == there.id
    with pytest.raises(SpecError, match="taken by another spec"):
        explain_launch(docker_image="other", queue_name="gpu", run_id="mine")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"job": "trainn", "queue_name": "cpu"}, NotFoundError),
        ({"job": "train", "queue_name": "cpu"}, InputError),
        ({"docker_image": "box", "queue_name": "gpu", "template_variables": {"gpus": 99}}, SpecError),
        (
            {"docker_image": "box", "queue_name": "gpu", "resource_args": {"local-container": {"privileged": True}}},
            UnsafeSpecError,
        ),
        ({"docker_image": "box", "queue_name": "cpu"}, SpecError),
    ],
)
def test_what_launch_add_refuses_is_refused(
    job_api: InMemoryApi, arguments: dict[str, Any], error: type[LaunchError]
) -> None:
    with pytest.raises(error) as explained:
        explain_launch(**arguments)
    with pytest.raises(error) as added:
        launch_add(**arguments)
    assert str(explained.value) == str(added.value)


async def test_async_variant_explains_the_same(job_api: InMemoryApi) -> None:
    told = await aexplain_launch(docker_image="team/box@sha256:" + "a" * 64, queue_name="gpu", run_id="r")
    assert isinstance(told, Explanation)
    assert told.digest == "sha256:" + "a" * 64


def test_explanation_is_what_is_queued_then(job_api: InMemoryApi) -> None:
    told = explain_launch(job="train", config=inputs(lr=0.1), queue_name="cpu", run_id="r")
    made = launch_add(job="train", config=inputs(lr=0.1), queue_name="cpu", run_id="r")
    assert told.parameters == made.item.parameters
    assert told.name == made.name
    job_api.call(lambda session: session.server.propose(UUID(made.id), State.of(ItemState.CANCELLED)))


async def test_gpus_that_no_agent_has_are_reported_before_anything_waits_for_them(job_api: InMemoryApi) -> None:
    async def told(devices: str) -> str:
        notice = AgentStatus(name="box", host="h", queues=("gpu",), slots=2, state="polling", devices=devices)
        await post_status(job_api.server, notice)
        found = await aexplain_launch(docker_image="box", queue_name="gpu", template_variables={"gpus": 2})
        return found.waiting.reason if found.waiting else ""

    await job_api.server.beat_worker("gpu", "box", 15)
    assert await told("") == "It asks for 2 GPUs, and no agent of the queue 'gpu' has a GPU (box)."
    assert "a free slot and 2 GPUs takes it" in await told("GPU 0 free; GPU 1 free")


def test_variables_of_a_manifests_containers_are_told_by_their_names() -> None:
    container = {"name": "main", "image": "busybox:1", "env": [{"name": "MODE", "value": "s3cr3t-mode"}]}
    options = {"spec": {"template": {"spec": {"containers": [container]}}}}

    told = masked(options)

    assert told["spec"]["template"]["spec"]["containers"] == [{**container, "env": ["MODE"]}]


def test_passwords_in_a_runtime_environment_are_not_told() -> None:
    index = "--index-url https://user:hunter22@host/pypi"
    options = {"runtime-env": {"pip": [index], "env_vars": {"A": "hunter22"}, "config": {"headers": {"X": "hunter22"}}}}
    assert masked(options)["runtime-env"] == {
        "pip": ["--index-url https://***@host/pypi"],
        "env_vars": ["A"],
        "config": {"headers": ["X"]},
    }
