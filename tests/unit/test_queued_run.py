"""`QueuedRun`: waiting with an end, failures that tell why, and who may be cancelled, retried or deleted."""

from __future__ import annotations

import re
import threading
import time
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest

from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ExecutionError, InvalidNameError, LaunchError, NotFoundError
from prefect_launch.queues.session import Session
from prefect_launch.server.values import LogRecord, State, Verdict
from prefect_launch.testing import InMemoryApi

IMAGE = {"docker": {"docker_image": "busybox:1"}}
CLAIMED, RUNNING = ItemState.CLAIMED, ItemState.RUNNING
COMPLETED, FAILED, CRASHED, CANCELLED = (
    ItemState.COMPLETED,
    ItemState.FAILED,
    ItemState.CRASHED,
    ItemState.CANCELLED,
)


@pytest.fixture
def api() -> InMemoryApi:
    api = InMemoryApi(entity="acme", project="digits")
    api.create_run_queue("gpu", "local-container")
    return api


@pytest.fixture
def run(api: InMemoryApi) -> QueuedRun:
    (run,) = launch_add_many([{**IMAGE, "run_id": "r1", "priority": "high", "sweep_id": "s1"}], "gpu", api=api)
    return run


async def _propose(run: QueuedRun, wanted: State, session: Session) -> Verdict:
    return await session.server.propose(UUID(run.id), wanted)


def move(api: InMemoryApi, run: QueuedRun, *states: ItemState, data: object = None, message: str = "why") -> None:
    for state in states:
        wanted = State(type=state.type, name=state.label, message=message, data=data)
        verdict = api.call(partial(_propose, run, wanted))
        assert verdict.accepted, verdict.reason


def log(api: InMemoryApi, run: QueuedRun, *messages: str) -> None:
    start = datetime.now(timezone.utc)
    records = [
        LogRecord(name="job", message=message, timestamp=start + timedelta(microseconds=number))
        for number, message in enumerate(messages)
    ]
    api.call(lambda session: session.server.write_logs(UUID(run.id), records))


def test_handle_says_what_it_is_of(api: InMemoryApi, run: QueuedRun) -> None:
    for handle in (run, api.queued_run(run.id)):
        assert (handle.queue_name, handle.entity, handle.project) == ("gpu", "acme", "digits")
        assert (handle.run_id, handle.priority, handle.sweep) == ("r1", 2, "s1")
        assert handle.state == "queued"
        assert repr(handle) == f"<QueuedRun {run.name} {run.id} on gpu>"
        assert handle.url.endswith(f"/runs/flow-run/{run.id}")


def test_item_that_is_not_there_is_reported(api: InMemoryApi) -> None:
    with pytest.raises(NotFoundError, match="There is no item"):
        api.queued_run(uuid4())
    with pytest.raises(InvalidNameError, match="give the UUID"):
        api.queued_run("r1")


# --- waiting ---


def test_waiting_for_the_start_ends_with_the_start(api: InMemoryApi, run: QueuedRun) -> None:
    threading.Timer(0.2, move, (api, run, CLAIMED, RUNNING)).start()
    assert run.wait_until_started(timeout=60).state_type is StateType.RUNNING
    assert run.wait_until_running(timeout=60).state_type is StateType.RUNNING


def test_waiting_for_the_end_ends_with_the_end(api: InMemoryApi, run: QueuedRun) -> None:
    threading.Timer(0.2, move, (api, run, CLAIMED, RUNNING, COMPLETED)).start()
    assert run.wait_until_finished(timeout=60).state_type is StateType.COMPLETED


def test_run_that_has_ended_well_was_started(api: InMemoryApi, run: QueuedRun) -> None:
    move(api, run, CLAIMED, RUNNING, COMPLETED)
    assert run.wait_until_started(timeout=0).state_type is StateType.COMPLETED


@pytest.mark.parametrize("wait", ["wait_until_started", "wait_until_finished"])
def test_waiting_ends_in_time_and_the_item_stays(api: InMemoryApi, run: QueuedRun, wait: str) -> None:
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"within 0\.3 s: it is Queued"):
        getattr(run, wait)(timeout=0.3)
    assert 0.3 <= time.monotonic() - started < 30
    assert run.state == "queued"


@pytest.mark.parametrize("end", [FAILED, CRASHED, CANCELLED])
@pytest.mark.parametrize("wait", ["wait_until_started", "wait_until_finished"])
def test_waiting_for_an_item_that_fails_raises_at_once(
    api: InMemoryApi, run: QueuedRun, wait: str, end: ItemState
) -> None:
    move(api, run, CLAIMED, end)
    with pytest.raises(ExecutionError, match=f"ended as {end.label}: why"):
        getattr(run, wait)(timeout=60)


def test_failure_tells_the_exit_code_and_the_last_lines(api: InMemoryApi, run: QueuedRun) -> None:
    log(api, run, *(f"{number}\n{number}b" for number in range(300)))
    move(api, run, CLAIMED, RUNNING)
    move(api, run, FAILED, data={"exit_code": 3}, message="exit code 3")
    with pytest.raises(ExecutionError) as raised:
        run.wait_until_finished(timeout=60)
    assert raised.value.exit_code == 3
    assert len(raised.value.last_lines) == 20
    assert raised.value.last_lines[-2:] == ("299", "299b")
    assert str(raised.value).endswith("\n  299b")


