"""Runs that a cluster accepts, queues and starts itself: what the agent shows, counts and finds again."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sized
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import pytest

from prefect_launch.agent import runner_health
from prefect_launch.client.launch_add import alaunch_add_many
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.core.units import parse_size
from prefect_launch.errors import InfrastructureError, LaunchError, NoRoomError, SpecError, UnsafeSpecError
from prefect_launch.queues.agent_status import queue_activity
from prefect_launch.queues.session import Session
from prefect_launch.queues.wait_reason import WaitCause, why_waiting
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.option_values import UNLIMITED, Quantity
from prefect_launch.runners.remote import base
from prefect_launch.runners.remote.jobs import RemoteJob
from prefect_launch.server.values import Item, State
from prefect_launch.testing import InMemoryRemoteRunner, Script
from prefect_launch.testing.remote_runner import InMemoryTellingRunner, InMemoryUnholdingRunner
from tests.support.bench import eventually
from tests.support.cluster_bench import QUEUE, RESOURCE, ClusterBench, Life, files_that_are_steps, registered_runner


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterBench]:
    with registered_runner(tmp_path, monkeypatch):
        yield ClusterBench(tmp_path / "home")


async def test_item_waits_in_the_cluster_with_its_reason_then_runs(bench: ClusterBench) -> None:
    bench.cluster.nodes, bench.cluster.reason = 0, "0/3 nodes are available: 3 Insufficient cpu."
    (item,) = await bench.add()
    async with bench.running():
        waits = await bench.until(item, "Submitted")
        assert waits.message == "Waits in in-memory-cluster: 0/3 nodes are available: 3 Insufficient cpu."
        assert (waits.state_type, waits.run_count) == (StateType.PENDING, 0)
        assert bench.cluster.started == []
        bench.cluster.resize(1)
        await bench.until(item, "Completed")
    assert await bench.states(item) == ["Queued", "Pending", "Submitted", "Running", "Completed"]
    assert bench.cluster.jobs == {}


class _Choosy(InMemoryRemoteRunner):
    """A runner on a cluster that takes no job with so much memory."""

    async def submit(self, plan: RunPlan) -> RemoteJob:
        raise SpecError("The most memory of a job is 50g.")


@pytest.mark.parametrize(
    ("kind", "state", "message"),
    [
        (InMemoryRemoteRunner, "Submitted", "Waits in in-memory-cluster: Insufficient cpu. ({note})"),
        (_Choosy, "Failed", "[run] The most memory of a job is 50g. Note: {note}."),
    ],
)
async def test_amount_that_a_queues_limit_gave_is_told_where_the_item_waits_or_is_refused(
    bench: ClusterBench,
    monkeypatch: pytest.MonkeyPatch,
    kind: type[InMemoryRemoteRunner],
    state: str,
    message: str,
) -> None:
    monkeypatch.setattr(InMemoryRemoteRunner, "options", InMemoryRemoteRunner.options | {"memory"})
    monkeypatch.setattr(InMemoryRemoteRunner, "quantities", {"memory": Quantity(parse_size, unset=UNLIMITED)})
    bench.api.create_run_queue("limited", RESOURCE, config={"limits": {"memory": "100g"}})
    bench.cluster.nodes, bench.cluster.reason = 0, "Insufficient cpu."
    (run,) = await alaunch_add_many([{"docker": {"docker_image": "busybox:1"}}], "limited", api=bench.api)
    async with bench.running(kind=kind, queues=["limited"]):
        item = await bench.until(await bench.read(UUID(run.id)), state)
    note = "from the queue's limits, not the item: memory 100g"
    assert (item.message or "").startswith(message.format(note=note))


class _Refusing(InMemoryUnholdingRunner):
    """A runner on a cluster whose quota is used up until it has room."""

    lag_seconds: ClassVar[float] = 0.05
    has_room: ClassVar[bool] = False

    async def submit(self, plan: RunPlan) -> RemoteJob:
        if not self.has_room:
            raise NoRoomError("The account's quota is used up.")
        return await super().submit(plan)


async def test_item_without_room_goes_back_to_its_queue_where_to_submit_is_to_start(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_health, "_PAUSE_SECONDS", 0.2)
    items = await bench.add(3)
    async with bench.running(kind=_Refusing, max_jobs=2) as agent:
        await eventually(lambda: bench.states(items[0]), lambda states: states[:3] == ["Queued", "Pending", "Queued"])
        health = agent.context.runner_health
        await eventually(lambda: asyncio.sleep(0, health.describe()), lambda said: "account's quota is used up" in said)
        monkeypatch.setattr(_Refusing, "has_room", True)
        for item in items:
            await bench.until(item, "Completed")
    assert len(bench.cluster.started) == len(set(bench.cluster.started)) == len(items)


async def test_item_that_the_cluster_starts_at_once_is_never_shown_as_waiting(bench: ClusterBench) -> None:
    (item,) = await bench.add()
    async with bench.running():
        await bench.until(item, "Completed")
    assert await bench.states(item) == ["Queued", "Pending", "Running", "Completed"]


async def test_later_reason_is_reported_in_the_log_of_the_item(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_NEXT_REASON_SECONDS", 0.05)
    bench.cluster.nodes = 0
    (item,) = await bench.add()
    async with bench.running():
        await bench.until(item, "Submitted")
        bench.cluster.reason = "the image cannot be pulled"
        wanted = "Waits in in-memory-cluster: the image cannot be pulled"
        await eventually(lambda: bench.log(item), lambda lines: wanted in lines)
        # The newest is what its page and `item show` say, and one that no longer holds is not said.
        async with bench.api.open() as session:
            await eventually(lambda: _why(session, item), lambda why: why == (WaitCause.ELSEWHERE, wanted, "", wanted))
        bench.cluster.resize(1)
        await bench.until(item, "Completed")
    [shown] = [one for one in await bench.api.server.list_artifacts(item.id) if one["key"] == "waits-1"]
    assert shown["data"] == f"It waits no longer. The last reason: {wanted}"
    assert (await bench.states(item)).count("Submitted") == 1


async def test_run_whose_later_reason_the_server_does_not_take_runs_all_the_same(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_NEXT_REASON_SECONDS", 0.05)
    bench.cluster.nodes = 0
    (item,) = await bench.add()
    refused: list[str] = []

    async def refuse(method: str) -> None:
        if method == "write_logs":
            refused.append(method)
            raise LaunchError("422 to POST")

    async with bench.running():
        await bench.until(item, "Submitted")
        bench.api.server.before_call = refuse
        bench.cluster.reason = "the image cannot be pulled"
        await eventually(lambda: asyncio.sleep(0), lambda _: bool(refused))
        bench.api.server.before_call = None
        bench.cluster.resize(1)
        await bench.until(item, "Completed")


async def test_part_that_waits_while_others_run_is_told_in_the_log_of_the_item(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InMemoryRemoteRunner, "part_seconds", 0.05)
    bench.cluster.part_reason = "1 of 2 pods waits: Unschedulable"
    bench.cluster.script = lambda plan: Script(seconds=600)
    (item,) = await bench.add()
    async with bench.running():
        wanted = "A part of it waits in in-memory-cluster: 1 of 2 pods waits: Unschedulable"
        await eventually(lambda: bench.log(item), lambda lines: wanted in lines)
        assert (await bench.read(item.id)).state_name == "Running"
        assert (await bench.api.server.propose(item.id, State.of(ItemState.CANCELLING))).accepted
        await bench.until(item, "Cancelled")


async def _why(session: Session, item: Item) -> tuple[object, ...]:
    found = await session.server.read_item(item.id)
    assert found is not None
    why = await why_waiting(session, found)
    assert why is not None
    return (why.cause, why.reason, why.position, str(why))


async def test_items_that_wait_in_the_cluster_take_no_slot_up_to_the_runners_maximum(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InMemoryRemoteRunner, "max_submitted", 3)
    bench.cluster.nodes = 0
    items = await bench.add(6)

    async def names() -> Counter[str]:
        return Counter([(await bench.read(item.id)).state_name or "" for item in items])

    async with bench.running(max_jobs=1) as agent:
        await eventually(names, lambda found: found["Submitted"] == 4)
        await asyncio.sleep(0.3)
        assert await names() == {"Submitted": 4, "Queued": 2}  # Three that take no slot, and one that takes the slot.
        assert agent.num_running_jobs == 1
        bench.cluster.resize(6)
        await eventually(names, lambda found: found["Completed"] == 6)
    assert sorted(bench.cluster.started) == sorted(f"launch-{item.id}-1" for item in items)


async def test_queue_says_how_many_of_its_items_wait_in_the_cluster(bench: ClusterBench) -> None:
    bench.cluster.nodes = 1
    bench.cluster.script = lambda plan: Script(seconds=600)
    items = await bench.add(3)
    async with bench.running(max_jobs=3) as agent:
        await eventually(
            lambda: queue_activity(bench.api.server, [QUEUE]),
            lambda found: (found[0].active, found[0].submitted) == (3, 2),
        )
        for item in items:
            assert (await bench.api.server.propose(item.id, State.of(ItemState.CANCELLING))).accepted
        for item in items:
            await bench.until(item, "Cancelled")
        assert agent.num_running_jobs == 0


async def test_item_that_is_cancelled_while_it_waits_in_the_cluster_never_runs(bench: ClusterBench) -> None:
    bench.cluster.nodes = 0
    (item,) = await bench.add()
    async with bench.running():
        await bench.until(item, "Submitted")
        assert (await bench.api.server.propose(item.id, State.of(ItemState.CANCELLING))).accepted
        ended = await bench.until(item, "Cancelled")
    assert ended.message == "Stopped before it was started: job gone from the cluster."
    assert (bench.cluster.jobs, bench.cluster.started) == ({}, [])


async def test_item_that_the_cluster_does_not_start_in_the_agents_time_crashes_and_its_job_is_removed(
    bench: ClusterBench,
) -> None:
    bench.cluster.nodes, bench.cluster.reason = 0, "Insufficient cpu."
    (item,) = await bench.add()
    async with bench.running(start_timeout="0.3s"):
        ended = await bench.until(item, "Crashed")
    assert ended.message == (
        "[run] The run did not start within 0.3 s, the agent's start_timeout. Waits in in-memory-cluster: Insufficient"
        " cpu. Ask for less or for another place, or have the agent's operator raise start_timeout."
    )
    assert (bench.cluster.jobs, bench.cluster.started) == ({}, [])


async def test_limit_of_the_start_is_none_of_the_run(bench: ClusterBench) -> None:
    bench.cluster.script = lambda plan: Script(seconds=0.6)
    (item,) = await bench.add()
    async with bench.running(start_timeout=0.5):
        await bench.until(item, "Completed")


async def test_agent_that_stops_its_jobs_takes_back_what_waits_in_the_cluster(bench: ClusterBench) -> None:
    bench.cluster.nodes = 0
    (item,) = await bench.add()
    async with bench.running() as agent:
        await bench.until(item, "Submitted")
        agent.shutdown.leave(stop_jobs=True)
        await bench.until(item, "Queued")
    assert bench.cluster.jobs == {}


async def test_preempted_job_is_told_from_one_that_failed(bench: ClusterBench) -> None:
    bench.cluster.script = lambda plan: Script(seconds=60)
    (item,) = await bench.add(retries={"max": 0})
    async with bench.running():
        await bench.until(item, "Running")
        bench.cluster.preempt(f"launch-{item.id}-1")
        ended = await bench.until(item, "Crashed")
    assert ended.state is not None
    assert (ended.state.data or {})["exit_code"] == 137


async def test_status_of_all_jobs_is_asked_for_in_one_call(bench: ClusterBench) -> None:
    bench.cluster.script = lambda plan: Script(seconds=600)
    items = await bench.add(20)
    async with bench.running(max_jobs=20):
        for item in items:
            await bench.until(item, "Running")
        before, began = bench.cluster.calls["poll"], time.monotonic()
        await asyncio.sleep(0.5)
        polls, seconds = bench.cluster.calls["poll"] - before, time.monotonic() - began
        assert polls <= seconds / 0.05 + 1  # Every 0.05 s at most, however many run.
        for item in items:
            assert (await bench.api.server.propose(item.id, State.of(ItemState.CANCELLING))).accepted
        for item in items:
            await bench.until(item, "Cancelled")


async def test_cluster_that_is_away_for_a_while_ends_no_run(bench: ClusterBench) -> None:
    bench.cluster.script = lambda plan: Script(seconds=0.4, log=(b"one\n",), late_log=(b"two\n",))
    (item,) = await bench.add()
    async with bench.running():
        await bench.until(item, "Running")
        bench.cluster.reachable = False
        await asyncio.sleep(0.8)
        bench.cluster.reachable = True
        await bench.until(item, "Completed")
    assert await bench.log(item) == ["one", "two"]


@pytest.mark.parametrize(("pod", "is_refused"), [({"privileged": True}, True), ({"labels": {"team": "a"}}, False)])
async def test_options_of_the_submitter_are_checked_apart_from_those_of_the_owner(
    bench: ClusterBench, pod: dict[str, Any], is_refused: bool
) -> None:
    # What the owner sets is never held against the submitter.
    bench.api.create_run_queue("free", RESOURCE, config={"pod": {"privileged": True}, "node": "big"})
    spec = {"docker": {"docker_image": "busybox:1"}}
    await alaunch_add_many([spec], "free", api=bench.api)
    asked = {**spec, "resource_args": {RESOURCE: {"pod": pod}}}
    if is_refused:
        with pytest.raises(UnsafeSpecError, match=r"pod\.privileged may be set by the queue's owner only"):
            await alaunch_add_many([asked], QUEUE, api=bench.api)
    else:
        await alaunch_add_many([asked], QUEUE, api=bench.api)


# --- an agent that is killed ---


KINDS = [InMemoryRemoteRunner, InMemoryUnholdingRunner, InMemoryTellingRunner]


async def _live(bench: ClusterBench, dies_at: int | None, kind: type[InMemoryRemoteRunner]) -> list[str]:
    """Let an agent die at a step, and the next one finish; return the steps that the first one made."""
    bench.cluster.script = lambda plan: Script(seconds=0.05, log=(b"one\n",), late_log=(b"two\n",))
    bench.cluster.nodes = 0
    (item,) = await bench.add()
    life = Life(bench, dies_at, kind=kind)
    first = asyncio.create_task(life.live())
    dying = asyncio.create_task(life.died.wait())
    seen = asyncio.create_task(bench.until(item, "Submitted"))
    await asyncio.wait({first, dying, seen}, return_when=asyncio.FIRST_COMPLETED)
    bench.cluster.resize(1)
    await asyncio.wait({first, dying}, return_when=asyncio.FIRST_COMPLETED)
    await life.bury(first)
    for task in (dying, seen):
        task.cancel()
    told = f"it died at the last of {life.calls}"
    async with bench.running(kind=kind):
        ended = await bench.until(item, "Completed")
    assert (bench.cluster.started, ended.run_count) == ([f"launch-{item.id}-1"], 1), told
    assert await bench.log(item) == ["one", "two"], told
    assert bench.cluster.jobs == {}, told
    return life.calls


async def _stop(bench: ClusterBench, dies_at: int | None, kind: type[InMemoryRemoteRunner]) -> list[str]:
    """Let an agent die at a step of a run that is cancelled, and the next one finish; return the first one's steps."""
    bench.cluster.script = lambda plan: Script(seconds=600)
    (item,) = await bench.add()
    life = Life(bench, dies_at, kind=kind)
    first = asyncio.create_task(life.live())
    dying = asyncio.create_task(life.died.wait())
    seen = asyncio.create_task(bench.until(item, "Running"))
    await asyncio.wait({first, dying, seen}, return_when=asyncio.FIRST_COMPLETED)
    await bench.api.server.propose(item.id, State.of(ItemState.CANCELLING), force=True)
    await asyncio.wait({first, dying}, return_when=asyncio.FIRST_COMPLETED)
    await life.bury(first)
    for task in (dying, seen):
        task.cancel()
    told = f"it died at the last of {life.calls}"
    async with bench.running(kind=kind):
        await bench.until(item, "Cancelled")
        await eventually(lambda: _jobs(bench), lambda jobs: jobs == 0)
    assert bench.cluster.started in ([], [f"launch-{item.id}-1"]), told
    return life.calls


