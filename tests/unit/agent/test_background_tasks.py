"""Each of an agent's background tasks: a failure that nobody foresaw is told, and the task goes on."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.entry.serve import Stop, until_stopped
from prefect_launch.agent.entry.start import Signals
from prefect_launch.agent.item.running_items import RunningItem, RunningItems
from prefect_launch.core import supervision
from prefect_launch.core.states import StateType
from prefect_launch.core.supervision import BackgroundTaskError
from prefect_launch.errors import InfrastructureError
from prefect_launch.queues.agent_status import agents
from prefect_launch.runners.base import Found
from prefect_launch.server.values import Item
from prefect_launch.testing import InMemoryRunner, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually

#: Those that call the server, which is where they are made to fail.
TASKS = (
    *("heartbeat", "cancellations", "ownership check", "drain request", "events", "setting events", "limits", "status"),
    *("lost agents", "wait reasons", "orphaned cancellations", "abandoned changes", "unlistable items"),
    "preemption",
)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_SECONDS", 0.01)
    places = {
        "item.ownership": ("CHECK_SECONDS",),
        "polling.queue_poller": ("LIMITS_SECONDS",),
        "housekeeping.housekeeper": ("CHECK_SECONDS",),
        "reporting.wait_notes": ("CHECK_SECONDS",),
        "recovery.abandoned_changes": ("CHECK_SECONDS",),
        "recovery.cancellations": ("CHECK_SECONDS",),
        "recovery.unlistable": ("CHECK_SECONDS",),
        "reporting.status": ("WRITE_SECONDS",),
    }
    for module, names in places.items():
        for name in names:
            monkeypatch.setattr(f"prefect_launch.agent.{module}.{name}", 0.05)
    monkeypatch.setattr("prefect_launch.server.event_stream._RECONNECT_FIRST_SECONDS", 0.05)
    monkeypatch.setattr("prefect_launch.agent.reporting.status.WORKER_SECONDS", 1)


class Faults:
    """Lets the server fail, in a way that nobody foresaw, in the calls of one task."""

    def __init__(self, bench: Bench, task: str, times: int) -> None:
        self.calls: Counter[str] = Counter()
        self._task = task
        self._times = times
        bench.server.before_call = self

    async def __call__(self, method: str) -> None:
        task = asyncio.current_task()
        if task is None or task.get_name() != self._task:
            return
        self.calls[method] += 1
        if self.calls.total() <= self._times:
            raise ValueError("a fault in the program")

    async def total(self) -> int:
        """Count the calls of the task."""
        return self.calls.total()


async def test_each_background_task_of_an_agent_is_made_to_fail_by_a_test_of_this_file(bench: Bench) -> None:
    def names() -> set[str]:
        return {task.get_name() for task in asyncio.all_tasks() if not task.get_name().startswith("Task-")}

    before = names()
    async with bench.running(bench.agent()):
        await eventually(_value(names), lambda found: "housekeeping" in found)
        assert names() - before == {*TASKS, "status line", "runner health", "housekeeping"}


@pytest.mark.parametrize("name", TASKS)
async def test_background_task_that_fails_once_is_logged_and_goes_on(
    bench: Bench, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.plays(Script(seconds=60))
    await asyncio.to_thread(lambda: bench.api.upsert_run_queue(QUEUE, RESOURCE, preempt=True))
    (item, _) = await bench.add(2)
    faults = Faults(bench, name, 1)
    agent = bench.agent()
    agent_loop = asyncio.create_task(agent.loop())
    try:
        await bench.until(item, StateType.RUNNING)
        if name in ("events", "setting events"):  # A stream that breaks is foreseen; it is opened again.
            await eventually(faults.total, lambda count: count > 1)
            return
        await eventually(faults.total, lambda count: count > 1)
    finally:
        agent.stop()
        await asyncio.wait_for(agent_loop, 60)
    (told,) = [record for record in caplog.records if record.getMessage().startswith("task-failed")]
    assert told.getMessage() == f"task-failed {name} (1 within 300 s): ValueError('a fault in the program')"
    assert (told.levelno, told.exc_info is not None) == (logging.ERROR, True)


async def test_status_line_that_fails_once_is_logged_and_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("prefect_launch.agent.loop._STATUS_SECONDS", 0.01)
    lines: list[str] = []

    async def count() -> int:
        return len(lines)

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "polling on queues" in record.getMessage():
                lines.append(record.getMessage())
                if len(lines) == 1:
                    raise ValueError("a fault in the program")

    logger, handler = logging.getLogger("prefect_launch.agent"), Handler()
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.INFO, logger=logger.name):
            async with bench.running(bench.agent()):
                await eventually(count, lambda told: told > 2)
    finally:
        logger.removeHandler(handler)
    assert "task-failed status line (1 within 300 s)" in caplog.text


async def test_check_of_an_engine_that_was_away_fails_once_is_logged_and_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.machine.reachable = False
    (item,) = await bench.add()
    faults = Faults(bench, "runner health", 1)
    async with bench.running(bench.agent()):
        await eventually(_text(caplog), lambda told: "away local-container" in told)
        bench.machine.reachable = True
        await bench.until(item, StateType.COMPLETED)
    assert faults.calls.total() > 1
    assert "task-failed runner health (1 within 300 s): ValueError" in caplog.text


async def test_housekeeping_that_fails_once_is_logged_and_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    looks: list[str] = []

    class Fails(InMemoryRunner):
        async def find(self, labels: Mapping[str, str]) -> list[Found]:
            task = asyncio.current_task()
            if task is not None and task.get_name() == "housekeeping":
                looks.append("look")
                if len(looks) == 1:
                    raise ValueError("a fault in the program")
            return await super().find(labels)

    async def count() -> int:
        return len(looks)

    settings = {"queues": [QUEUE], "home": bench.folder, "name": "box"}
    async with bench.running(LaunchAgent(bench.api, settings, runners={RESOURCE: Fails(bench.folder, bench.machine)})):
        await eventually(count, lambda seen: seen > 1)
    assert "task-failed housekeeping (1 within 300 s): ValueError" in caplog.text


@pytest.mark.parametrize("name", ["heartbeat", "cancellations", "ownership check", "drain request"])
async def test_agent_whose_vital_task_fails_for_good_leaves_loudly_and_its_runs_go_on(
    bench: Bench, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    signals = Signals(bench.agent(), stop_jobs=False, notify=print)
    loop = asyncio.create_task(signals.run())
    await bench.until(item, StateType.RUNNING)
    Faults(bench, name, 1_000)
    with pytest.raises(BackgroundTaskError, match=f"'{name}' failed 5 times within 300 s"):
        await asyncio.wait_for(loop, 60)
    assert f"leaving: The background task '{name}' failed 5 times" in caplog.text
    assert (await bench.read(item.id)).state_type is StateType.RUNNING
    (left,) = await bench.api.acall(lambda session: agents(session.server))
    assert (left.state, [one.id for one in left.running]) == ("offline", [str(item.id)])
    bench.server.before_call = None
    await bench.finish_under(bench.agent())
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert len(bench.machine.started) == 1


# --- the poll, which is the agent's own work ---


class Nonsense:
    """Lets the server answer nonsense to one call of the task `loop`, some times, and well then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bench: Bench, method: str, *, times: int) -> None:
        self.left = times
        answer = getattr(bench.server, method)

        async def answers(*args: Any, **kwargs: Any) -> Any:
            found = await answer(*args, **kwargs)
            task = asyncio.current_task()
            if self.left > 0 and task is not None and task.get_name() == "loop":
                self.left -= 1
                return "what?"
            return found

        monkeypatch.setattr(bench.server, method, answers)


