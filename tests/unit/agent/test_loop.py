"""The loop: items run once, in order, within bounds; what is cancelled is stopped; the agent stays alive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import InfrastructureError, ServerFailedError, ServerUnavailableError, SourceError
from prefect_launch.runners.base import ExitStatus, RunPlan, nothing
from prefect_launch.server.values import ItemDraft, State
from prefect_launch.testing import InMemoryMachine, InMemoryRunner, Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually, outcome_data


async def test_loop_runs_all_items_and_ends_when_the_queue_is_empty(bench: Bench) -> None:
    items = await bench.add(5)
    await bench.agent(max_jobs=2).loop(until_empty=True)
    assert [await bench.states(item) for item in items] == [["Queued", "Pending", "Running", "Completed"]] * 5
    assert len(bench.machine.started) == len(set(bench.machine.started)) == 5
    assert bench.machine.runs == {}


async def test_item_shows_its_log_its_outputs_and_where_it_ran(bench: Bench) -> None:
    bench.plays(Script(log=(b"hello\n",), late_log=(b"bye",), outputs={"outputs.json": b'{"acc": 0.9}'}))
    (item,) = await bench.add()
    await bench.agent("box").loop(until_empty=True)
    assert await bench.log(item) == "hello\nbye"
    (artifact,) = await bench.server.list_artifacts(item.id)
    assert "0.9" in artifact["data"]
    running = (await bench.server.read_states(item.id))[2]
    assert (running.message or "").startswith(f"Runs on box (local-container launch-{item.id}-1")
    assert (await bench.read(item.id)).infrastructure_pid == f"launch-{item.id}-1"


async def test_failing_item_says_its_exit_code(bench: Bench) -> None:
    bench.plays(Script(exit_code=3))
    (item,) = await bench.add()
    await bench.agent().loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_type is StateType.FAILED
    assert "[run] The job ended" in found.message
    assert outcome_data(found)["exit_code"] == 3


@pytest.mark.parametrize("step", ["prepare_error", "create_error", "start_error"])
async def test_machine_that_fails_before_the_start_crashes_the_item_and_leaves_nothing(bench: Bench, step: str) -> None:
    errors: dict[str, Any] = {step: InfrastructureError("the disk is full")}
    bench.plays(Script(**errors))
    (item,) = await bench.add()
    await bench.agent().loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_type is StateType.CRASHED
    assert "The disk is full" in found.message
    assert bench.machine.runs == {}


async def test_code_that_cannot_be_had_fails_the_item(bench: Bench) -> None:
    bench.plays(Script(prepare_error=SourceError("no such commit")))
    (item,) = await bench.add()
    await bench.agent().loop(until_empty=True)
    assert (await bench.read(item.id)).message == "[agent] No such commit"


async def test_no_more_items_run_than_the_agent_may(bench: Bench) -> None:
    bench.plays(Script(seconds=0.1))
    await bench.add(6)
    most = 0

    async def count(method: str) -> None:
        nonlocal most
        most = max(most, len(bench.machine.running))

    bench.server.before_call = count
    await bench.agent(max_jobs=2).loop(until_empty=True)
    assert most == 2


async def test_agent_without_a_limit_runs_all_at_once(bench: Bench) -> None:
    bench.plays(Script(seconds=0.3))
    items = await bench.add(8)
    async with bench.running(bench.agent(max_jobs=-1)):
        for item in items:
            await bench.until(item, StateType.RUNNING)
        assert len(bench.machine.running) == 8


async def test_agent_that_may_run_nothing_takes_nothing(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.agent(max_jobs=0).loop(max_runtime_seconds=0.3)
    assert await bench.states(item) == ["Queued"]


async def test_more_urgent_item_that_comes_later_runs_first(bench: Bench) -> None:
    (low,) = await bench.add(priority="low")
    (usual,) = await bench.add()
    (critical,) = await bench.add(priority=1)
    await bench.agent().loop(until_empty=True)
    assert bench.machine.started == [f"launch-{item.id}-1" for item in (critical, usual, low)]


async def test_loop_ends_when_its_time_is_up_and_its_work_goes_on_under_the_next(bench: Bench) -> None:
    bench.plays(Script(seconds=60, late_log=(b"done\n",)))
    (item,) = await bench.add()
    await bench.agent().loop(max_runtime_seconds=0.4)
    assert (await bench.read(item.id)).state_type is StateType.RUNNING
    await bench.finish_under(bench.agent())
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert len(bench.machine.started) == 1
    assert await bench.log(item) == "done"


async def test_event_wakes_the_agent_long_before_its_next_poll(bench: Bench) -> None:
    async with bench.running(bench.agent(poll_seconds=30)):
        await eventually(_watching(bench), lambda count: count == 1)
        (item,) = await bench.add()
        await bench.until(item, StateType.COMPLETED)


async def test_poll_finds_items_of_which_no_event_came(bench: Bench) -> None:
    bench.server.down()
    agent = bench.agent(poll_seconds=0.1)
    async with bench.running(agent):
        await asyncio.sleep(0.1)
        bench.server.up()
        (item,) = await bench.add()
        await bench.until(item, StateType.COMPLETED)


async def test_item_that_waits_is_cancelled_without_an_agent(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.server.propose(item.id, State.of(ItemState.CANCELLING))
    assert (await bench.read(item.id)).state_type is StateType.CANCELLED
    await bench.agent().loop(until_empty=True)
    assert bench.machine.started == []


@pytest.mark.parametrize("deaf", [False, True])
async def test_running_item_that_is_cancelled_is_stopped_even_when_it_ignores_term(bench: Bench, deaf: bool) -> None:
    bench.plays(Script(seconds=60, ignores_term=deaf))
    (item,) = await bench.add()
    async with bench.running(bench.agent(poll_seconds=30)):
        await bench.until(item, StateType.RUNNING)
        await bench.move(item, ItemState.CANCELLING)
        found = await bench.until(item, StateType.CANCELLED)
    assert found.message.startswith("Stopped after")
    assert outcome_data(found)["signal"] == ("SIGKILL" if deaf else "SIGTERM")
    assert bench.machine.running == []


async def test_item_that_is_cancelled_while_its_start_is_recorded_does_not_run_on(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()

    async def cancel(method: str) -> None:
        if method == "record_infrastructure":
            await bench.move(item, ItemState.CANCELLING)

    bench.server.before_call = cancel
    await bench.agent().loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_type is StateType.CANCELLED
    assert found.message.startswith("Stopped after")
    assert bench.machine.running == []
    assert bench.machine.runs == {}


@pytest.mark.parametrize(
    "fault",
    [ServerFailedError("500 to PATCH"), ServerUnavailableError("503 to PATCH"), ValueError("no JSON")],
    ids=lambda fault: type(fault).__name__,
)
async def test_run_that_the_server_cannot_record_ends_as_it_does_and_says_so(bench: Bench, fault: Exception) -> None:
    bench.plays(Script(seconds=0.2, log=(b"hello\n",)))
    (item,) = await bench.add()

    async def fail(method: str) -> None:
        if method == "record_infrastructure":
            raise fault

    bench.server.before_call = fail
    await bench.agent().loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_type is StateType.COMPLETED
    assert "The server did not record what it runs in; the agent's log says why." in found.message
    assert await bench.log(item) == "hello"


async def test_run_that_the_server_never_answers_about_is_kept_to_its_time_limit(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add(timeout=0.2)

    async def hang(method: str) -> None:
        if method == "record_infrastructure":
            await asyncio.Event().wait()

    bench.server.before_call = hang
    await bench.agent().loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_type is StateType.FAILED
    assert "The server did not record what it runs in" in found.message


async def test_run_is_recorded_once_the_server_can(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add()
    failures = [ServerFailedError("500"), ServerUnavailableError("away"), ServerFailedError("500")]

    async def fail(method: str) -> None:
        if method == "record_infrastructure" and failures:
            raise failures.pop()

    bench.server.before_call = fail
    async with bench.running(bench.agent()):
        await eventually(lambda: bench.read(item.id), lambda found: found.infrastructure_pid is not None)
        await bench.move(item, ItemState.CANCELLING)
        found = await bench.until(item, StateType.CANCELLED)
    assert "record" not in found.message


@pytest.mark.parametrize("fault", [ServerFailedError("500 to PATCH"), ServerUnavailableError("503 to PATCH")], ids=str)
async def test_run_that_cannot_be_forgotten_is_tried_again_all_the_same(bench: Bench, fault: Exception) -> None:
    bench.plays(Script(exit_code=3), Script())
    (item,) = await bench.add(retries={"max": 1, "on": ["failed"], "delay": 0})

    async def fail(method: str) -> None:
        if method == "record_infrastructure":
            raise fault

    bench.server.before_call = fail
    async with bench.running(bench.agent(poll_seconds=0.2)):
        await bench.until(item, StateType.COMPLETED)


class OutOfSight(InMemoryRunner):
    """A runner that can watch no run."""

    async def watch(self, handle: str, plan: RunPlan, *, ended: Callable[[], None] = nothing) -> ExitStatus:
        raise InfrastructureError("out of sight")


async def test_run_that_cannot_be_watched_is_not_recorded_once_its_item_waits_again(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add(retries={"max": 1, "on": ["crashed"], "delay": 3600})
    held: list[str] = []
    released = asyncio.Event()

    async def hold(method: str) -> None:
        if method == "record_infrastructure" and not held:
            held.append(method)
            await released.wait()

    bench.server.before_call = hold
    settings = {"name": "box", "queues": [QUEUE], "home": bench.folder, "poll_seconds": 0.05}
    runner = OutOfSight(bench.folder, bench.machine)
    async with bench.running(LaunchAgent(bench.api, settings, runners={RESOURCE: runner})):
        await bench.until_state(item, ItemState.AWAITING_RETRY)
        released.set()
        await bench.until_nothing_runs()
    assert held
    assert (await bench.read(item.id)).infrastructure_pid is None


async def test_item_that_ends_by_itself_while_it_is_cancelled_is_cancelled(bench: Bench) -> None:
    bench.plays(Script(seconds=0.2))
    (item,) = await bench.add()

    async def cancel(method: str) -> None:
        if method == "list_artifacts" or (method == "propose" and bench.machine.runs and not bench.machine.running):
            bench.server.before_call = None
            await bench.server.propose(item.id, State.of(ItemState.CANCELLING))

    async with bench.running(bench.agent(poll_seconds=30)):
        await bench.until(item, StateType.RUNNING)
        bench.server.before_call = cancel
        await bench.until(item, StateType.CANCELLED)


async def test_item_that_was_deleted_while_it_ran_leaves_nothing_and_the_agent_goes_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.item.ownership.CHECK_SECONDS", 0.1)
    bench.plays(Script(seconds=60), Script())
    first, second = await bench.add(2)
    async with bench.running(bench.agent()):
        await bench.until(first, StateType.RUNNING)
        await bench.server.delete_item(first.id)
        await bench.until(second, StateType.COMPLETED)
        await bench.until_nothing_runs()


async def test_server_away_under_a_running_job_gets_its_state_and_log_when_it_is_back(bench: Bench) -> None:
    bench.plays(Script(seconds=0.3, log=(b"one\n",), late_log=(b"two\n",)))
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.RUNNING)
        bench.server.down()
        await asyncio.sleep(0.8)
        bench.server.up()
        await bench.until(item, StateType.COMPLETED)
    assert await bench.log(item) == "one\ntwo"


async def test_server_that_is_not_there_at_the_start_is_waited_for(bench: Bench) -> None:
    (item,) = await bench.add()
    bench.server.down()
    async with bench.running(bench.agent()):
        await asyncio.sleep(0.3)
        bench.server.up()
        await bench.until(item, StateType.COMPLETED)


async def test_server_that_fails_over_one_request_does_not_end_the_agent(bench: Bench) -> None:
    bench.plays(Script(log=(b"hello\n",)))
    (item,) = await bench.add()
    failed: list[str] = []

    async def fail_once(method: str) -> None:
        if method not in failed:
            failed.append(method)
            raise ServerFailedError("500")

    bench.server.before_call = fail_once
    await bench.agent().loop(until_empty=True)
    bench.server.before_call = None
    assert {"propose", "poll", "record_infrastructure", "write_logs"} <= set(failed)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED


async def test_item_with_parameters_that_are_no_spec_fails_and_the_agent_goes_on(bench: Bench) -> None:
    queue = await bench.api.acall(lambda session: session.queue(QUEUE))
    # Of somebody who let the server check nothing.
    bad = ItemDraft(
        name="bad", parameters={"jobb": 1, "overrides": "x"}, idempotency_key="bad", enforce_parameter_schema=False
    )
    none = ItemDraft(name="none", parameters={}, idempotency_key="none")
    drafts = [await bench.server.create_item(queue.deployment_id, draft) for draft in (bad, none)]
    (good,) = await bench.add()
    await bench.agent().loop(until_empty=True)
    for item, words in zip(drafts, ("Unknown launch option 'jobb'", "Exactly one of job"), strict=True):
        assert item is not None
        found = await bench.read(item.id)
        assert found.state_type is StateType.FAILED
        assert found.message.startswith(f"[agent] {words}")
    assert (await bench.read(good.id)).state_type is StateType.COMPLETED


async def test_item_of_a_job_that_is_gone_fails_with_its_name(bench: Bench) -> None:
    queue = await bench.api.acall(lambda session: session.queue(QUEUE))
    draft = ItemDraft(name="bad", parameters={"job": "nobody"}, idempotency_key="bad")
    item = await bench.server.create_item(queue.deployment_id, draft)
    assert item is not None
    await bench.agent().loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_type is StateType.FAILED
    assert "[agent] Unknown job 'acme/digits/nobody'" in found.message


async def test_retried_item_runs_again_as_its_next_attempt(bench: Bench) -> None:
    bench.plays(Script(exit_code=1), Script())
    (item,) = await bench.add()
    await bench.agent().loop(until_empty=True)
    await bench.move(item, ItemState.QUEUED)
    await bench.agent().loop(until_empty=True)
    assert (await bench.read(item.id)).state_type is StateType.COMPLETED
    assert bench.machine.started == [f"launch-{item.id}-1", f"launch-{item.id}-2"]


async def test_four_agents_run_each_of_forty_items_once(bench: Bench) -> None:
    items = await bench.add(40)
    agents = [bench.agent(f"box-{number}", max_jobs=2, machine=InMemoryMachine()) for number in range(4)]
    await asyncio.gather(*(agent.loop(until_empty=True) for agent in agents))
    machines = [agent._runners["local-container"].machine for agent in agents]  # type: ignore[attr-defined]
    started = sorted(name for machine in machines for name in machine.started)
    assert started == sorted(f"launch-{item.id}-1" for item in items)
    for item in items:
        assert await bench.states(item) == ["Queued", "Pending", "Running", "Completed"]


async def test_two_agents_hold_the_limit_of_a_queue(bench: Bench) -> None:
    await asyncio.to_thread(bench.api.update_run_queue, QUEUE, concurrency_limit=2)
    bench.plays(Script(seconds=0.05))
    items = await bench.add(10)
    most = 0

    async def count(method: str) -> None:
        nonlocal most
        most = max(most, len(bench.machine.running))

    bench.server.before_call = count
    agents = [bench.agent(f"box-{number}", max_jobs=4) for number in range(2)]
    await asyncio.gather(*(agent.loop(until_empty=True) for agent in agents))
    assert most == 2
    for item in items:
        assert (await bench.read(item.id)).state_type is StateType.COMPLETED


def _watching(bench: Bench):  # type: ignore[no-untyped-def]
    async def look() -> int:
        return bench.server.watching

    return look
