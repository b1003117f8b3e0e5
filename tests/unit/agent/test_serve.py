"""The service of a served agent: which shift is on, when the next one starts, and when all has drained."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Completed, Crashed, Pending, Running, Scheduled

from prefect_launch.agent.entry import serve
from prefect_launch.agent.entry.serve import ScheduledRuns, Stop, clear_away, end_last_request, living_runs
from prefect_launch.core.states import StateType
from prefect_launch.queues.agent_status import (
    drain_agent,
    drain_scheduled_runs,
    read_drain_request,
    release_scheduled_runs,
)
from prefect_launch.queues.presence import Presence, delete_presence, write_presence
from tests.support.bench import QUEUE, Bench, eventually, holder_called

DEPLOYMENT = uuid4()


class Runs:
    """The flow runs of one deployment, as Prefect's client gives them."""

    def __init__(self) -> None:
        self.found: dict[UUID, FlowRun] = {}

    def add(self, state: State[Any], *, started: bool = True) -> UUID:
        begun = datetime.now(timezone.utc) - timedelta(minutes=5)
        due, start = (begun, begun) if started else (datetime.now(timezone.utc), None)
        run = FlowRun(
            id=uuid4(),
            flow_id=uuid4(),
            state=state,
            state_type=state.type,
            expected_start_time=due,
            start_time=start,
        )
        self.found[run.id] = run
        return run.id

    def state(self, run_id: UUID) -> str:
        state = self.found[run_id].state
        return "" if state is None else state.type.value

    async def read_flow_runs(self, *, flow_run_filter: Any, **_: Any) -> list[FlowRun]:
        wanted = {each.value for each in flow_run_filter.state.type.any_}
        return [run.model_copy() for run in self.found.values() if run.state_type and run.state_type.value in wanted]

    async def read_flow_run(self, run_id: UUID) -> FlowRun:
        if run_id not in self.found:
            raise ObjectNotFound(Exception("gone"))
        return self.found[run_id].model_copy()

    async def set_flow_run_state(self, run_id: UUID, state: State[Any], force: bool = False) -> None:
        self.found[run_id] = self.found[run_id].model_copy(update={"state": state, "state_type": state.type})

    async def delete_flow_run(self, run_id: UUID) -> None:
        del self.found[run_id]

    async def create_flow_run_from_deployment(self, deployment_id: UUID, **_: Any) -> None:
        self.add(Scheduled(), started=False)


@pytest.fixture
def living(monkeypatch: pytest.MonkeyPatch) -> set[UUID]:
    """The flow runs whose processes live on this machine."""
    found: set[UUID] = set()
    monkeypatch.setattr(serve, "living_runs", lambda: set(found))
    monkeypatch.setattr(serve, "CHECK_SECONDS", 0.02)
    return found


class Service:
    """The shifts of the agent `box`, looked after as its service does."""

    def __init__(self, bench: Bench, runs: Runs) -> None:
        self.stop = Stop()
        self.ended = asyncio.Event()
        self.stop.end = self.ended.set
        self._bench = bench
        self._runs = runs
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        client: Any = self._runs
        await end_last_request(self._bench.server, "box", self.stop)
        left = await clear_away(client, DEPLOYMENT, Crashed(message="gone"))
        runs = ScheduledRuns(client, DEPLOYMENT, self._bench.server, self._bench.agent().holder, self.stop, left=left)
        self._task = asyncio.create_task(runs.keep_one_active())

    async def __aenter__(self) -> Service:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})

    async def is_ended(self) -> bool:
        return self.ended.is_set()

    async def looks(self, times: int = 3) -> None:
        """Wait until it has looked so many times."""
        seen = self._bench.server.calls["read_variable"]

        async def calls() -> int:
            return self._bench.server.calls["read_variable"] - seen

        await eventually(calls, lambda count: count >= times)


def scheduled(runs: Runs) -> list[UUID]:
    return [run_id for run_id in runs.found if runs.state(run_id) == "SCHEDULED"]


async def present(bench: Bench, instance: str) -> None:
    """Let a shift of `box` on this machine show that it is there."""
    holder = bench.agent().holder.model_copy(update={"instance": instance})
    await write_presence(bench.server, Presence.of(holder, (QUEUE,), is_shift=True))


async def test_service_that_is_stopped_at_once_waits_for_the_shift_that_a_killed_service_has_left(
    bench: Bench, living: set[UUID]
) -> None:
    runs = Runs()
    old = runs.add(Running())
    living.add(old)
    await present(bench, "old")
    async with Service(bench, runs) as service:
        service.stop.handle(signal.SIGTERM)
        await service.looks()
        order = await read_drain_request(bench.server, "box")
        assert order is not None
        assert (order.for_shifts, order.ends_shift) == (True, True)
        assert not await service.is_ended()
        assert (runs.state(old), scheduled(runs)) == ("RUNNING", []), "it is on, and no other shift is started"
        await delete_presence(bench.server, "old")
        await runs.set_flow_run_state(old, Completed())
        living.clear()
        await asyncio.wait_for(service.ended.wait(), 60)
    assert (runs.state(old), scheduled(runs)) == ("COMPLETED", [])