@pytest.mark.parametrize("method", ["poll", "propose", "count_items"])
async def test_nonsense_answer_to_the_poll_is_logged_and_its_items_are_run(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    bench.api.call(lambda session: session.server.update_pool(QUEUE, concurrency_limit=5))
    agent = bench.agent()
    agent_loop = asyncio.create_task(agent.loop(), name="loop")
    await eventually(_value(lambda: {agent.shutdown.at_work}), lambda found: found == {True})
    Nonsense(monkeypatch, bench, method, times=1)
    items: list[Item] = []
    # A poll under way may take an item whose count came before the nonsense; then the next item's poll gets it.
    while len(items) < 2 and not any("task-failed" in record.msg for record in caplog.records):
        items += await bench.add()
        await bench.until(items[-1], StateType.COMPLETED)
    agent.stop()
    await asyncio.wait_for(agent_loop, 60)
    assert len(bench.machine.started) == len(items)
    (told,) = [record for record in caplog.records if record.getMessage().startswith("task-failed")]
    assert told.getMessage().startswith("task-failed poll (1 within 300 s): ")
    assert told.exc_info is not None


@pytest.mark.parametrize("name", ["recovery", "poll"])
async def test_agent_whose_polls_get_nothing_but_nonsense_leaves_loudly_and_its_runs_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    await bench.agent().loop(max_runtime_seconds=0.5)
    await bench.until(item, StateType.RUNNING)
    agent = bench.agent(max_jobs=2)  # It polls while the item runs.
    nonsense = Nonsense(monkeypatch, bench, "poll", times=1_000 if name == "recovery" else 0)
    agent_loop = asyncio.create_task(agent.loop(), name="loop")
    if name == "poll":
        await eventually(_value(lambda: {agent.shutdown.at_work}), lambda found: found == {True})
        nonsense.left = 1_000
    with pytest.raises(BackgroundTaskError, match=f"'{name}' failed 5 times within 300 s"):
        await asyncio.wait_for(agent_loop, 60)
    assert f"leaving: The background task '{name}' failed 5 times" in caplog.text
    assert (await bench.read(item.id)).state_type is StateType.RUNNING
    nonsense.left = 0
    await bench.finish_under(bench.agent())
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert len(bench.machine.started) == 1


async def test_agent_whose_notice_fails_for_good_goes_on_with_its_items(bench: Bench) -> None:
    faults = Faults(bench, "status", 1_000)
    async with bench.running(bench.agent()):
        await eventually(faults.total, lambda count: count > supervision.MOST_FAILURES + 1)
        (item,) = await bench.add()
        await bench.until(item, StateType.COMPLETED)


async def test_service_that_cannot_keep_a_shift_on_leaves_loudly(caplog: pytest.LogCaptureFixture) -> None:
    service = asyncio.create_task(asyncio.sleep(60))

    async def fails() -> None:
        raise ValueError("a fault in the program")

    with pytest.raises(BackgroundTaskError, match="'scheduled runs' failed 5 times"):
        await asyncio.wait_for(until_stopped(service, Stop(), fails), 60)
    assert service.cancelled()
    assert caplog.text.count("task-failed scheduled runs") == supervision.MOST_FAILURES


async def test_item_that_cannot_be_ended_gives_its_slot_back(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.plays(Script(start_error=InfrastructureError("no")), Script())
    _, second = await bench.add(2)

    async def fails(method: str) -> None:
        if method == "create_artifact":
            raise ValueError("a fault in the program")

    bench.server.before_call = fails
    async with bench.running(bench.agent()):
        await bench.until(second, StateType.COMPLETED)
    assert "not-ended" in caplog.text


async def test_work_on_an_item_that_fails_in_no_foreseen_way_is_reported_and_its_slot_is_free(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(*_: object) -> None:
        raise ValueError("a fault in the program")

    (item,) = await bench.add()
    work = RunningItems(fails)
    running_item = RunningItem(item=item, queue=QUEUE)
    work.begin(running_item, fails)
    await asyncio.wait_for(running_item.ended.wait(), 60)
    assert work.thread_ids == []
    (record,) = [record for record in caplog.records if record.getMessage().startswith("task-failed work on")]
    assert str(item.id) in record.getMessage()
    assert (record.levelno, record.exc_info is not None) == (logging.ERROR, True)


def _value(read: Callable[[], set[Any]]) -> Callable[[], Awaitable[set[Any]]]:
    async def look() -> set[Any]:
        return read()

    return look


def _text(caplog: pytest.LogCaptureFixture) -> Any:
    async def look() -> str:
        return caplog.text

    return look
