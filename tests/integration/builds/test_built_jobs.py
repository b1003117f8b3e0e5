"""`launch_add(build=True)`: built and pushed here, pulled by its digest by an agent that has nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from prefect_docker.credentials import DockerRegistryCredentials
from pydantic import SecretStr

from prefect_launch import create_job, launch_add, launch_add_many
from prefect_launch.client.api import use_api
from prefect_launch.errors import RegistryError
from tests.support.docker_registry import PASSWORD, USER, DockerRegistry
from tests.support.images import PYTHON_IMAGE
from tests.support.live import Site
from tests.support.pushed_images import noise_of, push

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = pytest.mark.engine

MAIN = "import json, os\nprint('rate', json.loads(os.environ['LAUNCH_CONFIG'])['lr'])\n"
SCHEMA = {"type": "object", "properties": {"lr": {"type": "number", "maximum": 1}}, "required": ["lr"]}


class Desk(Site):
    """A queue of containers, a code job, and a machine that builds for it."""

    def code_job(self, main: str = MAIN) -> None:
        folder = self.folder / "code"
        folder.mkdir(exist_ok=True)
        (folder / "main.py").write_text(main)
        create_job(
            str(folder), "code", name=self.name, entrypoint="python main.py", schema=SCHEMA, retries=2, api=self.api
        )

    def add_built(self, repository: str | None, **more: Any) -> Any:
        config = {"overrides": {"run_config": {"lr": 0.5}}}
        with use_api(self.api):
            return launch_add(
                job=self.name, queue_name=self.name, build=True, repository=repository, config=config, **more
            )


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder, with how this machine builds."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    folder = tmp_path / "user" / ".config" / "prefect-launch"
    folder.mkdir(parents=True)
    configure(folder)
    return folder


def configure(folder: Path, **more: Any) -> None:
    builder = {"base_image": PYTHON_IMAGE, **more.pop("builder", {})}
    (folder / "agent.yaml").write_text(yaml.safe_dump({"builder": builder, **more}))


@pytest.fixture
def desk(prefect_server: PrefectServerProcess, python_image: str, tmp_path: Path, unique: str, home: Path) -> Desk:
    made = Desk(prefect_server.api_url, tmp_path, unique, resource="local-container")
    made.code_job()
    return made


def forget_built(engine: DockerEngine, repository: str) -> int:
    """Take the images of a repository off the machine, as if another machine had built them; return how many."""
    client = engine.client()
    try:
        # None but built ones: what others on this engine work with stays.
        found = {image.id for image in client.images.list(repository, filters={"label": "prefect-launch.image"})}
        for image_id in found:
            client.images.remove(image_id, force=True)
        return len(found)
    finally:
        client.close()


def test_image_built_here_is_pulled_by_its_digest_where_it_runs(
    desk: Desk, engine: DockerEngine, open_registry: DockerRegistry
) -> None:
    repository = f"{open_registry.host}/team/{desk.name}"

    run = desk.add_built(repository, name="first")

    job = desk.api.job(f"{desk.name}-image")
    assert run.item.parameters["job"] == job.reference
    assert str(job.image).startswith(f"{repository}@sha256:")
    assert (job.schema or {})["required"] == ["lr"]
    assert job.document.retries is not None
    assert job.metadata["built_from"] == desk.api.job(desk.name).reference
    assert forget_built(engine, repository) == 1
    desk.work_off(builder={"type": "none"})
    assert desk.states(run) == ["Queued", "Pending", "Pulling", "Running", "Completed"], run.message
    assert "rate 0.5" in desk.log(run)


def test_same_code_is_built_once_and_makes_one_version(
    desk: Desk, engine: DockerEngine, open_registry: DockerRegistry
) -> None:
    repository = f"{open_registry.host}/team/{desk.name}"
    first = desk.add_built(repository)
    assert forget_built(engine, repository) == 1

    second = desk.add_built(repository)

    assert second.item.parameters["job"] == first.item.parameters["job"]
    assert forget_built(engine, repository) == 0, "it was built again"
    desk.code_job(MAIN.replace("rate", "speed"))
    third = desk.add_built(repository)
    assert third.item.parameters["job"] == f"acme/tests/{desk.name}-image:v1"


def test_registry_with_a_password_is_used_with_the_block_that_the_config_names(
    desk: Desk, engine: DockerEngine, closed_registry: DockerRegistry, home: Path
) -> None:
    block = DockerRegistryCredentials(username=USER, password=SecretStr(PASSWORD), registry_url=closed_registry.host)
    block.save("of-builds", overwrite=True)
    repository = f"{closed_registry.host}/team/{desk.name}"
    configure(home, builder={"destination": repository, "credentials": "of-builds"})

    run = desk.add_built(None)

    assert forget_built(engine, repository) == 1
    desk.work_off(builder={"type": "none"}, registries={closed_registry.host: {"credentials": "of-builds"}})
    assert desk.states(run)[-1] == "Completed", run.message
    assert PASSWORD not in desk.log(run) + desk.notes(run) + str(run.item.parameters)


def test_build_that_cannot_be_pushed_queues_nothing(desk: Desk, closed_registry: DockerRegistry) -> None:
    with pytest.raises(RegistryError, match=r"none are known here.*DockerRegistryCredentials"):
        desk.add_built(f"{closed_registry.host}/team/{desk.name}")

    assert desk.api.items(queue=desk.name) == []
    assert [job.name for job in desk.api.jobs("acme", "tests") if desk.name in job.name] == [desk.name]


def test_agent_with_a_destination_pushes_what_it_builds_and_takes_what_is_there(
    desk: Desk, engine: DockerEngine, open_registry: DockerRegistry
) -> None:
    repository = f"{open_registry.host}/team/{desk.name}"
    builder = {"base_image": PYTHON_IMAGE, "destination": repository}
    config = {"overrides": {"run_config": {"lr": 0.25}}}
    (first,) = desk.add(config)
    desk.work_off(builder=builder)
    assert desk.states(first) == ["Queued", "Pending", "Building", "Running", "Completed"], first.message
    assert f"Pushed {repository}@sha256:" in desk.notes(first)
    assert forget_built(engine, repository) == 1

    (second,) = desk.add(config)
    desk.work_off(builder=builder)

    assert desk.states(second) == ["Queued", "Pending", "Pulling", "Running", "Completed"], second.message
    assert "rate 0.25" in desk.log(second)


def test_item_runs_what_its_tag_meant_when_it_was_queued(
    desk: Desk, engine: DockerEngine, open_registry: DockerRegistry
) -> None:
    repository = f"{open_registry.host}/team/{desk.name}"
    first = desk.add_built(repository).item.parameters["job"]
    built = str(desk.api.job(first).image)
    tag = f"{repository}:stable"
    push(engine, built, tag)

    with use_api(desk.api):
        run = launch_add(
            config={"docker": {"docker_image": tag, "pin": True}, "overrides": {"run_config": {"lr": 0.75}}},
            queue_name=desk.name,
            entry_point=["python", "main.py"],
        )

    assert run.item.parameters["docker"]["digest"] == built.partition("@")[2]
    desk.code_job(MAIN.replace("rate", "speed"))
    push(engine, str(desk.api.job(desk.add_built(repository).item.parameters["job"]).image), tag)
    assert forget_built(engine, repository) == 2
    desk.work_off(builder={"type": "none"})
    assert desk.states(run)[-1] == "Completed", run.message
    assert desk.log(run) == "rate 0.75"


def test_queue_that_pins_runs_what_the_tag_meant_when_each_item_was_queued(
    desk: Desk, engine: DockerEngine, open_registry: DockerRegistry, image_in: Callable[[str], str]
) -> None:
    tag = f"{open_registry.host}/team/{desk.name}:stable"
    old, new = image_in(open_registry.host), image_in(open_registry.host)
    desk.api.upsert_run_queue(desk.name, "local-container", config={"docker": {"pin": True}})
    asked = {"docker": {"docker_image": tag}, "overrides": {"entry_point": ["sha256sum", "/noise"]}}
    free = {**asked, "docker": {"docker_image": tag, "pin": False}}

    push(engine, old, tag)
    first, second, unpinned = launch_add_many([asked, asked, free], desk.name, api=desk.api)
    push(engine, new, tag)
    (third,) = launch_add_many([asked], desk.name, api=desk.api)
    desk.work_off(builder={"type": "none"})

    was, is_now = noise_of(engine, old), noise_of(engine, new)
    assert was != is_now
    assert [desk.log(run) for run in (first, second, unpinned, third)] == [was, was, is_now, is_now]
    assert "digest" not in unpinned.item.parameters["docker"]
