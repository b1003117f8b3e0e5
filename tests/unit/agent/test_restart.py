"""What an agent finds of its last life, whatever ended that one, and wherever."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.loop import Loop
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import InfrastructureError, ServerUnavailableError, UnreachableError
from prefect_launch.runners.base import Found
from prefect_launch.server.values import Item, State
from prefect_launch.testing import InMemoryRunner, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, holder_called

#: Calls that an agent makes beside its work on the item.
_BESIDE = ("beat_", "list_queues", "read_pool", "find_deployment", "watch_", "delete_worker", "count_")
#: Whether a call comes from the agent that is to die.
_in_this_life: ContextVar[bool] = ContextVar("in_this_life", default=False)


class _Life:
    """One life of an agent, which hangs for ever at its n-th call outside, as a killed one does."""

    def __init__(self, bench: Bench, dies_at: str | None) -> None:
        self._bench = bench
        self._dies_at = dies_at
        self._count: Counter[str] = Counter()
        self.calls: list[str] = []
        self.died = asyncio.Event()
        self._buried = asyncio.Event()
        bench.server.before_call = lambda method: self.step(f"before {method}")
        bench.server.after_call = lambda method: self.step(f"after {method}")

    async def live(self) -> None:
        """Run an agent until its queue is empty, or it dies."""
        _in_this_life.set(True)
        runner = _DyingRunner(self._bench.folder, self)
        settings = {"name": "box", "queues": [QUEUE], "home": self._bench.folder, "poll_seconds": 0.05}
        agent = LaunchAgent(self._bench.api, settings, runners={RESOURCE: runner})
        async with agent.connected():  # no lock: a process that dies lets go of it
            await Loop(agent, until_empty=True, max_runtime_seconds=None).run()

    async def step(self, where: str) -> None:
        """Make one call outside, or die at it."""
        if not _in_this_life.get():
            return
        self._count[where] += 1
        call = f"{where} {self._count[where]}"
        self.calls.append(call)
        if call == self._dies_at:
            self.died.set()
        if self.died.is_set():
            await self._buried.wait()
            raise ServerUnavailableError("it is dead")

    async def bury(self, task: asyncio.Task[None]) -> None:
        """Clear away a dead agent's tasks; none of its calls takes effect any more."""
        task.cancel()
        self._buried.set()
        await asyncio.wait({task})


class _DyingRunner(InMemoryRunner):
    def __init__(self, home: Path, life: _Life) -> None:
        super().__init__(home, life._bench.machine)
        self._life = life

    async def prepare(self, plan: Any) -> None:
        await self._life.step("before prepare")
        await super().prepare(plan)
        await self._life.step("after prepare")

    async def create(self, plan: Any) -> str:
        await self._life.step("before create")
        handle = await super().create(plan)
        await self._life.step("after create")
        return handle

    async def start(self, handle: str) -> None:
        await self._life.step("before start")
        await super().start(handle)
        await self._life.step("after start")

    async def stop(self, handle: str, grace_seconds: float) -> None:
        await self._life.step("before stop")
        await super().stop(handle, grace_seconds)

    async def remove(self, handle: str) -> None:
        await self._life.step("before remove")
        await super().remove(handle)
        await self._life.step("after remove")


async def test_agent_that_dies_at_any_call_runs_the_item_once_and_loses_no_line(tmp_path: Path) -> None:
    unharmed = await _live(Bench(tmp_path / "unharmed"), None)
    calls = [call for call in unharmed.calls if not call.split()[1].startswith(_BESIDE)]
    assert {"after propose 1", "before create 1", "after create 1", "before start 1", "after start 1"} <= set(calls)
    assert {"before write_logs 1", "after write_logs 1", "after create_artifact 1", "before remove 1"} <= set(calls)
    for number, call in enumerate(calls):
        await _live(Bench(tmp_path / str(number)), call)


