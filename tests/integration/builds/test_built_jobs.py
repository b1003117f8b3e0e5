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


class BuildSite(Site):
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
def site(prefect_server: PrefectServerProcess, python_image: str, tmp_path: Path, unique: str, home: Path) -> BuildSite:
    made = BuildSite(prefect_server.api_url, tmp_path, unique, resource="local-container")
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
    site: BuildSite, engine: DockerEngine, open_registry: DockerRegistry
) -> None:
    repository = f"{open_registry.host}/team/{site.name}"

    run = site.add_built(repository, name="first")

    job = site.api.job(f"{site.name}-image")
    assert run.item.parameters["job"] == job.reference
    assert str(job.image).startswith(f"{repository}@sha256:")
    assert (job.schema or {})["required"] == ["lr"]
    assert job.document.retries is not None
    assert job.metadata["built_from"] == site.api.job(site.name).reference
    assert forget_built(engine, repository) == 1
    site.work_off(builder={"type": "none"})
    assert site.states(run) == ["Queued", "Pending", "Pulling", "Running", "Completed"], run.message
    assert "rate 0.5" in site.log(run)


def test_same_code_is_built_once_and_makes_one_version(
    site: BuildSite, engine: DockerEngine, open_registry: DockerRegistry
) -> None:
    repository = f"{open_registry.host}/team/{site.name}"
    first = site.add_built(repository)
    assert forget_built(engine, repository) == 1

    second = site.add_built(repository)

    assert second.item.parameters["job"] == first.item.parameters["job"]
    assert forget_built(engine, repository) == 0, "it was built again"
    site.code_job(MAIN.replace("rate", "speed"))
    third = site.add_built(repository)
    assert third.item.parameters["job"] == f"acme/tests/{site.name}-image:v1"


def test_registry_with_a_password_is_used_with_the_block_that_the_config_names(
    site: BuildSite, engine: DockerEngine, closed_registry: DockerRegistry, home: Path
) -> None:
    block = DockerRegistryCredentials(username=USER, password=SecretStr(PASSWORD), registry_url=closed_registry.host)
    block.save("of-builds", overwrite=True)
    repository = f"{closed_registry.host}/team/{site.name}"
    configure(home, builder={"destination": repository, "credentials": "of-builds"})

    run = site.add_built(None)

    assert forget_built(engine, repository) == 1
    site.work_off(builder={"type": "none"}, registries={closed_registry.host: {"credentials": "of-builds"}})
    assert site.states(run)[-1] == "Completed", run.message
    assert PASSWORD not in site.log(run) + site.notes(run) + str(run.item.parameters)


def test_build_that_cannot_be_pushed_queues_nothing(site: BuildSite, closed_registry: DockerRegistry) -> None:
    with pytest.raises(RegistryError, match=r"none are known here.*DockerRegistryCredentials"):
        site.add_built(f"{closed_registry.host}/team/{site.name}")

    assert site.api.items(queue=site.name) == []
    assert [job.name for job in site.api.jobs("acme", "tests") if site.name in job.name] == [site.name]


def test_agent_with_a_destination_pushes_what_it_builds_and_takes_what_is_there(
    site: BuildSite, engine: DockerEngine, open_registry: DockerRegistry
) -> None:
    repository = f"{open_registry.host}/team/{site.name}"
    builder = {"base_image": PYTHON_IMAGE, "destination": repository}
    config = {"overrides": {"run_config": {"lr": 0.25}}}
    (first,) = site.add(config)
    site.work_off(builder=builder)
    assert site.states(first) == ["Queued", "Pending", "Building", "Running", "Completed"], first.message
    assert f"Pushed {repository}@sha256:" in site.notes(first)
    assert forget_built(engine, repository) == 1

    (second,) = site.add(config)
    site.work_off(builder=builder)

    assert site.states(second) == ["Queued", "Pending", "Pulling", "Running", "Completed"], second.message
    assert "rate 0.25" in site.log(second)


def test_item_runs_what_its_tag_meant_when_it_was_queued(
    site: BuildSite, engine: DockerEngine, open_registry: DockerRegistry
) -> None:
    repository = f"{open_registry.host}/team/{site.name}"
    first = site.add_built(repository).item.parameters["job"]
    built = str(site.api.job(first).image)
    tag = f"{repository}:stable"
    push(engine, built, tag)

    with use_api(site.api):
        run = launch_add(
            config={"docker": {"docker_image": tag, "pin": True}, "overrides": {"run_config": {"lr": 0.75}}},
            queue_name=site.name,
            entry_point=["python", "main.py"],
        )

    assert run.item.parameters["docker"]["digest"] == built.partition("@")[2]
    site.code_job(MAIN.replace("rate", "speed"))
    push(engine, str(site.api.job(site.add_built(repository).item.parameters["job"]).image), tag)
    assert forget_built(engine, repository) == 2
    site.work_off(builder={"type": "none"})
    assert site.states(run)[-1] == "Completed", run.message
    assert site.log(run) == "rate 0.75"


def test_queue_that_pins_runs_what_the_tag_meant_when_each_item_was_queued(
    site: BuildSite, engine: DockerEngine, open_registry: DockerRegistry, image_in: Callable[[str], str]
) -> None:
    tag = f"{open_registry.host}/team/{site.name}:stable"
    old, new = image_in(open_registry.host), image_in(open_registry.host)
    site.api.upsert_run_queue(site.name, "local-container", config={"docker": {"pin": True}})
    asked = {"docker": {"docker_image": tag}, "overrides": {"entry_point": ["sha256sum", "/noise"]}}
    free = {**asked, "docker": {"docker_image": tag, "pin": False}}

    push(engine, old, tag)
    first, second, unpinned = launch_add_many([asked, asked, free], site.name, api=site.api)
    push(engine, new, tag)
    (third,) = launch_add_many([asked], site.name, api=site.api)
    site.work_off(builder={"type": "none"})

    was, is_now = noise_of(engine, old), noise_of(engine, new)
    assert was != is_now
    assert [site.log(run) for run in (first, second, unpinned, third)] == [was, was, is_now, is_now]
    assert "digest" not in unpinned.item.parameters["docker"]
