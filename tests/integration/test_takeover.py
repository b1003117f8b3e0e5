"""Takeover: an agent is killed and does not come back, and another agent of its home adopts its runs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import StateType
from prefect_launch.runners.base import Labels
from tests.support.impatient import at_work
from tests.support.live import Site, until

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.processes import ChildProcess

pytestmark = pytest.mark.timeout(180)

LOST_SECONDS = 3.0
LINES = 100
#: Ten seconds of lines, then outputs and an end of its own.
COUNTING = (
    "n=0; while [ $n -lt 100 ]; do n=$((n+1)); echo line $n; sleep 0.1; done;"
    """ echo '{"lines": 100}' > "$LAUNCH_OUTPUT_DIR/outputs.json"; exit 4"""
)


def inherit(site: Site, run: QueuedRun) -> None:
    """Let another agent of the home see the item to its end; it must not come back into its queue."""

    async def see() -> None:
        async with at_work(site.agent("adopter"), lost_seconds=LOST_SECONDS):
            deadline = time.monotonic() + 60
            while not (item := await asyncio.to_thread(lambda: run.item)).is_terminal:
                assert item.state_type is StateType.RUNNING, item.message
                assert time.monotonic() < deadline, "it has not ended"
                await asyncio.sleep(0.2)

    asyncio.run(see())


def check(site: Site, run: QueuedRun) -> None:
    """The one attempt came to its end, and all of it was told, once."""
    assert [state for state in site.states(run) if state not in ("Building", "Pulling")] == [
        "Queued",
        "Pending",
        "Running",
        "Failed",
    ]
    assert "exit code 4" in run.message
    assert site.flow_run(run).run_count == 1
    assert site.log(run).splitlines() == [f"line {number}" for number in range(1, LINES + 1)]
    assert run.outputs() == {"lines": 100}


def orphan(site: Site, run: QueuedRun, agents: list[ChildProcess]) -> None:
    """Kill the agent of an item while its job is at work."""
    agents.append(site.agent_process("box"))
    until(lambda: "line 5" in site.log(run))
    agents[0].kill()


def test_process_of_a_killed_agent_is_adopted_by_another_of_its_home(site: Site, agents: list[ChildProcess]) -> None:
    site.job(COUNTING)
    (run,) = site.add(retries=0)
    orphan(site, run, agents)
    inherit(site, run)
    check(site, run)


@pytest.mark.engine
def test_container_of_a_killed_agent_is_adopted_by_another_of_its_home(
    containers: Site, engine: DockerEngine, shell_image: str, agents: list[ChildProcess]
) -> None:
    spec = {"docker": {"docker_image": shell_image}, "overrides": {"entry_point": ["sh", "-c", COUNTING]}}
    (run,) = containers.add(spec, retries=0)
    orphan(containers, run, agents)
    inherit(containers, run)
    check(containers, run)
    client = engine.client()
    try:
        assert client.containers.list(all=True, filters={"label": f"{Labels.ITEM}={run.id}"}) == []
    finally:
        client.close()


def test_process_that_ended_while_no_agent_was_there_keeps_its_end(site: Site, agents: list[ChildProcess]) -> None:
    site.job(COUNTING)
    (run,) = site.add(retries=0)
    orphan(site, run, agents)
    time.sleep(LINES * 0.1)
    inherit(site, run)
    check(site, run)