def test_waiting_for_a_deleted_item_says_so(api: InMemoryApi, run: QueuedRun) -> None:
    api.call(lambda session: session.server.delete_item(UUID(run.id)))
    with pytest.raises(NotFoundError, match="was deleted"):
        run.wait_until_finished(timeout=60)


def test_log_is_read_whole_and_from_a_time_on(api: InMemoryApi, run: QueuedRun) -> None:
    log(api, run, *(str(number) for number in range(450)))
    records = run.logs()
    assert [record.message for record in records] == [str(number) for number in range(450)]
    assert [record.message for record in run.logs(since=records[448].timestamp)] == ["448", "449"]


def test_record_that_comes_late_while_a_log_is_read_repeats_and_hides_no_other(
    api: InMemoryApi, run: QueuedRun
) -> None:
    log(api, run, *(str(number) for number in range(450)))
    early = LogRecord(name="prefect.flow_runs", message="early", timestamp=run.logs()[0].timestamp - timedelta(1))
    server, pages = api.server, list[int]()
    read = server.read_logs

    async def read_logs(item_id: UUID, **wanted: Any) -> list[LogRecord]:
        pages.append(len(page := await read(item_id, **wanted)))
        await server.write_logs(item_id, [early])
        return page

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "read_logs", read_logs)
        assert [record.message for record in run.logs()] == [str(number) for number in range(450)]
    assert len(pages) > 1


def test_many_records_of_one_time_are_all_read(api: InMemoryApi, run: QueuedRun) -> None:
    now = datetime.now(timezone.utc)
    records = [LogRecord(name="job", message=str(number), timestamp=now) for number in range(450)]
    api.call(lambda session: session.server.write_logs(UUID(run.id), records))
    assert len(run.logs()) == 450


# --- cancel, retry, delete ---


def test_waiting_item_is_cancelled_at_once(run: QueuedRun) -> None:
    assert run.cancel() == "Cancelled"
    assert run.state == "cancelled"


def test_cancelled_item_tells_by_whom_and_that_nothing_of_it_ran(
    api: InMemoryApi, run: QueuedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    run.cancel()
    assert re.fullmatch(r"Cancelled by ann on \S+ while it waited: nothing was started\.", run.message)
    run.retry()
    move(api, run, CLAIMED, RUNNING, FAILED)
    run.retry()
    run.cancel()
    assert run.message.endswith("while it waited: nothing of it was running.")


def test_item_in_work_tells_who_asked_for_its_stop(
    api: InMemoryApi, run: QueuedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGNAME", "ann")
    move(api, run, CLAIMED, RUNNING)
    run.cancel()
    assert run.message.startswith("Stop was asked for by ann on ")


@pytest.mark.parametrize("states", [(CLAIMED,), (CLAIMED, RUNNING)])
def test_item_in_work_is_asked_to_stop(api: InMemoryApi, run: QueuedRun, states: tuple[ItemState, ...]) -> None:
    move(api, run, *states)
    assert run.cancel() == "Cancelling"


@pytest.mark.parametrize("end", [COMPLETED, FAILED, CRASHED, CANCELLED])
def test_item_that_has_ended_cannot_be_cancelled(api: InMemoryApi, run: QueuedRun, end: ItemState) -> None:
    move(api, run, CLAIMED, end)
    with pytest.raises(LaunchError, match=f"ended already, as {end.label}"):
        run.cancel()


@pytest.mark.parametrize("end", [FAILED, CRASHED, CANCELLED])
def test_item_that_did_not_end_well_is_put_back(api: InMemoryApi, run: QueuedRun, end: ItemState) -> None:
    move(api, run, CLAIMED, RUNNING, end)
    run.retry()
    assert run.state == "queued"


def test_item_that_ended_well_is_not_run_again(api: InMemoryApi, run: QueuedRun) -> None:
    move(api, run, CLAIMED, RUNNING)
    move(api, run, COMPLETED, data={"exit_code": 0})
    with pytest.raises(LaunchError, match="has ended well"):
        run.retry()
    assert run.state == "completed"


@pytest.mark.parametrize("states", [(), (CLAIMED,), (CLAIMED, RUNNING)])
def test_item_that_has_not_ended_cannot_be_retried(
    api: InMemoryApi, run: QueuedRun, states: tuple[ItemState, ...]
) -> None:
    move(api, run, *states)
    with pytest.raises(LaunchError, match="only what has ended"):
        run.retry()


def test_retried_item_that_waits_is_cancelled_at_once_though_it_had_a_run(api: InMemoryApi, run: QueuedRun) -> None:
    api.call(lambda session: session.server.record_infrastructure(UUID(run.id), "container-1"))
    move(api, run, CLAIMED, RUNNING, FAILED)
    run.retry()
    assert run.cancel() == "Cancelled"


@pytest.mark.parametrize("states", [(), (CLAIMED, COMPLETED), (CLAIMED, FAILED)])
def test_item_that_is_not_in_work_is_deleted(api: InMemoryApi, run: QueuedRun, states: tuple[ItemState, ...]) -> None:
    move(api, run, *states)
    run.delete()
    with pytest.raises(NotFoundError):
        api.queued_run(run.id)


@pytest.mark.parametrize("states", [(CLAIMED,), (CLAIMED, RUNNING), (CLAIMED, ItemState.CANCELLING)])
def test_item_in_work_is_not_deleted(api: InMemoryApi, run: QueuedRun, states: tuple[ItemState, ...]) -> None:
    move(api, run, *states)
    with pytest.raises(LaunchError, match="cancel it before"):
        run.delete()
    assert api.queued_run(run.id).id == run.id