async def _jobs(bench: ClusterBench) -> int:
    return len(bench.cluster.jobs)


async def _count(found: Sized) -> int:
    return len(found)


async def test_agent_that_is_killed_while_the_item_waits_finds_it_again(bench: ClusterBench) -> None:
    bench.cluster.nodes = 0
    bench.cluster.script = lambda plan: Script(seconds=0.3, log=(b"one\n",), late_log=(b"two\n",))
    (item,) = await bench.add()
    life = Life(bench, None)
    first = asyncio.create_task(life.live())
    await bench.until(item, "Submitted")
    life.died.set()
    await life.bury(first)
    async with bench.running():
        await asyncio.sleep(0.3)
        found = await bench.read(item.id)
        assert (found.state_name, found.state and found.state.data) == ("Submitted", {"wait_reason": "no node is free"})
        bench.cluster.resize(1)
        ended = await bench.until(item, "Completed")
    assert await bench.states(item) == ["Queued", "Pending", "Submitted", "Running", "Completed"]
    assert (bench.cluster.started, ended.run_count) == ([f"launch-{item.id}-1"], 1)
    assert await bench.log(item) == ["one", "two"]


async def test_submission_that_takes_effect_after_its_agent_was_killed_leaves_nothing_that_runs(
    bench: ClusterBench,
) -> None:
    submissions = list[RunPlan]()

    class Slow(InMemoryUnholdingRunner):
        async def submit(self, plan: RunPlan) -> RemoteJob:
            submissions.append(plan)
            return await asyncio.Event().wait()  # type: ignore[return-value]

    bench.cluster.script = lambda plan: Script(seconds=600)
    (item,) = await bench.add()
    life = Life(bench, None, kind=Slow)
    first = asyncio.create_task(life.live())
    await eventually(lambda: _count(submissions), bool)
    life.died.set()
    await life.bury(first)
    await bench.api.server.propose(item.id, State.of(ItemState.CANCELLING), force=True)
    listed = bench.cluster.calls["list"]
    async with bench.running(kind=InMemoryUnholdingRunner):
        await eventually(lambda: _count(range(listed, bench.cluster.calls["list"])), bool)
        await InMemoryUnholdingRunner(bench.folder, bench.cluster).submit(submissions[0])
        await bench.until(item, "Cancelled")
    assert bench.cluster.started == [f"launch-{item.id}-1"]
    assert bench.cluster.jobs == {}


