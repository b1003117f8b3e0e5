"""Two agents on one machine with homes of their own, one of them killed: never two attempts of its item at work."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_launch.agent.context import AgentContext
from prefect_launch.agent.item.previous_attempts import stop_all_attempts
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import StateType
from prefect_launch.runners.base import Labels, RunState
from prefect_launch.runners.process.runner import LocalProcessRunner
from tests.support.live import Site, settle_lost, until
from tests.support.mortal_agent import Lives

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess
    from tests.support.processes import ChildProcess

pytestmark = pytest.mark.timeout(180)

#: Says again and again under which claim it runs, in a place that no agent knows of. For its first second it is deaf to
#: TERM.
TICKS = (
    "trap '[ $n -gt 20 ] && exit 3' TERM; n=0; while [ $n -lt $most ]; do"
    ' echo "$LAUNCH_CLAIM" >> "$COUNT/ticks"; n=$((n+1)); sleep 0.05; done'
)
#: The first one goes on for long, the next one ends by itself.
SCRIPT = f"if [ -e $COUNT/again ]; then most=20; else touch $COUNT/again; most=4000; fi; {TICKS}"


@pytest.fixture
def counting(prefect_server: PrefectServerProcess, tmp_path: Path, unique: str) -> Site:
    """A queue of processes that count themselves."""
    site = Site(prefect_server.api_url, tmp_path, unique, config={"env": {"COUNT": str(tmp_path)}})
    site.job(SCRIPT)
    return site


def ticks(site: Site) -> list[tuple[str, int]]:
    """The claims that ticked, in order, each with how often it did in a row."""
    file = site.folder / "ticks"
    lines = file.read_text().split() if file.exists() else []
    return [(claim, len(list(group))) for claim, group in groupby(lines)]


def see_lost(site: Site) -> None:
    """See as the agent of another home that the item's agent is silent, until its item is settled."""

    async def watch(session: Session) -> None:
        context = AgentContext(site.agent("watcher", home=site.folder / "another-home").config, session)
        await settle_lost(session, site.name, stop_here=partial(stop_all_attempts, context))
        await context.aclose()

    site.api.call(watch)


def lose(site: Site, run: QueuedRun) -> None:
    """Let the item come back into its queue, since its agent is gone."""
    see_lost(site)
    assert run.item.state_name == "AwaitingRetry", run.message


def run_again(site: Site, **config: Any) -> None:
    """Let the agent of another home work the queue off."""
    site.work_off(name="other", home=site.folder / "another-home", **config)


def at_work(site: Site, home: str, run: QueuedRun) -> list[RunState]:
    """Where the runs of an item are that the agents of a home have made."""
    found = asyncio.run(LocalProcessRunner(site.folder / home).find({Labels.ITEM: run.id}))
    return [one.state for one in found]


def test_process_of_a_killed_agents_attempt_is_gone_before_the_agent_of_another_home_starts_the_next(
    counting: Site, agents: list[ChildProcess]
) -> None:
    (run,) = counting.add(retries={"delay": 0})
    agents.append(counting.agent_process())
    until(lambda: run.item.state_type is StateType.RUNNING and ticks(counting))
    agents[0].kill()
    lose(counting, run)
    assert at_work(counting, "home", run) == [RunState.RUNNING]
    run_again(counting)
    (_, first), (_, second) = ticks(counting)
    assert (second, run.item.state_type, run.item.run_count) == (20, StateType.COMPLETED, 2)
    assert first > 0
    # Its own agent has its log still, and clears it away when it comes back.
    assert at_work(counting, "home", run) == [RunState.EXITED]
    counting.work_off()
    assert at_work(counting, "home", run) == []
    assert len(ticks(counting)) == 2
    assert (run.item.state_type, run.item.run_count) == (StateType.COMPLETED, 2)


def test_killed_agent_that_comes_back_under_the_next_attempt_does_not_touch_it(
    counting: Site, agents: list[ChildProcess]
) -> None:
    (run,) = counting.add(retries={"delay": 0})
    agents.append(counting.agent_process())
    until(lambda: run.item.state_type is StateType.RUNNING and ticks(counting))
    agents[0].kill()
    lose(counting, run)
    agents.append(counting.agent_process("other", home="another-home"))
    until(lambda: len(ticks(counting)) == 2)
    agents.append(counting.agent_process())
    until(lambda: run.item.is_terminal)
    assert [count for _, count in ticks(counting)][1:] == [20]
    assert (run.item.state_type, run.item.run_count) == (StateType.COMPLETED, 2)


def test_process_that_was_started_by_an_agent_that_died_before_it_could_say_so_is_gone_too(
    counting: Site, tmp_path: Path
) -> None:
    (run,) = counting.add(retries={"delay": 0})
    settings = {"name": f"{counting.name}-box", "queues": [counting.name], "home": str(counting.folder / "home")}
    lives = Lives(tmp_path)
    try:
        life = lives.live("local-process", {**settings, "api_url": counting.api_url}, "after start 1")
    finally:
        lives.close()
    assert life.status == 137, life.log
    assert run.item.state_type is StateType.PENDING
    until(lambda: ticks(counting))
    lose(counting, run)
    run_again(counting)
    assert [count for _, count in ticks(counting)][1:] == [20]
    assert (run.item.state_type, run.item.run_count) == (StateType.COMPLETED, 1)


def test_process_that_was_to_be_stopped_by_a_killed_agent_is_stopped_by_the_agent_of_another_home(
    counting: Site, agents: list[ChildProcess]
) -> None:
    (run,) = counting.add()
    agents.append(counting.agent_process())
    until(lambda: run.item.state_type is StateType.RUNNING and ticks(counting))
    agents[0].kill()
    assert run.cancel() == "Cancelling"
    see_lost(counting)
    assert at_work(counting, "home", run) == [RunState.EXITED]
    assert run.item.state_type is StateType.CANCELLED
    assert run.message.endswith("it is gone.")


@pytest.mark.engine
def test_container_of_a_killed_agents_attempt_is_gone_before_the_agent_of_another_home_starts_the_next(
    prefect_server: PrefectServerProcess,
    engine: DockerEngine,
    shell_image: str,
    tmp_path: Path,
    unique: str,
    agents: list[ChildProcess],
) -> None:
    queue = {"env": {"COUNT": "/count"}, "volume": [f"{tmp_path}:/count"]}
    site = Site(prefect_server.api_url, tmp_path, unique, resource="local-container", config=queue)
    spec = {"docker": {"docker_image": shell_image}, "overrides": {"entry_point": ["sh", "-c", SCRIPT]}}
    (run,) = site.add(spec, retries={"delay": 0})
    agents.append(site.agent_process())
    until(lambda: run.item.state_type is StateType.RUNNING and ticks(site))
    agents[0].kill()
    lose(site, run)
    run_again(site)
    (_, first), (_, second) = ticks(site)
    assert (second, run.item.state_type, run.item.run_count) == (20, StateType.COMPLETED, 2)
    assert first > 0
    client = engine.client()
    try:
        assert client.containers.list(all=True, filters={"label": f"{Labels.ITEM}={run.id}"}) == []
    finally:
        client.close()