async def _live(bench: Bench, dies_at: str | None) -> _Life:
    """Let an agent run an item, or die at one of its calls outside and the next one go on: the end is the same."""
    bench.plays(
        Script(
            seconds=0.02,
            log=(b"one\n",),
            late_log=(b"two\n",),
            outputs={"outputs.json": b'{"acc": 1}'},
            waits_for=ItemState.PULLING,
        )
    )
    (item,) = await bench.add()
    life = _Life(bench, dies_at)
    living, died = asyncio.create_task(life.live()), asyncio.create_task(life.died.wait())
    await asyncio.wait({living, died}, return_when=asyncio.FIRST_COMPLETED)
    died.cancel()
    if life.died.is_set():
        await life.bury(living)  # the kernel takes a dead process's locks from it
        await asyncio.sleep(0.04)  # what it had started ends without it
        await asyncio.wait_for(bench.agent().loop(until_empty=True), 60)
    else:
        await living

    found = await bench.read(item.id)
    assert (found.state_type, found.run_count) == (StateType.COMPLETED, 1), dies_at
    assert bench.machine.started == [f"launch-{item.id}-1"], dies_at
    assert found.infrastructure_pid == f"launch-{item.id}-1", dies_at
    assert await bench.log(item) == "one\ntwo", dies_at
    assert bench.machine.runs == {}, dies_at
    return life


@pytest.mark.parametrize("is_found_again", [False, True])
async def test_run_whose_item_was_claimed_by_another_agent_while_the_engine_was_away_is_not_started(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, is_found_again: bool
) -> None:
    monkeypatch.setattr("prefect_launch.agent.runner_health._PAUSE_SECONDS", 0.01)
    (item,) = await bench.add()
    if is_found_again:
        life = _Life(bench, "before start 1")
        living = asyncio.create_task(life.live())
        await life.died.wait()
        await life.bury(living)

    class Away(InMemoryRunner):
        async def start(self, handle: str) -> None:
            if (await bench.read(item.id)).message != "Claimed by agent other on here.":
                await bench.move(item, ItemState.QUEUED)
                await bench.server.propose(item.id, holder_called("other").claimed_state())
                raise UnreachableError("The engine is away.")
            await super().start(handle)

    runner = Away(bench.folder, bench.machine)
    agent = LaunchAgent(bench.api, {"name": "box", "queues": [QUEUE], "home": bench.folder}, runners={RESOURCE: runner})
    async with agent.connected():
        agent.context.trusted_seconds = 0.0
        await asyncio.wait_for(Loop(agent, until_empty=True, max_runtime_seconds=None).run(), 60)
    assert bench.machine.started == []
    assert (await bench.read(item.id)).message == "Claimed by agent other on here."


async def test_run_that_is_found_again_keeps_its_exit_code(bench: Bench) -> None:
    bench.plays(Script(seconds=0.3, exit_code=4))
    (item,) = await bench.add()
    await bench.leave_running(bench.agent(), item)
    await asyncio.sleep(0.4)  # it ends while no agent looks
    await bench.agent().loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_type is StateType.FAILED
    assert "exit code 4" in found.message


