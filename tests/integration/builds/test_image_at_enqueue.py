"""The image that a tag means when an item is queued, looked up unasked: run where it can be had, missed nowhere."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_launch import launch_add
from prefect_launch.client.api import use_api
from tests.support.docker_registry import DockerRegistry
from tests.support.pushed_images import forget, give_name, noise_of, push

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.live import Site

pytestmark = pytest.mark.engine

TELL = {"entry_point": ["sha256sum", "/noise"]}
FAIL = {"entry_point": ["sh", "-c", "sha256sum /noise; exit 3"]}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who has configured nothing."""
    monkeypatch.setenv("HOME", str(tmp_path / "user"))


@pytest.fixture
def registry(tmp_path: Path, open_registry: DockerRegistry) -> Iterator[DockerRegistry]:
    """A registry of the test's own, which it may stop."""
    made = DockerRegistry(tmp_path / "registry")
    yield made
    made.stop()


def of(image: str, overrides: dict[str, Any] = TELL, **docker: Any) -> dict[str, Any]:
    return {"docker": {"docker_image": image, **docker}, "overrides": overrides}


def connections(server: socket.socket) -> int:
    """How many connections have come in to a server that accepts none."""
    server.setblocking(False)
    found = 0
    with suppress(BlockingIOError):
        while True:
            server.accept()[0].close()
            found += 1
    return found


def test_item_runs_what_its_tag_meant_when_it_was_queued_unasked(
    containers: Site, engine: DockerEngine, open_registry: DockerRegistry, image_in: Callable[[str], str]
) -> None:
    tag = f"{open_registry.host}/team/{containers.name}:stable"
    old, new = image_in(open_registry.host), image_in(open_registry.host)
    was, is_now = noise_of(engine, old), noise_of(engine, new)
    digest = push(engine, old, tag)
    run, free = containers.add(of(tag), of(tag, pin=False))
    push(engine, new, tag)
    forget(engine, old)  # What has the name here is the new one.

    containers.work_off()

    assert run.item.parameters["docker"] == {"docker_image": tag, "digest": digest, "resolved": True}
    assert free.item.parameters["docker"] == {"docker_image": tag, "pin": False}
    assert containers.states(run) == ["Queued", "Pending", "Pulling", "Running", "Completed"], run.message
    assert [containers.log(run), containers.log(free)] == [was, is_now]
    assert digest not in containers.notes(run)
    forget(engine, f"{tag.rpartition(':')[0]}@{digest}")


def test_registry_that_is_away_when_an_item_is_queued_costs_it_nothing(
    containers: Site, engine: DockerEngine, image_in: Callable[[str], str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        image = image_in(f"127.0.0.1:{silent.getsockname()[1]}")
        with use_api(containers.api):
            launch_add(docker_image="busybox:1", queue_name=containers.name).cancel()  # It opens the connection.
            runs = [
                launch_add(docker_image=image, entry_point=TELL["entry_point"], queue_name=containers.name)
                for _ in range(5)
            ]
        assert connections(silent) <= 1, "each of them has waited for the registry"
    assert [run.item.parameters["docker"] for run in runs] == [{"docker_image": image}] * 5
    containers.work_off()
    assert {containers.log(run) for run in runs} == {noise_of(engine, image)}


def test_image_of_that_name_runs_and_says_so_where_the_registry_is_out_of_sight(
    containers: Site, engine: DockerEngine, registry: DockerRegistry, image_in: Callable[[str], str]
) -> None:
    tag = f"{registry.host}/team/{containers.name}:stable"
    meant, preloaded = image_in(registry.host), image_in(registry.host)
    digest = push(engine, meant, tag)
    run, failing, pinned = containers.add(of(tag), of(tag, FAIL), of(tag, pin=True))
    registry.stop()
    forget(engine, meant)
    give_name(engine, preloaded, tag)

    containers.work_off()

    assert (containers.log(run), containers.flow_run(run).state_name) == (noise_of(engine, preloaded), "Completed")
    assert containers.states(failing)[-1] == "Failed"
    assert containers.states(pinned)[-1] == "Crashed", "another image has run in the place of a pinned one"
    for one in (run, failing):
        (line,) = [line for line in containers.notes(one).splitlines() if digest in line]
        assert "which could not be had here: what runs is the image of that name, " in line
    (page,) = [made for made in containers.artifacts(failing) if str(made.key).startswith("failure-report-")]
    assert f"{digest}, not to be had here" in page.data
