"""`item wait`: what it prints, and the exit code by which a script goes on."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from uuid import UUID

import pytest

from prefect_launch.cli.item_logs import LogTail
from prefect_launch.cli.main import run as run_program
from prefect_launch.client.api import use_api
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.client.wait_for_ends import ends_of
from prefect_launch.core.names import short_id
from prefect_launch.core.states import ItemState
from prefect_launch.errors import ExecutionError, NotFoundError
from prefect_launch.queues.session import Session
from prefect_launch.server.values import State
from prefect_launch.testing import InMemoryApi

COMPLETED, FAILED, CRASHED, CANCELLED = (
    ItemState.COMPLETED,
    ItemState.FAILED,
    ItemState.CRASHED,
    ItemState.CANCELLED,
)


@pytest.fixture
def api() -> Iterator[InMemoryApi]:
    api = InMemoryApi()
    api.create_run_queue("gpu", "local-container")
    with use_api(api):
        yield api


def add(api: InMemoryApi, count: int) -> list[QueuedRun]:
    specs = [{"docker": {"docker_image": "busybox:1"}, "name": f"run-{number}"} for number in range(count)]
    return launch_add_many(specs, "gpu", api=api)


def end(api: InMemoryApi, run: QueuedRun, state: ItemState) -> None:
    async def propose(session: Session) -> None:
        for one in (ItemState.CLAIMED, ItemState.RUNNING, state):
            assert (await session.server.propose(UUID(run.id), State.of(one, "So it was."))).accepted

    api.call(propose)


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ([COMPLETED, COMPLETED], 0),
        ([COMPLETED, FAILED], 1),
        ([CRASHED], 1),
        ([CANCELLED, COMPLETED], 3),
        ([CANCELLED, FAILED], 1),
    ],
)
def test_exit_code_says_how_the_items_have_ended(
    api: InMemoryApi, capsys: pytest.CaptureFixture[str], ends: list[ItemState], code: int
) -> None:
    runs = add(api, len(ends))
    for run, state in zip(runs, ends, strict=True):
        end(api, run, state)

    assert run_program(["item", "wait", *(short_id(run.id) for run in runs)]) == code

    told = capsys.readouterr().out
    for run, state in zip(runs, ends, strict=True):
        assert f"{run.name} ({short_id(run.id)}) {state.label.lower()} after " in told
    assert told.count(": So it was.\n") == len(ends)


def test_items_that_end_later_are_waited_for_and_each_is_told_once(
    api: InMemoryApi, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = add(api, 3)
    end(api, runs[0], COMPLETED)
    for seconds, run in ((0.3, runs[1]), (0.6, runs[2])):
        threading.Timer(seconds, partial(end, api, run, COMPLETED)).start()

    assert run_program(["item", "wait", *(run.id for run in runs), runs[0].name, "--json", "--timeout", "60"]) == 0

    told = [fields["id"] for fields in json.loads(capsys.readouterr().out)]
    assert sorted(told) == sorted(run.id for run in runs)


def test_time_that_is_up_is_124_and_the_items_stay(api: InMemoryApi, capsys: pytest.CaptureFixture[str]) -> None:
    waits, failed = add(api, 2)
    end(api, failed, FAILED)

    assert run_program(["item", "wait", waits.id, failed.id, "--timeout", "0.3s"]) == 124

    told = capsys.readouterr()
    assert told.err == f"Not all have ended within 0.3 s: {waits.name} ({waits.id}) is Queued.\n"
    assert failed.name in told.out
    assert waits.state == "queued"


def test_one_read_serves_all_items_that_are_waited_for(api: InMemoryApi) -> None:
    runs = add(api, 250)
    api.server.calls.clear()

    with pytest.raises(TimeoutError):
        list(ends_of(api, runs, timeout=0.01))

    assert api.server.calls["list_items"] <= 4
    assert set(api.server.calls) == {"list_items"}


def test_item_that_is_deleted_ends_the_wait(api: InMemoryApi) -> None:
    kept, gone = add(api, 2)
    gone.delete()

    with pytest.raises(NotFoundError, match=f"{gone.name}.*deleted"):
        list(ends_of(api, [kept, gone]))


@pytest.mark.parametrize(
    "wait",
    [
        lambda run, api: list(ends_of(api, [run])),
        lambda run, _: run.wait_until_finished(),
        lambda run, _: LogTail(run, lambda _: None).until_end(),
    ],
    ids=["item wait", "wait_until_finished", "item logs -f"],
)
def test_wait_outlasts_a_restart_of_the_server(
    api: InMemoryApi, caplog: pytest.LogCaptureFixture, wait: Callable[[QueuedRun, InMemoryApi], object]
) -> None:
    def come_back() -> None:
        api.server.up()
        end(api, run, COMPLETED)

    (run,) = add(api, 1)
    api.server.down()
    threading.Timer(0.3, come_back).start()

    wait(run, api)

    assert run.state == "completed"
    assert [record.message for record in caplog.records if "Waiting for the server" in record.message] != []


def test_time_of_a_wait_also_ends_while_the_server_is_away(api: InMemoryApi) -> None:
    (run,) = add(api, 1)
    api.server.down()

    for wait in (lambda: list(ends_of(api, [run], timeout=0.2)), lambda: run.wait_until_finished(timeout=0.2)):
        with pytest.raises(TimeoutError, match="while the server was away"):
            wait()


@pytest.mark.parametrize("command", [["add", "-d", "busybox:1", "-q", "gpu"], ["item", "rerun", "run-0"]])
def test_command_that_waits_for_an_item_that_is_cancelled_exits_as_item_wait_does(
    api: InMemoryApi, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    (first,) = add(api, 1)

    def cancel() -> None:
        while not (others := [run for run in api.items() if run.id != first.id]):
            time.sleep(0.05)
        others[0].cancel()

    threading.Thread(target=cancel).start()

    assert run_program([*command, "--wait"]) == 3
    assert "ended as Cancelled" in capsys.readouterr().err


def test_error_of_a_cancelled_run_says_so(api: InMemoryApi) -> None:
    cancelled, failed = add(api, 2)
    end(api, cancelled, CANCELLED)
    end(api, failed, FAILED)

    for run in (cancelled, failed):
        with pytest.raises(ExecutionError) as error:
            run.wait_until_finished()
        assert error.value.cancelled is (run is cancelled)
