"""A sweep's scheduler that is killed at each of its awaits, and one whose server loses each of its requests: the sweep
ends as if nothing had been."""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from prefect_launch.core.metrics import Metrics
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import AnswerLostError, ServerFailedError, ServerUnavailableError
from prefect_launch.server.metrics import write_metrics
from prefect_launch.server.values import State
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.samplers.registry import make_sampler
from prefect_launch.sweeps.scheduler import EndSweep, Outcome
from prefect_launch.sweeps.sweep_run import config_of, read_sweep
from prefect_launch.sweeps.trial_items import TrialItem, TrialRecord
from prefect_launch.sweeps.trial_reader import read_trials
from prefect_launch.testing import InMemoryApi
from tests.support.sweeping import PATIENCE_SECONDS, Sweep, loss, opened

Work = Callable[[Sweep], Coroutine[Any, Any, None]]


@types.coroutine
def _counted(work: Coroutine[Any, Any, EndSweep], count: Callable[[], None]) -> Generator[Any, Any, EndSweep]:
    """Do the work; count each time that it waits for something."""
    error: BaseException | None = None
    while True:
        try:
            waited = work.send(None) if error is None else work.throw(error)
        except StopIteration as end:
            found: EndSweep = end.value
            return found
        count()
        try:
            yield waited
            error = None
        except BaseException as raised:  # noqa: BLE001 - it is the work's
            error = raised


async def run_killed(sweep: Sweep, at: int) -> EndSweep | None:
    """Run a scheduler that is killed at the await of this number; `None` when it was. Each call to the server has an
    await before it takes effect, and one after it."""
    seen = 0

    def count() -> None:
        nonlocal seen
        seen += 1
        if seen == at:
            life.cancel()

    async def wait(method: str) -> None:
        if asyncio.current_task() is life:
            await asyncio.sleep(0)

    async def live() -> EndSweep:
        return await _counted(sweep.scheduler().run(), count)

    life = asyncio.create_task(live())
    sweep.api.server.after_call = wait
    try:
        await asyncio.wait({life}, timeout=PATIENCE_SECONDS)
        assert life.done(), f"it hangs, killed at await {at}"
        return None if life.cancelled() else life.result()
    finally:
        sweep.api.server.after_call = None
        life.cancel()


# --- what a sweep does when nobody is killed ---


async def run_trials(sweep: Sweep) -> None:
    """Run its trials as an agent does."""
    await sweep.work(loss)


async def fail_the_second(sweep: Sweep) -> None:
    """Run its trials, of which one fails."""
    await sweep.work(lambda params: None if params["lr"] == 0.2 else loss(params))


async def report_one_step(sweep: Sweep) -> None:
    """Run its trials so that each reports one step, and only the best one ends by itself, after all others."""
    server = sweep.api.server
    while True:
        items = await sweep.items()
        open_items = [item for item in items if not item.is_terminal]
        sweep.most_open = max(sweep.most_open, len(open_items))
        for item in open_items:
            params = item.parameters["overrides"]["run_config"]
            if item.state_type is StateType.CANCELLING:
                await server.propose(item.id, State.of(ItemState.CANCELLED))
            elif item.state_type is not StateType.RUNNING:
                metrics = Metrics()
                metrics.add(0, loss(params))
                await write_metrics(server, item.id, metrics)
                await server.propose(item.id, State.of(ItemState.CLAIMED))
                await server.propose(item.id, State.of(ItemState.RUNNING))
            elif params["lr"] == 0.3 and len(items) == 4 and len(open_items) == 1:
                await server.propose(item.id, State.of(ItemState.COMPLETED))
        await asyncio.sleep(0.002)


async def cancel_trials(sweep: Sweep) -> None:
    """Stop trials when asked, and start none."""
    while True:
        for item in await sweep.items():
            if item.state_type is StateType.CANCELLING:
                await sweep.api.server.propose(item.id, State.of(ItemState.CANCELLED))
        await asyncio.sleep(0.002)


@dataclass(frozen=True)
class Case:
    """A sweep, and how it ends.

    Attributes:
        config: of the sweep.
        work: what its agent does.
        end: how it ends.
        states: of its trials, then.
        is_stopped: whether it is cancelled once two trials are queued.
        every: so many awaits lie between two that it is killed at.
    """

    config: Mapping[str, Any]
    work: Work
    end: EndSweep
    states: Mapping[TrialState, int]
    is_stopped: bool = False
    every: int = 1

    @asynccontextmanager
    async def opened(self, api: InMemoryApi) -> AsyncIterator[Sweep]:
        """The sweep, with its agent."""
        async with opened(api, **self.config) as sweep:
            if self.is_stopped:
                await sweep.die_once_it_has_queued()
                await sweep.enter(ItemState.CANCELLING)
            agent = asyncio.create_task(self.work(sweep))
            try:
                yield sweep
            finally:
                agent.cancel()
                with suppress(asyncio.CancelledError):
                    await agent

    async def check(self, sweep: Sweep, end: EndSweep, before: Mapping[int, TrialRecord], when: str) -> None:
        """See that a sweep has ended as it does when nobody is killed."""
        assert end == self.end, when
        config = config_of(await read_sweep(sweep.session, sweep.id))
        trials = await read_trials(sweep.api.server, sweep.id, config)
        assert dict(trials.counts) == self.states, when
        assert await sweep.numbers() == [(k, 1) for k in range(sum(self.states.values()))], when
        assert sweep.most_open <= 2, when
        records = {number: one.record for number, one in trials.items.items()}
        assert {number: records[number] for number in before} == before, when
        if config.method == "bayes":
            assert len({record.params["lr"] for record in records.values()}) == len(records), when
            return
        sampler = make_sampler(config, str(sweep.id))
        for number, record in records.items():
            assert record.params == sampler.ask(History(tuple(Trial(k, {}) for k in range(number)))), when


