"""Changes of an item that waits: `item edit`, `set-priority` and `move`; refused, or done, and never a run too many."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from prefect_launch import launch_add
from prefect_launch.agent.recovery.abandoned_changes import AbandonedChanges
from prefect_launch.cli.main import app
from prefect_launch.client.change_item import Changer
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.client.wait_for_ends import ends_of
from prefect_launch.core.names import short_id
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import InputError, LaunchError, NotFoundError, SpecError, UnsafeSpecError
from prefect_launch.queues.claim import claim
from prefect_launch.queues.session import Session
from prefect_launch.server.values import Item, State
from prefect_launch.testing import InMemoryApi
from tests.support.bench import Bench
from tests.support.changing import race_edits, race_moves
from tests.support.enqueueing import GPUS, inputs, items

Command = Callable[..., Result]
GPUS_LIMITED = {"gpus": "{{gpus}}", "limits": {"gpus": 2}}


@pytest.fixture
def command(job_api: InMemoryApi) -> Command:
    return lambda *arguments: CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})


@pytest.fixture
def run(job_api: InMemoryApi) -> QueuedRun:
    return launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), name="first", run_id="r1", author="ann")


def propose(api: InMemoryApi, run: QueuedRun, *states: State) -> None:
    async def call(session: Session) -> None:
        for state in states:
            assert (await session.server.propose(UUID(run.id), state)).accepted

    api.call(call)


# --- in place ---


def test_edited_inputs_are_checked_and_the_item_keeps_its_place(job_api: InMemoryApi, run: QueuedRun) -> None:
    was = run.item

    run.edit({"lr": 0.5})

    now = run.item
    config = {**was.parameters["overrides"]["run_config"], "lr": 0.5}
    assert now.parameters == {**was.parameters, "overrides": {"run_config": config}}
    assert was.next_scheduled_start_time is not None
    due = was.next_scheduled_start_time + timedelta(microseconds=1)  # By which an agent sees that it has changed.
    changes = {"parameters": now.parameters, "state": now.state, "next_scheduled_start_time": due}
    assert now == was.model_copy(update=changes)
    assert (now.state_name, now.message) == (was.state_name, was.message)
    with pytest.raises(InputError, match="lr"):
        run.edit({"lr": 5})
    assert run.item == now


def test_item_that_waits_for_its_time_or_its_retry_still_waits_for_it_after_a_change(
    job_api: InMemoryApi, run: QueuedRun
) -> None:
    due = datetime.now(timezone.utc) + timedelta(hours=2)
    details = {"scheduled_time": due.isoformat()}
    propose(job_api, run, State(type=StateType.SCHEDULED, name="AwaitingRetry", message="Soon.", state_details=details))

    run.edit({"lr": 0.5})
    run.set_priority("high")

    now = run.item
    assert (now.state_name, now.message) == ("AwaitingRetry", "Soon.")
    assert now.next_scheduled_start_time == due + timedelta(microseconds=1)


def test_item_that_the_server_calls_late_is_changed(job_api: InMemoryApi, run: QueuedRun) -> None:
    propose(job_api, run, State(type=StateType.SCHEDULED, name="Late"))
    run.edit({"lr": 0.5})
    assert run.item.state_name == "Scheduled"  # The server takes its own name from nobody.


@pytest.mark.parametrize("states", [[ItemState.CLAIMED], [ItemState.CLAIMED, ItemState.RUNNING], [ItemState.CANCELLED]])
@pytest.mark.parametrize("change", ["edit", "set_priority", "move"])
def test_item_that_does_not_wait_is_not_changed(
    job_api: InMemoryApi, run: QueuedRun, states: list[ItemState], change: str
) -> None:
    propose(job_api, run, *(State.of(state) for state in states))
    was = run.item

    with pytest.raises(LaunchError, match=f"is {states[-1].label}: only an item that waits can be changed"):
        getattr(run, change)({"edit": {"lr": 0.5}, "set_priority": "high", "move": "gpu"}[change])

    assert items(job_api) == [was]


def test_item_that_is_cancelled_while_it_is_held_is_cancelled(job_api: InMemoryApi, run: QueuedRun) -> None:
    cancels = job_api.server.replace_parameters

    async def cancel_meanwhile(item_id: UUID, parameters: Any) -> None:
        await job_api.server.propose(item_id, State.of(ItemState.CANCELLING))
        await cancels(item_id, parameters)

    job_api.server.replace_parameters = cancel_meanwhile  # type: ignore[method-assign]
    run.edit({"lr": 0.5})

    assert run.item.state_type is StateType.CANCELLED


# --- another queue or priority ---


def test_moved_item_takes_its_place_in_line_with_all_that_it_is(job_api: InMemoryApi, run: QueuedRun) -> None:
    job_api.create_run_queue("other", "local-process")
    of_sweep = {"prefect-launch.trial": "the record of a trial"}
    job_api.call(lambda session: session.server.label_item(UUID(run.id), of_sweep))
    was = run.item

    run.move("other", priority="critical")

    now = run.item
    assert (run.queue_name, run.priority, run.id != str(was.id), run.run_id) == ("other", 1, True, "r1")
    assert (now.parameters, now.name, now.run_count) == (was.parameters, "first", 0)
    assert now.next_scheduled_start_time == was.next_scheduled_start_time
    assert set(now.tags) == set(was.tags) - {"queue:cpu"} | {"queue:other"}
    of_queue = {"prefect-launch.queue": "other", "prefect.deployment.id": str(now.deployment_id)}
    assert now.labels == {**was.labels, **of_queue}
    assert [item.id for item in items(job_api)] == [now.id]


def test_image_keeps_its_digest_and_is_pinned_where_the_other_queue_pins(job_api: InMemoryApi) -> None:
    image, old, new = "r.example/team/train:1", *(f"sha256:{digit * 64}" for digit in "ab")
    job_api.create_run_queue("other", "local-container")
    job_api.create_run_queue("pins", "local-container", config={"docker": {"pin": True}})
    job_api.registry.digests[image] = old
    known = launch_add(docker_image=image, queue_name="other")
    job_api.registry.digests.clear()
    unknown = launch_add(docker_image=image, queue_name="other")
    job_api.registry.digests[image] = new

    known.set_priority("high")
    assert known.item.parameters["docker"] == {"docker_image": image, "digest": old, "resolved": True}
    known.move("pins")
    assert known.item.parameters["docker"] == {"docker_image": image, "digest": old}
    unknown.move("pins")
    assert unknown.item.parameters["docker"] == {"docker_image": image, "digest": new, "pin": True}


def test_old_id_of_a_moved_item_leads_to_the_new_one(job_api: InMemoryApi, run: QueuedRun, command: Command) -> None:
    old, follower = run.id, job_api.queued_run(run.id)
    run.set_priority("high")
    run.set_priority("low")

    assert follower.item.id == UUID(run.id)
    assert (follower.id, follower.priority) == (run.id, 4)
    assert job_api.queued_run(old).id == run.id
    for given in (old, short_id(old), "first"):
        assert json.loads(command("item", "show", given, "--json").output)["id"] == run.id
    propose(job_api, run, State.of(ItemState.CLAIMED), State.of(ItemState.RUNNING), State.of(ItemState.COMPLETED))
    stale = QueuedRun(job_api, follower.item)
    stale._id, stale.id = UUID(old), old
    assert [str(item.id) for item in ends_of(job_api, [stale], timeout=5)] == [run.id]


def test_run_id_of_a_moved_item_is_taken_by_it(job_api: InMemoryApi, run: QueuedRun) -> None:
    run.set_priority("high")

    again = launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), name="first", run_id="r1", author="ann")

    assert again.item.id == UUID(run.id)
    assert len(items(job_api)) == 1


def test_item_of_a_job_s_form_is_moved_as_its_spec(job_api: InMemoryApi) -> None:
    from prefect_launch.server.values import ItemDraft

    _, deployment_id, _ = job_api.deploy_job("train", "cpu")

    async def start(session: Session) -> Item | None:
        parameters = {"lr": 0.1, "launch": {"name": "form", "timeout": "2h"}}
        return await session.server.create_item(
            deployment_id, ItemDraft(name="form", parameters=parameters, idempotency_key="k")
        )

    made = job_api.call(start)
    assert made is not None
    run = job_api.queued_run(made.id)
    run.edit({"lr": 0.5})
    assert run.item.parameters["lr"] == 0.5

    run.set_priority("high")

    parameters = run.item.parameters
    assert (parameters["job"], parameters["timeout"]) == ("acme/digits/train:v0", 7200.0)
    assert parameters["overrides"]["run_config"]["lr"] == 0.5
    assert "prefect-launch.form" not in run.item.labels


@pytest.mark.parametrize(
    ("queue", "change", "error", "words"),
    [
        (None, {}, NotFoundError, "nowhere"),
        ({"type": "local-process"}, {}, SpecError, "cannot run"),
        ({"type": "local-container"}, {}, NotFoundError, "template variable 'gpus'"),
        (
            {
                "type": "local-container",
                "template_variables": GPUS,
                "config": {"gpus": "{{gpus}}", "limits": {"gpus": 2}},
            },
            {},
            UnsafeSpecError,
            "gpus",
        ),
        (
            {"type": "local-container", "template_variables": GPUS, "prioritization_mode": "DISABLED"},
            {"priority": "high"},
            SpecError,
            "no priorities",
        ),
    ],
)
def test_move_that_adding_it_there_would_refuse_is_refused_and_changes_nothing(
    job_api: InMemoryApi, queue: dict[str, Any] | None, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    if queue is not None:
        job_api.create_run_queue("nowhere", **queue)
    run = launch_add(job="box", queue_name="gpu", template_variables={"gpus": 4})
    was = run.item

    with pytest.raises(error, match=words):
        run.move("nowhere", **change)

    assert items(job_api) == [was]
    assert job_api.call(lambda session: session.server.read_states(was.id))[-1].name == "Queued"


def test_item_that_has_run_before_stays_with_its_attempts(job_api: InMemoryApi, run: QueuedRun) -> None:
    states = (ItemState.CLAIMED, ItemState.RUNNING, ItemState.AWAITING_RETRY)
    propose(job_api, run, *(State.of(state) for state in states))

    with pytest.raises(LaunchError, match="has run before"):
        run.set_priority("high")

    run.edit({"lr": 0.5})
    assert (run.item.run_count, run.item.state_name) == (1, "AwaitingRetry")


def test_move_that_died_in_between_is_completed_by_the_same_command(job_api: InMemoryApi, run: QueuedRun) -> None:
    creates = job_api.server.create_item
    job_api.create_run_queue("other", "local-process")

    async def die(*_: Any) -> None:
        raise LaunchError("gone")

    job_api.server.create_item = die  # type: ignore[assignment, method-assign]
    with pytest.raises(LaunchError, match="gone"):
        run.move("other")
    job_api.server.create_item = creates  # type: ignore[method-assign]
    assert run.item.state_name == "Moved"

    run.move("other")
    assert [(item.work_pool_name, item.state_name) for item in items(job_api)] == [("other", "Queued")]


# --- at the same moment as a claim ---


async def _steps(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_edit_while_an_agent_claims_is_refused_or_takes_effect(tmp_path: Any) -> None:
    assert await race_edits(Bench(tmp_path).api, "gpu", 60, _steps) == {"agent", "user"}


async def test_move_while_an_agent_claims_is_refused_or_leaves_one_item(tmp_path: Any) -> None:
    api = Bench(tmp_path).api
    await asyncio.to_thread(api.create_run_queue, "other", "local-container")
    assert await race_moves(api, "gpu", "other", 60, _steps) == {"agent", "user"}


async def test_item_that_a_dead_change_holds_is_put_back_by_an_agent(tmp_path: Any) -> None:
    bench = Bench(tmp_path)
    held, claimed = await bench.add(2)
    assert await claim(bench.server, held, holder=Changer("ann on box")) is not None
    await bench.move(claimed, ItemState.CLAIMED)
    watcher = AbandonedChanges(bench.server, ["gpu"])

    await watcher.check()
    assert (await bench.read(held.id)).message == "Held by ann on box to change it."
    await watcher.check()

    now = await bench.read(held.id)
    assert (now.state_type, now.message) == (
        StateType.SCHEDULED,
        "Somebody held it to change it, and did not put it back.",
    )
    assert (await bench.read(claimed.id)).state_type is StateType.PENDING


# --- commands ---


def test_commands_say_what_has_changed(job_api: InMemoryApi, run: QueuedRun, command: Command) -> None:
    job_api.create_run_queue("other", "local-process")

    edited = command("item", "edit", "first", "--set", "lr=0.5").output
    assert edited == f"The inputs of first ({short_id(run.id)}) are now: lr=0.5, epochs=3, optimiser=adam\n"
    assert "Nothing to change" in str(command("item", "edit", "first").exception)
    told = command("item", "set-priority", "first", "high").output
    new = job_api.queued_run(run.id)
    assert told.startswith(
        f"The item first waits on the queue cpu with priority high. Its new id is {short_id(new.id)}; the old one leads"
        " to it.\n"
    )
    moved = json.loads(command("item", "move", run.id, "-q", "other", "--json").output)
    assert (moved["queue"], moved["priority"], moved["moved_from"]) == ("other", 2, new.id)
    assert "already" in str(command("item", "set-priority", "first", "high").exception)
