"""A Docker Engine that cannot be reached for a while: no item is crashed for it, and nothing runs twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch.core.states import StateType
from tests.integration.test_agent_containers import container
from tests.support.agent_thread import running
from tests.support.live import Site, until
from tests.support.relay import Relay, relay_to

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = pytest.mark.engine


@pytest.fixture
def way(engine: DockerEngine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """The agent's way to the engine, which the test can cut; the engine itself goes on."""
    kind, _, place = engine.host.partition("://")
    with relay_to(place if kind == "unix" else int(place.rpartition(":")[2])) as relay:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{relay.port}")
        yield relay


@pytest.fixture
def site(prefect_server: PrefectServerProcess, way: Relay, tmp_path: Path, unique: str) -> Site:
    """A queue of containers of the test's own."""
    return Site(prefect_server.api_url, tmp_path, unique, resource="local-container")


def problems(site: Site) -> list[str]:
    return [resource for agent in site.api.agents() if site.name in agent.name for resource in agent.problems]


def test_items_wait_for_an_engine_that_is_away_when_the_agent_starts(site: Site, way: Relay, shell_image: str) -> None:
    way.cut()
    (run,) = site.add(container(shell_image, "echo here"))
    with running(site.agent(poll_seconds=0.2)):
        assert until(lambda: problems(site)) == ["local-container"]
        assert site.states(run) == ["Queued"]
        way.mend()
        until(lambda: run.item.state_type is StateType.COMPLETED)
        assert site.states(run) == ["Queued", "Pending", "Running", "Completed"]
        until(lambda: not problems(site))
    assert site.log(run) == "here"


def test_container_goes_on_while_the_engine_is_away_and_no_other_is_claimed(
    site: Site, way: Relay, shell_image: str
) -> None:
    count = 'i=0; while [ $i -lt 60 ]; do echo "line $i"; i=$((i+1)); sleep 0.1; done'
    (first,) = site.add(container(shell_image, count))
    with running(site.agent(poll_seconds=0.2, max_jobs=2)):
        until(lambda: "line 3" in site.log(first))
        way.cut()
        (second,) = site.add(container(shell_image, "echo second"))
        until(lambda: problems(site))
        assert "Crashed" not in site.states(second)
        way.mend()
        until(lambda: first.item.state_type is StateType.COMPLETED)
        until(lambda: second.item.state_type is StateType.COMPLETED)
    assert site.log(first).splitlines() == [f"line {number}" for number in range(60)]
    assert site.states(first) == ["Queued", "Pending", "Running", "Completed"]
    assert site.log(second) == "second"
