"""Where a child flow run is, why it waits, when it is lost, and how it ended without its wrapper."""

from __future__ import annotations

import asyncio

import pytest

from prefect_launch.core.states import StateType
from prefect_launch.runners.base import RunState
from prefect_launch.runners.remote.prefect.runner import PrefectRunner
from prefect_launch.runners.remote.prefect.wrapper import START_KEY
from prefect_launch.server.values import State
from tests.unit.runners.prefect.test_wrapper import LIMIT_SECONDS, child_of, logged, run_again, start, watch
from tests.unit.runners.prefect.world import POOL, PrefectWorld


async def reason_of(world: PrefectWorld, runner: PrefectRunner, handle: str) -> str:
    reasons = asyncio.Queue[str]()
    waiting = asyncio.create_task(runner.wait_running(handle, reasons.put))
    try:
        return await asyncio.wait_for(reasons.get(), LIMIT_SECONDS)
    finally:
        waiting.cancel()
        await asyncio.wait({waiting})


async def test_pool_without_a_worker_is_the_reason_of_a_wait(world: PrefectWorld) -> None:
    world.worker.close()
    runner, plan = world.runner(), world.plan("exit 0")
    handle = await start(runner, plan)
    assert await reason_of(world, runner, handle) == f"the work pool {POOL!r} has no worker online"


async def test_paused_pool_is_the_reason_of_a_wait(world: PrefectWorld) -> None:
    world.fill()
    runner, plan = world.runner(), world.plan("exit 0")
    handle = await start(runner, plan)
    assert await reason_of(world, runner, handle) == f"the work pool {POOL!r} is paused"


async def test_worker_s_word_is_the_reason_of_a_wait(world: PrefectWorld) -> None:
    world.fill()
    runner, plan = world.runner(), world.plan("exit 0")
    handle = await start(runner, plan)
    pending = State(type=StateType.PENDING, name="InfrastructurePending", message="0/3 nodes have 2 GPUs")
    await world.server.propose(child_of(handle), pending)
    assert await reason_of(world, runner, handle) == "InfrastructurePending: 0/3 nodes have 2 GPUs"


async def test_pool_that_was_deleted_is_the_reason_of_a_wait(world: PrefectWorld) -> None:
    world.fill()
    runner, plan = world.runner(), world.plan("exit 0")
    handle = await start(runner, plan)
    await world.server.delete_pool(POOL)
    assert "deleted" in await reason_of(world, runner, handle)


async def test_pool_that_is_deleted_and_made_again_gets_the_next_runs(world: PrefectWorld) -> None:
    runner = world.runner()
    await start(runner, world.plan("true"))
    await world.server.delete_pool(POOL)
    world.server.add_pool(POOL, "process")
    child = await world.server.read_item(child_of(await start(runner, world.plan("true"))))
    assert child is not None
    assert child.work_pool_name == POOL


async def test_run_that_its_worker_claimed_and_never_started_is_stopped_at_once_and_for_good(
    world: PrefectWorld,
) -> None:
    world.fill()
    runner, plan = world.runner(), world.plan("echo never")
    handle = await start(runner, plan)
    await world.server.propose(child_of(handle), State(type=StateType.PENDING, name="Pending"))
    await asyncio.wait_for(runner.stop(handle, 30.0), LIMIT_SECONDS / 4)
    [found] = await runner.find({})
    assert found.state is RunState.EXITED
    end = await watch(runner, handle, plan)
    assert (end.stopped, end.preempted, end.describe()) == (True, False, "it had not started")
    assert await world.server.read_input(child_of(handle), START_KEY) is not None  # No wrapper can start it any more.


async def test_run_whose_worker_ends_it_for_its_stop_is_told_as_stopped_alone(world: PrefectWorld) -> None:
    world.fill()
    runner, plan = world.runner(), world.plan("echo never")
    handle = await start(runner, plan)
    said = {"prefect-launch": 1, "exit_code": 143, "terminated": True, "stopped": True}
    await world.server.propose(child_of(handle), State(type=StateType.CANCELLED, name="Cancelled", data=said))
    end = await watch(runner, handle, plan)
    assert (end.stopped, end.preempted, end.describe()) == (True, False, "ended by signal SIGTERM (exit code 143)")


async def test_worker_that_cannot_start_a_run_is_quoted_in_the_end_and_in_the_log(world: PrefectWorld) -> None:
    runner, plan = world.runner(), world.plan("echo never", options={"work-pool": POOL, "python": "false"})
    handle = await start(runner, plan)
    end = await watch(runner, handle, plan)
    assert (end.exit_code, end.succeeded, end.stopped) == (None, False, False)
    assert f"in the work pool {POOL!r} is Crashed: Process exited with status code: 1." in end.describe()


async def test_diagnosis_tells_of_the_pool_and_whether_a_worker_serves_it(world: PrefectWorld) -> None:
    runner = world.runner()
    world.worker.close()
    found = await runner.diagnose({"work-pool": POOL})
    assert [(one.name, one.is_ok) for one in found] == [
        ("reachable", True),
        ("work pool", True),
        ("worker online", False),
    ]
    assert f"prefect worker start --pool {POOL}" in found[-1].detail
    await world.server.beat_worker(POOL, "a-worker", 30)
    assert all(one.is_ok for one in await runner.diagnose({"work-pool": POOL}))
    for options, word in (({}, "names no work pool"), ({"work-pool": "gone"}, "There is no work pool 'gone'")):
        last = (await runner.diagnose(options))[-1]
        assert (last.name, last.is_ok, word in last.detail) == ("work pool", False, True)
    wrong = (await runner.diagnose({"work-pool": POOL, "work-queue": "defalt"}))[-1]
    assert (wrong.is_ok, "'default'" in wrong.detail) == (False, True)


@pytest.mark.parametrize(
    ("told", "then"),
    [(StateType.CANCELLING, "Cancelled"), (StateType.CRASHED, "Crashed"), (StateType.CANCELLED, "Gone")],
)
async def test_wrapper_starts_no_job_of_a_run_that_has_ended_or_is_to_end(
    world: PrefectWorld, told: StateType, then: str
) -> None:
    world.fill()
    runner, plan = world.runner(), world.plan("echo never")
    handle = await start(runner, plan)
    child = await world.server.read_item(child_of(handle))
    assert child is not None
    await world.server.propose(child.id, State(type=StateType.PENDING, name="Pending"))
    await world.server.propose(child.id, State(type=told, name=then))
    assert (await run_again(world, handle)).returncode == 0
    ended = await world.server.read_item(child.id)
    assert ended is not None
    assert (ended.state_name, ended.start_time) == (then, ended.end_time)
    assert logged(world, handle) == []
