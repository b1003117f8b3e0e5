"""The client of a Docker Engine: what it asks, and what it need not ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import requests
import responses

from prefect_launch.runners.docker.client import DockerEngine

ADDRESS = "tcp://engine.invalid:2375"
KILLED = {"Status": "exited", "ExitCode": 137, "OOMKilled": False, "Error": ""}


@pytest.fixture
def answers() -> Iterator[responses.RequestsMock]:
    """An engine with one container, `c`, that a SIGKILL has ended."""
    inspected = {"Id": "c", "Name": "/c", "State": KILLED, "Config": {"Labels": {}}, "Image": "sha256:1"}
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        at = "http://engine.invalid:2375"
        mock.get(f"{at}/version", json={"ApiVersion": "1.43"})
        mock.get(f"{at}/v1.43/events", body=requests.ConnectionError("it sends no news"))
        mock.get(f"{at}/v1.43/containers/c/json", json=inspected)
        mock.post(f"{at}/v1.43/containers/c/kill", status=204)
        yield mock


@pytest.fixture
async def engine(answers: responses.RequestsMock) -> AsyncIterator[DockerEngine]:
    """Its client."""
    engine = DockerEngine(ADDRESS)
    yield engine
    await engine.aclose()


async def test_end_of_a_container_that_was_killed_here_is_not_held_up_by_the_question_for_memory(
    engine: DockerEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.runners.docker.client._OOM_LAG_SECONDS", 600)
    await engine.kill("c", "SIGKILL")
    container = await asyncio.wait_for(engine.ended("c"), 60)
    assert container is not None
    assert (container.exit_code, container.oom_killed) == (137, False)


@pytest.mark.parametrize("sent", [None, "SIGTERM"])
async def test_end_of_a_container_that_something_else_killed_waits_a_moment_for_the_word_of_memory(
    engine: DockerEngine, monkeypatch: pytest.MonkeyPatch, sent: str | None
) -> None:
    monkeypatch.setattr("prefect_launch.runners.docker.client._OOM_LAG_SECONDS", 600)
    if sent is not None:
        await engine.kill("c", sent)
    end = asyncio.ensure_future(engine.ended("c"))
    await asyncio.wait({end}, timeout=0.3)
    assert not end.done()
    while not end.done():
        engine._events._dispatch({"id": "c", "Action": "oom"})
        await asyncio.wait({end}, timeout=0.05)
    container = await end
    assert container is not None
    assert container.oom_killed
