"""Two agents on one machine that have homes of their own: an older claim's run is stopped, a newer one's never."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.context import AgentContext
from prefect_launch.agent.item.ownership import claims_of, token_of_claim
from prefect_launch.agent.item.previous_attempts import stop_all_attempts, stop_previous_attempts
from prefect_launch.agent.recovery.lost_agents import LostAgentDetector
from prefect_launch.core.states import TERMINAL, ItemState, StateType
from prefect_launch.errors import InfrastructureError
from prefect_launch.runners.base import ExitStatus, Found, Labels, RunPlan, RunState, nothing
from prefect_launch.server.values import Item, State
from prefect_launch.testing import InMemoryRunner, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually, holder_called
from tests.unit.agent.test_lost_agents import Clock, Watcher, left_running, watching


class OfOneHome(InMemoryRunner):
    """A runner that finds what its own home has made, and beside it what is at work on its machine."""

    async def find(self, labels: Mapping[str, str]) -> list[Found]:
        found = await super().find(labels)
        return [one for one in found if one.run_dir is not None and one.run_dir.is_relative_to(self.home)]

    async def find_beside(self, item_id: str) -> list[Found]:
        found = await super().find({Labels.ITEM: item_id})
        return [one for one in found if one.state is not RunState.EXITED]


class OfACluster(OfOneHome):
    """A runner that tells what another has stopped as lost, and late: the next attempt runs by then."""

    async def watch(self, handle: str, plan: RunPlan, *, ended: Callable[[], None] = nothing) -> ExitStatus:
        end = await super().watch(handle, plan, ended=ended)
        if not end.stopped:
            return end
        await eventually(self._started, lambda started: len(started) == 2)
        return end.model_copy(update={"stopped": False, "error": "somebody stopped it"})

    async def _started(self) -> list[str]:
        return self.machine.started


class OfManyPlaces(InMemoryRunner):
    """A runner that finds runs where it was told to seek them."""

    seeks = False

    async def seek(self, where: str | RunPlan) -> None:
        self.seeks = True

    async def find(self, labels: Mapping[str, str]) -> list[Found]:
        return await super().find(labels) if self.seeks else []


def agent_of(bench: Bench, home: Path, name: str, kind: type[OfOneHome] = OfOneHome) -> LaunchAgent:
    settings = {"name": name, "queues": [QUEUE], "home": home, "poll_seconds": 0.05}
    return LaunchAgent(bench.api, settings, runners={RESOURCE: kind(home, bench.machine)})


async def claimed_again(bench: Bench) -> tuple[Item, list[str]]:
    """An item whose first attempt runs on at its lost agent, and that another agent of this machine has claimed."""
    item = await left_running(bench, retries={"delay": 0})
    async with watching(bench) as watcher:
        await watcher.checks(seconds=105)
    await bench.server.propose(item.id, holder_called("other").claimed_state())
    return item, [token_of_claim(claim) for claim in claims_of(await bench.server.read_states(item.id))]


async def stop_older(bench: Bench, item: Item, attempt: int, claim: str) -> None:
    """Do what the agent of another home does before it makes an attempt under a claim."""
    home = bench.folder / "another-home"
    [run] = bench.machine.runs.values()
    plan = run.plan.model_copy(update={"attempt": attempt, "labels": {**run.plan.labels, Labels.CLAIM: claim}})
    agent = agent_of(bench, home, "other")
    async with bench.api.open() as session:
        await stop_previous_attempts(AgentContext(agent.config, session), OfOneHome(home, bench.machine), plan)


async def test_older_attempt_of_another_home_is_stopped_first_and_stays_there(bench: Bench) -> None:
    item = await left_running(bench, retries={"delay": 0})
    async with watching(bench) as watcher:
        await watcher.checks(seconds=105)
    at_start: list[list[str]] = []
    home = bench.folder / "another-home"

    class Seeing(OfOneHome):
        async def start(self, handle: str) -> None:
            at_start.append(self.machine.running)
            await super().start(handle)

    settings = {"name": "other", "queues": [QUEUE], "home": home, "poll_seconds": 0.05}
    agent = LaunchAgent(bench.api, settings, runners={RESOURCE: Seeing(home, bench.machine)})
    await asyncio.wait_for(agent.loop(until_empty=True), 60)

    found = await bench.read(item.id)
    assert (found.state_type, found.run_count, at_start) == (StateType.COMPLETED, 2, [[]])
    assert list(bench.machine.runs) == [f"launch-{item.id}-1"]  # Its agent has its log and its outputs.


async def test_older_attempt_is_stopped_where_the_next_goes_by_an_agent_whose_home_knows_nothing_of_it(
    bench: Bench,
) -> None:
    await left_running(bench, retries={"delay": 0})
    async with watching(bench) as watcher:
        await watcher.checks(seconds=105)
    at_start: list[list[str]] = []

    class Seeing(OfManyPlaces):
        async def start(self, handle: str) -> None:
            at_start.append(self.machine.running)
            await super().start(handle)

    home = bench.folder / "another-home"
    settings = {"name": "other", "queues": [QUEUE], "home": home, "poll_seconds": 0.05}
    agent = LaunchAgent(bench.api, settings, runners={RESOURCE: Seeing(home, bench.machine)})
    await asyncio.wait_for(agent.loop(until_empty=True), 60)
    assert at_start == [[]]


async def test_older_claim_of_the_same_attempt_is_stopped(bench: Bench) -> None:
    item, claims = await claimed_again(bench)
    await stop_older(bench, item, 1, claims[-1])
    assert bench.machine.running == []


async def test_newer_claims_run_is_never_stopped_by_an_agent_that_comes_late(bench: Bench) -> None:
    item, claims = await claimed_again(bench)
    name = f"launch-{item.id}-1"
    labels = bench.machine.runs[name].plan.labels
    assert labels[Labels.CLAIM] == claims[0]
    labels[Labels.CLAIM] = claims[-1]
    await stop_older(bench, item, 1, claims[0])
    assert bench.machine.running == [name]


async def test_run_under_a_claim_that_its_item_does_not_know_is_left_alone(bench: Bench) -> None:
    item, claims = await claimed_again(bench)
    [run] = bench.machine.runs.values()
    run.plan.labels[Labels.CLAIM] = "forged"
    await stop_older(bench, item, 2, claims[-1])
    assert bench.machine.running == [f"launch-{item.id}-1"]


@pytest.mark.parametrize("kind", [OfOneHome, OfACluster])
async def test_agent_whose_run_another_has_stopped_asks_whose_the_item_is_before_it_writes_its_end(
    bench: Bench, kind: type[OfOneHome]
) -> None:
    bench.plays(Script(seconds=60), Script(seconds=0.5))
    (item,) = await bench.add()
    async with bench.running(agent_of(bench, bench.folder / "box", "box", kind)):
        await bench.until(item, StateType.RUNNING)
        await bench.server.propose(item.id, State.of(ItemState.QUEUED, "Put back by hand."), force=True)
        async with bench.running(agent_of(bench, bench.folder / "other", "other")):
            await bench.until(item, *TERMINAL)
    found = await bench.read(item.id)
    assert (found.state_type, found.run_count) == (StateType.COMPLETED, 2)
    assert bench.machine.started == [f"launch-{item.id}-1", f"launch-{item.id}-2"]
    assert "AwaitingRetry" not in [state.name for state in await bench.server.read_states(item.id)]


async def test_agent_that_was_cut_off_while_it_prepared_makes_nothing_of_an_item_that_is_anothers_by_now(
    bench: Bench,
) -> None:
    (item,) = await bench.add()

    class CutOff(InMemoryRunner):
        async def missing(self, plan: RunPlan) -> ItemState:
            return ItemState.PULLING

        async def prepare(self, plan: RunPlan) -> None:
            agent.context.trusted_seconds = 0.0  # It was cut off for long.
            await bench.server.propose(item.id, State.of(ItemState.QUEUED, "Its agent is lost."), force=True)
            await bench.server.propose(item.id, holder_called("other").claimed_state())
            created.append(await InMemoryRunner(bench.folder, bench.machine).create(_of_another_claim(plan)))

    async def in_work() -> list[str]:
        return agent.thread_ids

    created: list[str] = []
    settings = {"name": "box", "queues": [QUEUE], "home": bench.folder, "poll_seconds": 0.05}
    agent = LaunchAgent(bench.api, settings, runners={RESOURCE: CutOff(bench.folder, bench.machine)})
    async with bench.running(agent):
        await eventually(in_work, lambda ids: bool(created) and not ids)
    assert (list(bench.machine.runs), bench.machine.removed) == (created, [])
    assert (await bench.read(item.id)).state_type is StateType.PENDING


@pytest.mark.parametrize("kind", [OfOneHome, OfManyPlaces])
async def test_item_that_was_being_stopped_by_a_lost_agent_is_stopped_by_one_that_reaches_it(
    bench: Bench, kind: type[InMemoryRunner]
) -> None:
    item = await left_running(bench)
    await bench.move(item, ItemState.CANCELLING)
    await look_as_other(bench, kind(bench.folder / "other", bench.machine))
    found = await bench.read(item.id)
    assert found.state_type is StateType.CANCELLED
    assert "is gone" in found.message
    assert bench.machine.running == []
    assert bench.machine.removed == []  # Its agent has its log and its outputs.


async def test_item_that_was_being_stopped_and_cannot_be_is_cancelled_and_told_to_be_left(bench: Bench) -> None:
    class Stuck(OfOneHome):
        async def stop(self, handle: str, grace_seconds: float) -> None:
            raise InfrastructureError("it hangs in the kernel")

    item = await left_running(bench)
    await bench.move(item, ItemState.CANCELLING)
    await look_as_other(bench, Stuck(bench.folder / "other", bench.machine))
    found = await bench.read(item.id)
    assert found.state_type is StateType.CANCELLED
    assert "When it comes back" in found.message


async def look_as_other(bench: Bench, runner: InMemoryRunner) -> None:
    """Look for lost agents, as the agent of another home does."""
    settings = {"name": "other", "queues": [QUEUE], "home": runner.home}
    agent = LaunchAgent(bench.api, settings, runners={RESOURCE: runner})
    clock = Clock()
    async with bench.api.open() as session:
        context = AgentContext(agent.config, session, runners={RESOURCE: runner})
        stop_here = partial(stop_all_attempts, context)
        watch = LostAgentDetector(session, holder_called("other"), [QUEUE], clock=clock, stop_here=stop_here)
        await Watcher(watch, clock).checks(seconds=105)


def _of_another_claim(plan: RunPlan) -> RunPlan:
    return plan.model_copy(update={"labels": {**plan.labels, Labels.CLAIM: "another"}})
