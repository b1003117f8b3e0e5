"""Child flow runs that nobody else would end: of a worker, infrastructure or wrapper that is gone."""

from __future__ import annotations

import asyncio

import pytest

from prefect_launch.core.states import StateType
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.remote.prefect.lost import NOBODY, LostRuns
from prefect_launch.runners.remote.prefect.runner import PrefectRunner
from prefect_launch.runners.remote.prefect.waiting import WaitReasons
from prefect_launch.runners.remote.prefect.wrapper import HEARTBEAT_LABEL, START_KEY
from prefect_launch.server.values import Item, State
from tests.support.waiting import until
from tests.unit.runners.prefect.test_wrapper import child_of, logged, run_again, start, watch
from tests.unit.runners.prefect.world import POOL, PrefectWorld

WORKER = "a-worker"
#: For how long silence counts as a loss, in seconds of a test's clock.
LIMIT = 24.0


async def taken(world: PrefectWorld, runner: PrefectRunner, plan: RunPlan) -> str:
    """Start a run that a worker takes, and then does nothing with."""
    world.fill()
    handle = await start(runner, plan)
    child = child_of(handle)
    await world.server.propose(child, State(type=StateType.PENDING, name="Submitting"))
    await world.server.label_item(child, {"prefect.worker.name": WORKER})
    return handle


# --- what the item says ---


async def test_run_whose_worker_dies_before_it_starts_it_is_told_as_that_and_never_starts(world: PrefectWorld) -> None:
    runner, plan = world.runner(lost_seconds=0.3), world.plan("echo never")
    handle = await taken(world, runner, plan)
    await world.server.beat_worker(POOL, "another-worker", 30)
    end = await watch(runner, handle, plan)
    assert (end.exit_code, end.stopped) == (None, False)
    assert f"is Crashed: the worker '{WORKER}' is gone, which had taken it" in end.describe()
    assert (await run_again(world, handle)).returncode == 0  # What the worker had made comes late.
    assert logged(world, handle) == []


async def test_run_that_is_cancelled_before_its_start_and_that_no_worker_ends_is_told_as_cancelled(
    world: PrefectWorld,
) -> None:
    runner, plan = world.runner(lost_seconds=0.3), world.plan("echo never")
    handle = await taken(world, runner, plan)
    await world.server.propose(child_of(handle), State(type=StateType.CANCELLING, name="Cancelling"))
    end = await watch(runner, handle, plan)
    assert (end.exit_code, end.stopped) == (None, True)
    assert "was cancelled: It had not started, and no worker has ended it" in end.describe()


@pytest.mark.parametrize(
    ("held", "becomes"), [(NOBODY, StateType.CANCELLED), ("a wrapper that has begun", StateType.CANCELLING)]
)
async def test_cancel_that_was_cut_off_before_its_end_is_made_good_by_the_next(
    world: PrefectWorld, held: str, becomes: StateType
) -> None:
    runner, plan = world.runner(), world.plan("echo never")
    child = child_of(await taken(world, runner, plan))
    await world.server.put_input(child, START_KEY, held)
    await runner.cancel(str(child), 1.0)
    found = await world.server.read_item(child)
    assert found is not None
    assert found.state_type is becomes


async def test_infrastructure_that_fails_before_the_start_is_told_in_its_workers_words(world: PrefectWorld) -> None:
    runner, plan = world.runner(), world.plan("echo never")
    handle = await taken(world, runner, plan)
    crashed = State(type=StateType.CRASHED, name="Crashed", message="ErrImagePull: no such image")
    await world.server.propose(child_of(handle), crashed)
    end = await watch(runner, handle, plan)
    assert "is Crashed: ErrImagePull: no such image" in end.describe()


async def test_worker_that_is_gone_is_the_reason_of_a_wait(world: PrefectWorld) -> None:
    runner, plan, reasons = world.runner(), world.plan("echo never"), asyncio.Queue[str]()
    waiting = asyncio.create_task(runner.wait_running(await taken(world, runner, plan), reasons.put))
    assert await asyncio.wait_for(reasons.get(), 60) == f"Submitting: the worker '{WORKER}' is gone, which had taken it"
    waiting.cancel()
    await asyncio.wait({waiting})


async def test_child_that_is_silent_for_too_long_is_lost_and_its_job_ended(world: PrefectWorld) -> None:
    runner, plan = world.runner(lost_seconds=0.3), world.plan("echo begun; sleep 60", stop_seconds=1.0)
    handle = await start(runner, plan)
    end = await watch(runner, handle, plan)
    assert "what ran it is lost" in end.describe()
    process = world.worker.processes[child_of(handle)]
    await until(lambda: process.poll() is not None)


# --- when ---