async def test_shift_that_a_killed_service_has_left_is_followed_by_the_next_when_it_ends(
    bench: Bench, living: set[UUID]
) -> None:
    runs = Runs()
    old, dead, refused, begun = (
        runs.add(Running()),
        runs.add(Running()),
        runs.add(Cancelled(), started=False),
        runs.add(Pending(), started=False),
    )
    living.add(old)
    async with Service(bench, runs):
        assert (runs.state(old), runs.state(dead), runs.state(begun)) == ("RUNNING", "CRASHED", "CRASHED")
        assert refused not in runs.found
        assert scheduled(runs) == []
        living.clear()  # It is killed, and nobody but this service would tell.
        await eventually(_value(lambda: scheduled(runs)), lambda found: len(found) == 1)
    assert runs.state(old) == "CRASHED"


async def test_shift_of_another_service_that_has_ended_itself_keeps_its_end(bench: Bench, living: set[UUID]) -> None:
    runs = Runs()
    old = runs.add(Running())
    living.add(old)
    async with Service(bench, runs):
        await runs.set_flow_run_state(old, Completed())
        living.clear()
        await eventually(_value(lambda: scheduled(runs)), lambda found: len(found) == 1)
    assert runs.state(old) == "COMPLETED"


async def test_signal_after_a_crash_starts_one_more_shift_to_take_up_what_is_left(
    bench: Bench, living: set[UUID]
) -> None:
    (waiting,) = await bench.add()
    runs = Runs()
    await present(bench, "crashed")
    async with Service(bench, runs) as service:
        service.stop.handle(signal.SIGTERM)
        await eventually(_value(lambda: scheduled(runs)), lambda found: len(found) == 1)
        await service.looks()
        assert not await service.is_ended()
        (shift,) = scheduled(runs)
        await runs.set_flow_run_state(shift, Running())
        await bench.agent().loop(max_runtime_seconds=60)  # it drains by the order, and ends
        await runs.set_flow_run_state(shift, Completed())
        await asyncio.wait_for(service.ended.wait(), 60)
    assert await bench.states(waiting) == ["Queued"]


async def test_service_makes_its_drain_request_again_when_somebody_takes_it_back(
    bench: Bench, living: set[UUID]
) -> None:
    runs = Runs()
    living.add(runs.add(Running()))
    await present(bench, "on")
    await bench.server.beat_worker(QUEUE, "box", 15)
    async with Service(bench, runs) as service:
        service.stop.handle(signal.SIGTERM)
        await eventually(lambda: read_drain_request(bench.server, "box"), lambda order: order is not None)
        await bench.api.acall(lambda session: drain_agent(session.server, "box", undo=True))
        await eventually(lambda: read_drain_request(bench.server, "box"), lambda order: order is not None)
        await bench.api.acall(lambda session: drain_agent(session.server, "box"))  # which would not end the shift
        await eventually(
            lambda: read_drain_request(bench.server, "box"), lambda order: order is not None and order.ends_shift
        )


async def test_drain_request_of_an_earlier_service_does_not_stop_a_new_one(bench: Bench, living: set[UUID]) -> None:
    (item,) = await bench.add()
    await drain_scheduled_runs(bench.server, "box")
    async with Service(bench, Runs()):
        await bench.agent().loop(max_runtime_seconds=5, until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED


async def test_drain_request_of_an_earlier_service_stays_for_one_that_gets_a_signal_before_it_has_begun(
    bench: Bench,
) -> None:
    await drain_scheduled_runs(bench.server, "box")
    stop = Stop()
    stop.handle(signal.SIGTERM)
    await end_last_request(bench.server, "box", stop)
    assert await read_drain_request(bench.server, "box") is not None, "the shift that is on takes no item meanwhile"


async def test_service_that_ends_leaves_the_drain_request_for_another_agent_of_the_name_alone(bench: Bench) -> None:
    await write_presence(bench.server, Presence.of(holder_called("box", host="other", home="other"), (QUEUE,)))
    await bench.server.beat_worker(QUEUE, "box", 15)
    await bench.api.acall(lambda session: drain_agent(session.server, "box"))
    await drain_scheduled_runs(bench.server, "box")
    assert await release_scheduled_runs(bench.server, "box")
    assert not await release_scheduled_runs(bench.server, "box")
    order = await read_drain_request(bench.server, "box")
    assert order is not None
    assert (len(order.instances), order.for_shifts, order.ends_shift) == (1, False, False)


def test_process_of_a_shift_is_found_by_its_flow_run_and_what_it_has_started_is_not() -> None:
    shift, job = uuid4(), uuid4()
    waits = "import sys; print('up', flush=True); sys.stdin.read()"
    programs = [(shift, [sys.executable, "-c", waits, "prefect.engine"]), (job, [sys.executable, "-c", waits])]
    started = []
    try:
        for run_id, command in programs:
            environment = {**os.environ, "PREFECT__FLOW_RUN_ID": str(run_id)}
            process = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            started.append(process)
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
        assert living_runs() & {shift, job} == {shift}
    finally:
        for process in started:
            process.communicate()
    assert shift not in living_runs()


def test_shift_whose_output_nobody_reads_any_more_goes_on(tmp_path: Path) -> None:
    program = """
import os, sys, time
from pathlib import Path
from rich.console import Console
from prefect_launch.agent.entry.flow import outlive_reader

outlive_reader(1, 2)
print("up", flush=True)
while os.readlink("/proc/self/fd/1") != os.devnull or os.readlink("/proc/self/fd/2") != os.devnull:
    time.sleep(0.02)
for stream in (sys.stdout, sys.stderr):
    Console(file=stream).print("a line")
Path(sys.argv[1]).touch()
"""
    done = tmp_path / "done"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(done)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "up\n"
    process.stdout.close()
    process.stderr.close()
    assert process.wait(60) == 0
    assert done.exists()


def _value(read: Any) -> Any:
    async def look() -> Any:
        return read()

    return look