async def test_run_of_another_agent_is_left_alone(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    await bench.leave_running(bench.agent("other"), item)
    await bench.agent("box").loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.RUNNING
    assert len(bench.machine.running) == 1


async def test_run_whose_item_has_ended_is_stopped_and_removed(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    await bench.leave_running(bench.agent(), item)
    await bench.server.propose(item.id, State.of(ItemState.CRASHED), force=True)
    await bench.agent().loop(until_empty=True)
    assert bench.machine.runs == {}
    assert (await bench.read(item.id)).state_type is StateType.CRASHED


async def test_run_whose_item_was_deleted_is_stopped_and_removed(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    await bench.leave_running(bench.agent(), item)
    await bench.server.delete_item(item.id)
    await bench.agent().loop(until_empty=True)
    assert bench.machine.runs == {}


async def test_run_of_an_older_attempt_is_stopped_and_the_newer_one_runs(bench: Bench) -> None:
    bench.plays(Script(seconds=60), Script())
    (item,) = await bench.add()
    await bench.leave_running(bench.agent(), item)
    await bench.move(item, ItemState.CRASHED, ItemState.QUEUED)
    await bench.agent().loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert bench.machine.started == [f"launch-{item.id}-1", f"launch-{item.id}-2"]
    assert bench.machine.runs == {}


async def test_run_that_was_cancelled_while_no_agent_looked_is_stopped(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    await bench.leave_running(bench.agent(), item)
    await bench.move(item, ItemState.CANCELLING)
    await bench.agent().loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.CANCELLED
    assert bench.machine.runs == {}


async def test_run_with_labels_that_are_not_ours_is_ignored(bench: Bench) -> None:
    class Odd(InMemoryRunner):
        async def find(self, labels: Any) -> list[Found]:
            return [Found(handle="odd", state="running", labels={**labels, "prefect-launch.item": "x"})]

    agent = LaunchAgent(
        bench.api, {"queues": [QUEUE], "home": bench.folder}, runners={RESOURCE: Odd(bench.folder, bench.machine)}
    )
    await agent.loop(until_empty=True)


# --- what was claimed, and of which nothing exists ---


async def claimed_by(bench: Bench, agent: LaunchAgent, *further: ItemState, **spec: Any) -> Item:
    (item,) = await bench.add(**spec)
    await bench.server.propose(item.id, agent.holder.claimed_state())
    await bench.move(item, *further)
    return item


@pytest.mark.parametrize("on_the_way", [[], [ItemState.PULLING], [ItemState.BUILDING, ItemState.SUBMITTED]])
async def test_item_that_was_claimed_and_not_created_is_given_back_and_runs(
    bench: Bench, on_the_way: list[ItemState]
) -> None:
    agent = bench.agent()
    item = await claimed_by(bench, agent, *on_the_way)
    await agent.loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert bench.machine.started == [f"launch-{item.id}-1"]


async def test_item_that_another_agent_has_claimed_is_left_alone(bench: Bench) -> None:
    item = await claimed_by(bench, bench.agent("other"))
    await bench.agent("box").loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.PENDING


async def test_item_that_ran_and_of_which_nothing_is_left_has_crashed(bench: Bench) -> None:
    agent = bench.agent()
    item = await claimed_by(bench, agent, ItemState.RUNNING, retries=0)
    await agent.loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_type is StateType.CRASHED
    assert "is gone: somebody has removed it from its machine" in found.message


async def test_item_that_ran_and_of_which_nothing_is_left_comes_back(bench: Bench) -> None:
    agent = bench.agent()
    item = await claimed_by(bench, agent, ItemState.RUNNING, retries={"delay": 0})
    await agent.loop(until_empty=True)
    found = await bench.read(item.id)
    assert (found.state_type, found.run_count) == (StateType.COMPLETED, 2)
    assert bench.machine.started == [f"launch-{item.id}-2"]


async def test_item_that_was_asked_to_stop_and_of_which_nothing_is_left_is_cancelled(bench: Bench) -> None:
    agent = bench.agent()
    item = await claimed_by(bench, agent, ItemState.CANCELLING)
    await agent.loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.CANCELLED


async def test_items_are_left_alone_while_the_machine_cannot_be_looked_at(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    class Blind(InMemoryRunner):
        async def find(self, labels: Any) -> list[Found]:
            raise InfrastructureError("the engine is away: start it")

    agent = LaunchAgent(
        bench.api,
        {"name": "box", "queues": [QUEUE], "home": bench.folder},
        runners={RESOURCE: Blind(bench.folder, bench.machine)},
    )
    items = [await claimed_by(bench, agent), await claimed_by(bench, agent, ItemState.RUNNING)]
    await agent.loop(until_empty=True)
    assert [(await bench.read(item.id)).state_name for item in items] == ["Pending", "Running"]
    assert f"away {RESOURCE}: its items stay in the queue. the engine is away: start it" in caplog.text


async def test_claim_of_an_item_that_had_ended_is_undone(bench: Bench) -> None:
    agent = bench.agent()
    item = await claimed_by(bench, agent, ItemState.RUNNING, ItemState.FAILED)
    await bench.server.propose(item.id, agent.holder.claimed_state())
    await agent.loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.FAILED
    assert bench.machine.started == []