def all_of(count: int) -> EndSweep:
    """The end of a sweep whose trials have all ended."""
    return EndSweep(Outcome.FINISHED, f"All {count} trials have ended.")


FINISHED, FAILED = TrialState.FINISHED, TrialState.FAILED
CASES = {
    "grid": Case(
        {"method": "grid", "run_cap": 3},
        fail_the_second,
        EndSweep(Outcome.FINISHED, "All 3 trials have ended. 1 of them failed."),
        {FINISHED: 2, FAILED: 1},
    ),
    "random": Case({"method": "random", "run_cap": 3}, run_trials, all_of(3), {FINISHED: 3}),
    "bayes": Case({"method": "bayes", "run_cap": 4}, run_trials, all_of(4), {FINISHED: 4}, every=5),
    "early stop": Case(
        {"early_terminate": {"type": "hyperband", "min_iter": 1, "eta": 10}},
        report_one_step,
        all_of(4),
        {FINISHED: 1, TrialState.PRUNED: 3},
        every=2,
    ),
    "stop": Case(
        {"method": "random", "run_cap": 9},
        cancel_trials,
        EndSweep(Outcome.STOPPED, "The sweep was stopped."),
        {TrialState.CANCELLED: 2},
        is_stopped=True,
    ),
}


@pytest.fixture(autouse=True)
def _tpe_from_the_second_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TPE choose the points of small sweeps, too."""
    monkeypatch.setattr("prefect_launch.sweeps.samplers.bayes._STARTUP_TRIALS", 2)


async def records_of(sweep: Sweep) -> dict[int, TrialRecord]:
    """What the items of a sweep are trials of."""
    read = filter(None, map(TrialItem.of, await sweep.items()))
    return {one.record.number: one.record for one in read}


@pytest.mark.parametrize("name", CASES)
async def test_sweep_whose_scheduler_is_killed_at_any_await_ends_as_if_it_had_not_been(
    job_api: InMemoryApi, name: str
) -> None:
    case = CASES[name]
    at, was_killed = 1, True
    while was_killed:
        async with case.opened(job_api) as sweep:
            end = await run_killed(sweep, at)
            before = await records_of(sweep)
            was_killed = end is None
            await case.check(sweep, end or await sweep.run(), before, f"killed at await {at}")
        at += case.every
    assert at > 20, "the kills have met too few awaits"


@pytest.mark.parametrize("name", ["random", "stop"])
async def test_sweep_of_two_schedulers_of_which_one_is_killed_ends_as_if_there_were_one(
    job_api: InMemoryApi, name: str
) -> None:
    case = CASES[name]
    at, was_killed = 1, True
    while was_killed:
        async with case.opened(job_api) as sweep:
            other = asyncio.create_task(sweep.run())
            end = await run_killed(sweep, at)
            was_killed = end is None
            before = await records_of(sweep)
            await case.check(sweep, await other, before, f"killed at await {at}")
            assert end in (None, case.end)
        at += 3


LOST = {
    "never sent": ServerUnavailableError("The server is away."),
    "refused": ServerFailedError("HTTP 500"),
    "answer lost": AnswerLostError("The answer was lost."),
}


@pytest.mark.parametrize("how", LOST)
@pytest.mark.parametrize("name", ["grid", "stop"])
async def test_sweep_whose_scheduler_loses_any_one_request_or_answer_ends_as_if_it_had_not(
    job_api: InMemoryApi, name: str, how: str
) -> None:
    case, server = CASES[name], job_api.server
    at, was_lost = 1, True
    while was_lost:
        seen = 0

        async def lose(method: str) -> None:
            nonlocal seen
            if asyncio.current_task() is life:  # noqa: B023 - the one of this round
                seen += 1
                if seen == at:  # noqa: B023
                    raise LOST[how]

        async with case.opened(job_api) as sweep:
            life = asyncio.create_task(sweep.scheduler().run())
            if how == "answer lost":
                server.after_call = lose
            else:
                server.before_call = lose
            try:
                end = await asyncio.wait_for(life, PATIENCE_SECONDS)
            finally:
                server.before_call = server.after_call = None
            was_lost = seen >= at
            await case.check(sweep, end, {}, f"call {at} lost")
        at += 1
    assert at > 5, "too few calls were lost"
