"""Items that start after others: they wait for them, start once these have completed, and end when one has failed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from prefect_launch import launch_add
from prefect_launch.agent.polling.predecessor_gate import PredecessorGate
from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.client.change_item import move_item
from prefect_launch.core.names import short_id
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import NotFoundError, SpecError
from prefect_launch.queues.wait_reason import WaitCause, why_waiting
from prefect_launch.server.values import Item
from prefect_launch.spec.scheduling import Priority
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, Bench, eventually
from tests.support.enqueueing import items

UNKNOWN = "0198b2a4-0000-7000-8000-000000000001"
WAITING, RUNNING = StateType.SCHEDULED, StateType.RUNNING
COMPLETED, CANCELLED = StateType.COMPLETED, StateType.CANCELLED


async def add_after(bench: Bench, *first: Item, **spec: Any) -> Item:
    (item,) = await bench.add(after=[str(one.id) for one in first], **spec)
    return item


async def startable(bench: Bench) -> list[Item]:
    """The items of the queue that an agent may claim now."""
    async with bench.api.open() as session:
        return await PredecessorGate(session).startable(await bench.poll(200))


async def test_item_starts_once_all_of_its_predecessors_have_completed(bench: Bench) -> None:
    first, second = await bench.add(2)
    third = await add_after(bench, first, second)
    last = await add_after(bench, third)
    async with bench.running(bench.agent(max_jobs=4)):
        for item in (first, second, third, last):
            await bench.until(item, COMPLETED)

    ends = [(await bench.read(item.id)).end_time for item in (first, second)]
    third, last = await bench.read(third.id), await bench.read(last.id)
    assert all(end and third.start_time and end <= third.start_time for end in ends)
    assert third.end_time is not None
    assert last.start_time is not None
    assert third.end_time <= last.start_time
    assert await bench.states(third) == ["Queued", "Pending", "Running", "Completed"]


async def test_item_that_waits_hides_none_behind_it_and_takes_no_slot(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (first,) = await bench.add(priority="low")
    held = [await add_after(bench, first, priority="high") for _ in range(12)]
    (other,) = await bench.add(priority="low")
    async with bench.running(bench.agent(max_jobs=2)):
        await bench.until(first, RUNNING)
        await bench.until(other, RUNNING)
        assert {(await bench.read(item.id)).state_type for item in held} == {WAITING}


@pytest.mark.parametrize("end", [ItemState.FAILED, ItemState.CRASHED, ItemState.CANCELLED])
async def test_item_whose_predecessor_has_failed_is_cancelled_with_the_reason(bench: Bench, end: ItemState) -> None:
    (first,) = await bench.add(name="first")
    second = await add_after(bench, first)
    last = await add_after(bench, second)
    await bench.move(first, ItemState.CLAIMED, ItemState.RUNNING, end)
    async with bench.running(bench.agent()):
        await bench.until(second, CANCELLED)
        await bench.until(last, CANCELLED)

    # The words follow the state. `last` ends at a later poll, so they are there by now.
    assert (await bench.read(second.id)).message == (
        f"Its predecessor first ({short_id(first.id)}) has ended as {end.label}. It waited: nothing was started."
    )
    assert (await bench.states(second)).count("Pending") == 0


async def test_predecessor_that_is_retried_has_not_failed(bench: Bench) -> None:
    bench.plays(Script(exit_code=1), Script())
    (first,) = await bench.add(retries={"max": 1, "on": ["failed"], "delay": 0.2})
    second = await add_after(bench, first)
    async with bench.running(bench.agent()):
        await bench.until(second, COMPLETED)

    assert (await bench.states(first)).count("Running") == 2


async def test_predecessor_that_was_moved_is_the_item_in_its_place(bench: Bench) -> None:
    (first,) = await bench.add()
    second = await add_after(bench, first)
    async with bench.api.open() as session:
        moved = await move_item(bench.api, session, first, "ann", priority=Priority.LOW)
    async with bench.running(bench.agent()):
        await bench.until(second, COMPLETED)

    assert (await bench.read(moved.id)).state_type is COMPLETED


async def test_predecessor_that_was_deleted_has_failed(bench: Bench) -> None:
    (first,) = await bench.add()
    second = await add_after(bench, first)
    await bench.server.delete_item(first.id)

    assert await startable(bench) == []
    assert (await bench.read(second.id)).message == (
        f"Its predecessor {first.id} was deleted. It waited: nothing was started."
    )


async def test_predecessors_of_all_items_of_a_poll_are_read_at_once(bench: Bench) -> None:
    first = await bench.add(20)
    waiting = [await add_after(bench, one) for one in first]
    await bench.move(first[0], ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED)
    bench.server.calls.clear()

    found = await startable(bench)

    assert {item.id for item in found} == {item.id for item in (*first[1:], waiting[0])}
    assert {name: count for name, count in bench.server.calls.items() if name != "poll"} == {"list_items": 1}


async def test_items_without_predecessors_cost_no_request(bench: Bench) -> None:
    await bench.add(5)
    bench.server.calls.clear()

    assert len(await startable(bench)) == 5
    assert set(bench.server.calls) == {"poll"}


async def test_item_says_which_items_it_waits_for(bench: Bench) -> None:
    first, second = await bench.add(2, name="first")
    item = await add_after(bench, first, second)
    await bench.move(first, ItemState.CLAIMED, ItemState.RUNNING)
    async with bench.api.open() as session:
        reason = await why_waiting(session, item)

    assert reason is not None
    assert (reason.cause, reason.expected_start) == (WaitCause.PREDECESSOR, None)
    assert reason.reason == (
        f"It waits for first ({short_id(first.id)}), which is running; first ({short_id(second.id)}), which is queued."
    )


async def test_agent_notes_in_the_log_which_items_an_item_waits_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.reporting.wait_notes.CHECK_SECONDS", 0.05)
    monkeypatch.setattr("prefect_launch.agent.reporting.wait_notes.WAITED_SECONDS", 0.0)
    bench.plays(Script(seconds=60))
    (first,) = await bench.add(name="first")
    item = await add_after(bench, first)
    async with bench.running(bench.agent()):
        await bench.until(first, RUNNING)
        await eventually(lambda: bench.log(item), lambda log: "Waits (predecessor): It waits for first" in log)


@pytest.mark.parametrize(
    ("after", "error", "words"),
    [
        ([UNKNOWN], NotFoundError, UNKNOWN),
        (["first"], SpecError, "is a UUID"),
        (UNKNOWN, SpecError, "list of ids"),
    ],
)
async def test_item_after_none_that_there_is_is_refused(
    bench: Bench, after: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        await bench.add(after=after)
    assert await bench.poll() == []


async def test_item_after_one_that_has_failed_is_refused(bench: Bench) -> None:
    (first,) = await bench.add(name="first")
    await bench.move(first, ItemState.CLAIMED, ItemState.FAILED)
    with pytest.raises(SpecError, match=r"never start\. Its predecessor first .* has ended as Failed"):
        await add_after(bench, first)


def test_command_takes_names_and_shows_what_an_item_waits_for(bench: Bench) -> None:
    def run(*arguments: str) -> str:
        with use_api(bench.api):
            return CliRunner().invoke(app, arguments, env={"COLUMNS": "100"}).output

    with use_api(bench.api):
        first = launch_add(docker_image="busybox:1", queue_name=QUEUE, name="first")
    added = json.loads(run("add", "-d", "busybox:1", "-q", QUEUE, "--after", "first", "--name", "second", "--json"))

    assert f"after     {short_id(first.id)}\n" in run("item", "show", "second")
    assert f"It waits for first ({short_id(first.id)}), which is queued." in " ".join(
        run("item", "show", "second").split()
    )
    fields = json.loads(run("item", "show", "second", "--json"))
    assert (fields["id"], fields["after"], fields["why_cause"]) == (added["id"], [first.id], "predecessor")


def test_rerun_of_an_item_waits_for_nothing(bench: Bench) -> None:
    with use_api(bench.api):
        first = launch_add(docker_image="busybox:1", queue_name=QUEUE)
        second = launch_add(docker_image="busybox:1", queue_name=QUEUE, config={"after": [first.id]})

    assert "after" not in second.rerun().item.parameters
    assert len(items(bench.api)) == 3
