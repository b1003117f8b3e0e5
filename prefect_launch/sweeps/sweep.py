"""Sweeps from Python: `sweep`, which begins one, and `Sweep`, the handle on it.

The sweep's scheduler runs in the background of this process, or on an agent. In a flow, a sweep that runs here is a
subflow of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import anyio
import anyio.to_thread

from prefect_launch.client.api import default_api
from prefect_launch.client.background import Followed, follower
from prefect_launch.client.item_handle import ItemHandle
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.event_loop import run_sync
from prefect_launch.core.signature import with_arguments_of
from prefect_launch.core.states import StateType
from prefect_launch.errors import SchedulerError, SpecError
from prefect_launch.sweeps import flow
from prefect_launch.sweeps.control import ResumedBy, pause_sweep, resume_sweep, retry_trials, stop_sweep
from prefect_launch.sweeps.history import Trial
from prefect_launch.sweeps.queued import queue_sweep
from prefect_launch.sweeps.sweep_file import read_sweep_file
from prefect_launch.sweeps.sweep_run import config_of, find_sweep, read_sweep
from prefect_launch.sweeps.trial_items import SweepTrials, best_trial
from prefect_launch.sweeps.trial_reader import read_trials

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.queues.session import Session
    from prefect_launch.server.values import Item
    from prefect_launch.sweeps.config import SweepConfig
    from prefect_launch.sweeps.runner import SweepRunner

_logger = logging.getLogger(__name__)

_POLL_MIN_SECONDS: Final = 0.1
_POLL_MAX_SECONDS: Final = 1.0


def sweep(
    config: Mapping[str, Any] | str | Path,
    queue: str | None = None,
    job: str | None = None,
    docker_image: str | None = None,
    num_workers: int | None = None,
    run_cap: int | None = None,
    prior_runs: Sequence[str] | None = None,
    project: str | None = None,
    entity: str | None = None,
    on_agent: bool = False,
) -> Sweep:
    """Begin a sweep, and return as soon as it has begun. Arguments win over the config.

    This process queues its trials in the background, and waits for its end at its own exit, as a flow does at its end;
    when it is interrupted (SIGINT, SIGTERM), or its flow is cancelled, it stops the sweep with its trials first. Called
    in a flow, the sweep is a subflow of it; a retry of the flow continues it, and runs none of its trials again.

    Args:
        config: the content of a sweep file, or the path of one.
        queue: where its trials are queued; by default `launch.queue` of the config.
        job: that its trials run, `entity/project/name:alias` or a shorter form; by default the config's.
        docker_image: that its trials run, in place of a job.
        num_workers: trials at a time, 1 to 1,000; by default the config's, or 8.
        run_cap: the most trials, 1 or more; by default the config's.
        prior_runs: ids of earlier sweeps, and of other items, that its sampler learns from.
        project: of its trials; by default the config's, or the job's.
        entity: of its trials, likewise.
        on_agent: put the sweep on its queue, for an agent to run, as `prefect-launch sweep create` does. Then this
            process need not stay, and the sweep is no subflow and outlives a flow that begins it.

    Returns:
        A handle on the sweep.

    Raises:
        SpecError: for a wrong config, and when it names no queue or no job.
        InputError: when its first trials do not match the job's schema.
        NotFoundError: for an unknown queue, job, sampler or prior run.
        LaunchError: as `launch_add` does for a trial. Nothing is queued in any of these cases.
    """
    given: dict[str, Any] = {
        **{"config": config, "queue": queue, "job": job, "docker_image": docker_image, "num_workers": num_workers},
        **{"run_cap": run_cap, "prior_runs": prior_runs, "project": project, "entity": entity, "on_agent": on_agent},
    }
    if not on_agent:
        follower().end_runs_at_sigterm()  # In the program's own thread, which the coroutine may not run in.
    return run_sync(asweep(**given))


@with_arguments_of(sweep)
async def asweep(arguments: Mapping[str, Any]) -> Sweep:
    """`sweep` for async code; arguments, result and errors are the same."""
    given = dict(arguments)
    on_agent = given.pop("on_agent")
    config = given["config"]
    if isinstance(config, (str, Path)):
        given["config"] = await anyio.to_thread.run_sync(read_sweep_file, config)
    elif not isinstance(config, Mapping):
        raise SpecError(f"The sweep's config must be a mapping, or the path of a sweep file, not {config!r}.")
    api = default_api()
    if on_agent:
        return await Sweep.afind(str(await queue_sweep(api, given)))
    sweep_id = await flow.begin_sweep(api, given)
    await _run_here(api, sweep_id)
    return await Sweep.afind(str(sweep_id))


async def _run_here(api: Api, sweep_id: UUID) -> None:
    """Run a sweep in the background of this process, unless it has ended well, or runs already."""
    async with api.open() as session:
        state = (await read_sweep(session, sweep_id)).state_type
    if state is StateType.PENDING:
        await _follow(api, sweep_id)
    elif state is not StateType.COMPLETED and not _followed(sweep_id):
        # An earlier try of the flow around the call began it, and has died, or the sweep failed or was stopped.
        await _resume(api, sweep_id, {})


async def _resume(api: Api, sweep_id: UUID, given: Mapping[str, Any]) -> None:
    await _go_on(api, sweep_id, await resume_sweep(api, sweep_id, given))


async def _go_on(api: Api, sweep_id: UUID, resumed_by: ResumedBy | None) -> None:
    """Run a resumed sweep in the background of this process, when nobody else does."""
    if resumed_by is ResumedBy.CALLER:
        for ending in _followed(sweep_id):
            await asyncio.wait([asyncio.wrap_future(ending.end)])
        await _follow(api, sweep_id)


async def _follow(api: Api, sweep_id: UUID) -> None:
    here = await follower().follow(FollowedSweep, lambda followed: followed.run(api, sweep_id))
    if not here.started.done():
        here.end.result()


def _followed(sweep_id: UUID) -> list[Followed]:
    """Return what runs a sweep in the background of this process; nothing when it runs elsewhere, or nowhere."""
    return [one for one in follower().living if isinstance(one, FollowedSweep) and one.sweep_id == sweep_id]


class FollowedSweep(Followed):
    """A sweep whose scheduler runs in the background of this process."""

    sweep_id: UUID | None = None
    _runner: SweepRunner | None = None

    @property
    def id(self) -> str:
        return f"sweep {self.sweep_id}"

    async def run(self, api: Api, sweep_id: UUID) -> None:
        """Run the sweep to its end."""
        self.sweep_id = sweep_id
        await flow.run_sweep(api, sweep_id, started=self.begun)

    def begun(self, runner: SweepRunner) -> None:
        """Take the scheduler, which is about to begin."""
        self._runner = runner
        if self.stop_requested:
            runner.stop()
        if not self.started.done():
            self.started.set_result(None)

    def stop(self) -> None:
        self.stop_requested = True
        if self._runner is not None:
            self._runner.stop()


@dataclass(frozen=True)
class TrialRun(Trial):
    """One trial of a sweep, as `Sweep.runs` returns it.

    Attributes:
        run: its newest item.
    """

    run: QueuedRun = field(kw_only=True)


class Sweep(ItemHandle):
    """Handle on a sweep.

    Each method has a form for async code with an `a` before its name; `wait`, whose name with it would be a keyword,
    has `wait_async`.

    Attributes:
        id: of the sweep, which is its flow run's (a UUID as text).
        name: the flow run's.
    """

    def __repr__(self) -> str:
        return f"<Sweep {self.name} {self.id}>"

    @classmethod
    def find(cls, sweep: str) -> Sweep:
        """Find a sweep.

        Args:
            sweep: its id, the id's first or last characters (6 or more), or its name.

        Raises:
            NotFoundError: when there is none, or there are several.
        """
        api = default_api()
        return cls(api, api.call(lambda session: find_sweep(session, sweep)))

    @classmethod
    async def afind(cls, sweep: str) -> Sweep:
        """`find` for async code."""
        api = default_api()
        return cls(api, await api.acall(lambda session: find_sweep(session, sweep)))

    # --- what it shows ---

    async def _item(self, session: Session) -> Item:
        return await read_sweep(session, self._id)

    def runs(self) -> list[TrialRun]:
        """Return its trials, those with a value of the metric first, the best of them at the head."""
        return self._api.call(self._runs)

    async def aruns(self) -> list[TrialRun]:
        """`runs` for async code."""
        return await self._api.acall(self._runs)

    async def _runs(self, session: Session) -> list[TrialRun]:
        config, trials = await self._read(session)
        return [self._run_of(trial, trials) for trial in trials.ranked(config.objective)]

    def best(self) -> TrialRun:
        """Return the finished trial with the best value of the metric.

        Raises:
            NotFoundError: when the sweep has no metric, or no trial has finished with a value of it yet.
        """
        return self._api.call(self._best)

    async def abest(self) -> TrialRun:
        """`best` for async code."""
        return await self._api.acall(self._best)

    async def _best(self, session: Session) -> TrialRun:
        config, trials = await self._read(session)
        return self._run_of(best_trial(self.name, config, trials), trials)

    async def _read(self, session: Session) -> tuple[SweepConfig, SweepTrials]:
        config = config_of(await self._item(session))
        return config, await read_trials(session.server, self._id, config)

    def _run_of(self, trial: Trial, trials: SweepTrials) -> TrialRun:
        return TrialRun(**vars(trial), run=QueuedRun(self._api, trials.items[trial.number].item))

    # --- until it ends ---

    def wait(self, timeout: float | None = None) -> Sweep:
        """Wait until it has ended, with none of its trials waiting or running; for a paused one it keeps waiting.

        Args:
            timeout: in seconds; `None` waits as long as it takes.

        Returns:
            The sweep itself.

        Raises:
            SchedulerError: when it failed, or was stopped; with the reason.
            TimeoutError: when it has not ended in time; it continues.
        """
        return self._api.call(lambda session: self._wait(session, timeout))

    async def wait_async(self, timeout: float | None = None) -> Sweep:
        """`wait` for async code."""
        return await self._api.acall(lambda session: self._wait(session, timeout))

    async def _wait(self, session: Session, timeout: float | None) -> Sweep:
        give_up_at = None if timeout is None else time.monotonic() + timeout
        pause = _POLL_MIN_SECONDS
        while True:
            item = await self._item(session)
            if item.state_type is StateType.COMPLETED:
                return self
            if item.is_terminal:
                raise SchedulerError(f"The sweep {self.name} ({self.id}) ended as {item.state_name}: {item.message}")
            if give_up_at is not None and time.monotonic() >= give_up_at:
                raise TimeoutError(
                    f"The sweep {self.name} ({self.id}) has not ended within {timeout:g} s: it is {item.state_name}."
                    f" See {self.url}"
                )
            await anyio.sleep(pause if give_up_at is None else max(0.0, min(pause, give_up_at - time.monotonic())))
            pause = min(pause * 1.5, _POLL_MAX_SECONDS)

    # --- what is done with it ---

    def pause(self, now: bool = False) -> None:
        """Pause it: no new trial is queued, and none that waits is started, until it is resumed.

        Args:
            now: stop the trials that run, too, and wait until they have stopped; they run again when it is resumed.

        Raises:
            LaunchError: when it has ended, is being stopped, or is just being started.
        """
        run_sync(self.apause(now))

    async def apause(self, now: bool = False) -> None:
        """`pause` for async code."""
        await pause_sweep(self._api, self._id, now=now)

    def resume(self, num_workers: int | None = None, run_cap: int | None = None) -> None:
        """Continue it, when it is paused or has ended, or the process that ran it has died.

        It continues in the process that runs it, or as an item of its queue; without either, in the background of this
        process.

        Args:
            num_workers: trials at a time from now on, 1 to 1,000.
            run_cap: the most trials from now on, those that it has had included.

        Raises:
            LaunchError: when it cannot continue with these, or is being stopped; then it stays as it is. Also when its
                scheduler on an agent does not act on it within 12 s; then it stays on record.
        """
        follower().end_runs_at_sigterm()  # In the program's own thread, which the coroutine may not run in.
        run_sync(self.aresume(num_workers, run_cap))

    async def aresume(self, num_workers: int | None = None, run_cap: int | None = None) -> None:
        """`resume` for async code."""
        await _resume(self._api, self._id, {"num_workers": num_workers, "run_cap": run_cap})

    def retry(self, trials: Collection[int] | None = None) -> list[int]:
        """Run trials again that failed, under the same numbers and with the same parameters; they count as no new ones.

        Those of a paused sweep run when it is resumed. A sweep that has ended continues, as after `resume`.

        Args:
            trials: numbers of trials that failed or were cancelled; by default all that failed.

        Returns:
            The numbers of the trials that run again.

        Raises:
            NotFoundError: when the sweep has no such trial.
            LaunchError: when one of them has neither failed nor was cancelled, or the sweep would end before they run,
                or is being stopped. Also as for `resume`.
        """
        follower().end_runs_at_sigterm()  # In the program's own thread, which the coroutine may not run in.
        return run_sync(self.aretry(trials))

    async def aretry(self, trials: Collection[int] | None = None) -> list[int]:
        """`retry` for async code."""
        retried = await retry_trials(self._api, self._id, trials)
        await _go_on(self._api, self._id, retried.resumed_by)
        return list(retried.numbers)

    def stop(self) -> None:
        """Stop it: cancel its trials, and wait until none of them waits or runs.

        Raises:
            LaunchError: when it has ended already, and so have its trials.
        """
        run_sync(self.astop())

    async def astop(self) -> None:
        """`stop` for async code."""
        await stop_sweep(self._api, self._id, _logger.info)