async def test_run_that_is_lost_in_the_cluster_while_its_agent_is_away_says_so(bench: ClusterBench) -> None:
    bench.cluster.script = lambda plan: Script(seconds=600)
    (item,) = await bench.add(retries=0)
    life = Life(bench, None)
    first = asyncio.create_task(life.live())
    await bench.until(item, "Running")
    life.died.set()
    await life.bury(first)
    bench.cluster.lose(f"launch-{item.id}-1")
    async with bench.running():
        ended = await bench.until(item, "Crashed")
    assert "is gone: somebody else removed it from in-memory-cluster" in ended.message


async def test_run_that_ends_by_itself_though_an_agent_that_died_was_about_to_stop_it_is_completed(
    bench: ClusterBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InMemoryRemoteRunner, "stop_margin_seconds", 0.0)
    bench.cluster.script = lambda plan: Script(seconds=600)
    (item,) = await bench.add()
    life = Life(bench, None)
    first = asyncio.create_task(life.live())
    await bench.until(item, "Running")
    life.died.set()
    await life.bury(first)
    bench.cluster.is_deaf = True
    runner = InMemoryRemoteRunner(bench.folder, bench.cluster)
    [found] = await runner.find({Labels.ITEM: str(item.id)})
    with pytest.raises(InfrastructureError, match="is not known to have stopped"):
        await runner.stop(found.handle, 0.0)
    await runner.aclose()
    for job in bench.cluster.jobs.values():
        job.finish()
    async with bench.running():
        await bench.until(item, "Completed")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lives", [_live, _stop])
async def test_agent_that_is_killed_at_any_step_between_claim_and_end_loses_and_doubles_nothing(
    tmp_path: Path,
    bench: ClusterBench,
    monkeypatch: pytest.MonkeyPatch,
    lives: Callable[[ClusterBench, int | None, type[InMemoryRemoteRunner]], Awaitable[list[str]]],
    kind: type[InMemoryRemoteRunner],
) -> None:
    with files_that_are_steps(monkeypatch):
        steps = await lives(bench, None, kind)
        numbers = iter(range(steps.index("propose") + 1, len(steps) + 1))

        async def some() -> None:
            for number in numbers:
                await lives(ClusterBench(tmp_path / str(number)), number, kind)

        await asyncio.gather(*(some() for _ in range(8)))  # Most of each life is waiting.
