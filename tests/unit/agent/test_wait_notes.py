"""The line on a waiting item's page: who writes it, when, and that it is no stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta, timezone
from uuid import UUID

import pytest

from prefect_launch.agent.polling.share import Fleet
from prefect_launch.agent.reporting.wait_notes import WaitReasonLogger
from prefect_launch.core.states import ItemState
from prefect_launch.queues.agent_status import AgentStatus, post_status
from prefect_launch.queues.presence import Presence
from prefect_launch.queues.wait_reason import WaitCause, WaitReason, why_waiting
from prefect_launch.server.values import Item, LogRecord, State
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, Bench, eventually, holder_called
from tests.support.devices import agent_of, running, wants


@pytest.fixture(autouse=True)
def _told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefect_launch.agent.reporting.wait_notes.WAITED_SECONDS", 0.0)


@asynccontextmanager
async def wait_notes(bench: Bench, *, fleet: Fleet | None = None) -> AsyncIterator[WaitReasonLogger]:
    """The logger of an agent that is online with one slot, which is busy."""
    await is_online(bench, "box")
    async with bench.api.open() as session:
        yield WaitReasonLogger(session, [QUEUE], (fleet or Fleet()).is_first)


async def is_online(bench: Bench, name: str, *, in_work: int = 1) -> None:
    await bench.server.beat_worker(QUEUE, name, 15)
    status = AgentStatus(name=name, host="h", queues=(QUEUE,), slots=1, state="running", in_work=in_work)
    await post_status(bench.server, status)


async def lines(bench: Bench, item: Item) -> list[str]:
    return [line for line in (await bench.log(item)).splitlines() if line.startswith("Waits")]


async def test_items_are_told_once_why_they_wait_and_at_which_place(bench: Bench) -> None:
    first, second = await bench.add(2)
    async with wait_notes(bench) as logger:
        for _ in range(3):
            await logger.check(QUEUE)
    busy = "Waits (its turn): The one slot of the queue's agent is busy (box 1 of 1)."
    assert await lines(bench, first) == [f"{busy} It is the 1st of 2 in the queue."]
    assert await lines(bench, second) == [f"{busy} It is behind 1 earlier one. It is the 2nd of 2 in the queue."]
    (record,) = await bench.server.read_logs(first.id)
    assert (record.name, record.level) == ("prefect_launch.agent.waits.turn", 20)


async def test_line_is_written_again_when_what_keeps_it_waiting_has_changed_and_stays_so(bench: Bench) -> None:
    (item,) = await bench.add()
    async with wait_notes(bench) as logger:
        await logger.check(QUEUE)
        await bench.server.update_pool(QUEUE, is_paused=True)
        await logger.check(QUEUE)
        assert len(await lines(bench, item)) == 1
        await logger.check(QUEUE)
        await logger.check(QUEUE)
    assert [line.partition(":")[0] for line in await lines(bench, item)] == ["Waits (its turn)", "Waits (paused)"]


async def test_reason_that_comes_and_goes_is_not_told_again(bench: Bench) -> None:
    (item,) = await bench.add()
    async with wait_notes(bench) as logger:
        for number in range(6):
            await bench.server.update_pool(QUEUE, is_paused=bool(number % 2))
            await logger.check(QUEUE)
    assert len(await lines(bench, item)) == 1


async def test_all_lines_of_a_look_are_one_request_and_only_the_front_of_the_line_is_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bench.add(25)
    (urgent,) = await bench.add(priority="critical")
    sent: list[int] = []
    async with wait_notes(bench) as logger:
        write = bench.server.write_lines

        async def counted(told: Sequence[tuple[UUID, LogRecord]]) -> None:
            sent.append(len(told))
            await write(told)

        monkeypatch.setattr(bench.server, "write_lines", counted)
        await logger.check(QUEUE)
        await logger.check(QUEUE)
    assert sent == [20]
    assert (await lines(bench, urgent))[0].endswith("It is the 1st of 26 in the queue.")


async def test_one_agent_of_several_tells_and_the_others_ask_for_nothing(bench: Bench) -> None:
    (item,) = await bench.add()
    lives = [Presence.of(holder_called(name), (QUEUE,)) for name in ("box-1", "box-2", "box-3")]
    told = []
    for life in lives:
        fleet = Fleet(life.holder.instance)
        fleet.note(lives)
        async with wait_notes(bench, fleet=fleet) as logger:
            before = bench.server.calls.total()
            await logger.check(QUEUE)
            told.append(bench.server.calls.total() > before)
    assert sorted(told) == [False, False, True]
    assert len(await lines(bench, item)) == 1


async def test_next_life_of_an_agent_does_not_repeat_the_line(bench: Bench) -> None:
    (item,) = await bench.add()
    for _ in range(2):
        async with wait_notes(bench) as logger:
            await logger.check(QUEUE)
    assert len(await lines(bench, item)) == 1


async def test_item_that_came_just_now_or_is_due_later_is_not_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.reporting.wait_notes.WAITED_SECONDS", 60.0)
    (item,) = await bench.add()
    async with wait_notes(bench) as logger:
        await logger.check(QUEUE)
    assert await lines(bench, item) == []


async def test_queue_in_which_nothing_waits_costs_one_read(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED)

    async def never(*_: object) -> None:
        raise AssertionError("it is not asked")

    monkeypatch.setattr("prefect_launch.agent.reporting.wait_notes.read_queue_facts", never)
    async with wait_notes(bench) as logger:
        await logger.check(QUEUE)


async def test_line_has_the_expected_start_from_past_runs(bench: Bench) -> None:
    done, waits = await bench.add(2)
    await bench.move(done, ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED)
    async with wait_notes(bench) as logger:
        await logger.check(QUEUE)
    (line,) = await lines(bench, waits)
    assert "Expected to start at about" in line
    assert line.endswith("from 1 past run of the queue.")


async def test_item_that_waits_for_gpus_says_what_the_agent_has_and_who_holds_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.reporting.status.WRITE_SECONDS", 0.0)
    monkeypatch.setattr("prefect_launch.agent.reporting.status._CHECK_SECONDS", 0.01)
    bench.plays(Script(seconds=60))
    (holder,) = await bench.add(**wants(2))
    async with bench.running(agent_of(bench, 2)), bench.api.open() as session:
        await running(bench, holder)
        (waits,) = await bench.add(**wants(1))

        async def told() -> WaitReason | None:
            return await why_waiting(session, await bench.read(waits.id))

        seen = await eventually(told, lambda found: found is not None and found.cause is WaitCause.DEVICES)
        assert "box: 0 of 2 GPUs are free (GPUs 0,1 in use by other items); it asks for 1 GPU." in seen.reason
        assert f"GPU 0 of {str(holder.id)[-8:]}; GPU 1 of {str(holder.id)[-8:]}" in seen.reason
        await WaitReasonLogger(session, [QUEUE]).check(QUEUE)
    (line,) = await lines(bench, waits)
    assert line.startswith("Waits (devices): No agent has the devices free that it asks for.")


async def test_items_that_are_due_later_cost_no_look_at_their_logs(bench: Bench) -> None:
    later = await bench.add(2)
    due = datetime.now(timezone.utc) + timedelta(hours=1)
    for item in later:
        await bench.move(item, ItemState.CLAIMED)
        planned = State.of(ItemState.QUEUED).model_copy(update={"state_details": {"scheduled_time": due.isoformat()}})
        await bench.server.propose(item.id, planned)
    calls: list[str] = []

    async def count(method: str) -> None:
        calls.append(method)

    async with wait_notes(bench) as logger:
        bench.server.before_call = count
        for _ in range(3):
            await logger.check(QUEUE)
    assert "list_waiting" in calls
    assert "read_logs" not in calls