class Looks:
    """Looks at one child every few seconds of a clock of its own."""

    def __init__(self, world: PrefectWorld, handle: str) -> None:
        self.now = 1000.0
        self._server, self._child = world.server, child_of(handle)
        self._lost = LostRuns(LIMIT, lambda: self.now)

    async def after(self, seconds: float) -> Item:
        """Look until so many seconds have passed; return the child as it is then."""
        due = self.now + seconds
        while True:
            child = await self._server.read_item(self._child)
            assert child is not None
            await self._lost.end(self._server, WaitReasons(self._server), [child])
            if self.now >= due:
                found = await self._server.read_item(self._child)
                assert found is not None
                return found
            self.now = min(self.now + LIMIT / 2, due)


@pytest.mark.parametrize(
    ("pool", "pid", "worker_is_online", "lost_after"),
    [
        ("process", None, False, 1),
        ("process", "worker:1", False, 1),
        ("kubernetes", None, False, 1),
        ("kubernetes", "ml/job-1", False, 360),
        ("process", None, True, 15),
        ("process", "worker:1", True, 15),
        ("kubernetes", None, True, 15),
        ("kubernetes", "ml/job-1", True, None),  # It may wait for a GPU for days.
    ],
)
async def test_run_that_a_worker_has_taken_is_lost_once_nothing_will_start_it(
    world: PrefectWorld, pool: str, pid: str | None, worker_is_online: bool, lost_after: int | None
) -> None:
    handle = await taken(world, world.runner(), world.plan("echo never"))
    with world.server._store.lock:
        stored = world.server._store.pools[POOL]
        stored.pool = stored.pool.model_copy(update={"type": pool})
    await world.server.record_infrastructure(child_of(handle), pid)
    if worker_is_online:
        await world.server.beat_worker(POOL, WORKER, 30)
    looks = Looks(world, handle)
    assert (await looks.after((lost_after or 500) * LIMIT - 1)).state_type is StateType.PENDING
    found = await looks.after(1 if lost_after else 500 * LIMIT)
    assert found.state_type is (StateType.CRASHED if lost_after else StateType.PENDING)


@pytest.mark.parametrize(("held", "lost_after"), [(NOBODY, LIMIT), ("the wrapper's own", 2 * LIMIT)])
async def test_wrapper_that_is_about_to_start_its_job_gets_time_to(
    world: PrefectWorld, held: str, lost_after: float
) -> None:
    handle = await taken(world, world.runner(), world.plan("echo never"))
    await world.server.put_input(child_of(handle), START_KEY, held)
    looks = Looks(world, handle)
    assert (await looks.after(lost_after - 1)).state_type is StateType.PENDING
    assert (await looks.after(1)).state_type is StateType.CRASHED


@pytest.mark.parametrize(
    ("states", "lost_after", "ends"),
    [
        ([StateType.RUNNING], LIMIT, StateType.CRASHED),
        ([StateType.RUNNING, StateType.PAUSED], LIMIT, StateType.CRASHED),
        ([StateType.RUNNING, StateType.CANCELLING], LIMIT, StateType.CANCELLED),
        ([StateType.CANCELLING], LIMIT / 4, StateType.CANCELLED),
    ],
)
async def test_child_whose_wrapper_is_silent_is_lost_in_any_state(
    world: PrefectWorld, states: list[StateType], lost_after: float, ends: StateType
) -> None:
    handle = await taken(world, world.runner(), world.plan("echo never"))
    for state in states:
        await world.server.propose(child_of(handle), State(type=state, name=state.value.title()), force=True)
    looks = Looks(world, handle)
    assert (await looks.after(lost_after - 1)).state_type is states[-1]
    if len(states) > 1 or states[0] is StateType.RUNNING:
        await world.server.label_item(child_of(handle), {HEARTBEAT_LABEL: "a beat"})
        assert (await looks.after(lost_after - 1)).state_type is states[-1]
    assert (await looks.after(1)).state_type is ends


async def test_only_time_in_which_the_server_was_asked_counts_as_silence(world: PrefectWorld) -> None:
    handle = await taken(world, world.runner(), world.plan("echo never"))
    looks = Looks(world, handle)
    assert (await looks.after(0)).state_type is StateType.PENDING
    looks.now += 3600.0  # The server was away: of that, a few seconds count.
    assert (await looks.after(LIMIT / 4)).state_type is StateType.PENDING
    assert (await looks.after(LIMIT / 2)).state_type is StateType.CRASHED


async def test_run_that_waits_for_any_worker_is_never_lost(world: PrefectWorld) -> None:
    world.fill()
    handle = await start(world.runner(), world.plan("echo never"))
    assert (await Looks(world, handle).after(500 * LIMIT)).state_type is StateType.SCHEDULED
