"""Base of the runners for work that runs elsewhere: a cluster or a service accepts a job, queues it and starts it.

`RemoteRunner` turns what such a system offers into a `Runner`. A subclass says how to submit, poll, read a log, cancel
and delete; the base keeps the promises:

- Submitting is idempotent by name. A system that can hold a job gets it held at `create` and released at `start`. Any
  other gets it at `start`: until then `create` only keeps the plan, and the job's handle is its name.
- A run's handle is the job's handle and the claim that the run was made under. The job that has the handle now may be
  that of a newer claim: before a job is released, cancelled or deleted, its claim is read again from its labels.
- What the system has accepted and not started is `RunState.SUBMITTED`, with the system's own reason (`wait_running`).
- One poller asks for the status of all runs that an agent follows, in one call; a system that tells of changes
  (`changes`) is polled rarely. A system may have parts (`part_of`), each with a poller: one that hangs delays no other.
- `job.log` has no gap and no repeat: the position up to which the log was read stands beside it.
- A stop is proved: `stop` returns once the run was seen to have ended or to be gone, and raises otherwise. A job is
  gone when no poll has shown it for the system's `lag_seconds`.

A system that does not answer ends no run: it is asked again until it does.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import ClassVar, Final, NamedTuple

import anyio

from prefect_launch.core.output_limits import LeftOut
from prefect_launch.core.pace import Pace
from prefect_launch.core.supervision import OwnedTasks
from prefect_launch.errors import InfrastructureError, LaunchError, NoRoomError, NothingMadeError
from prefect_launch.runners.base import (
    NEVER_STARTED,
    TAKEOVER_SECONDS,
    ExitStatus,
    Finding,
    Found,
    Labels,
    Runner,
    RunPlan,
    RunState,
    nothing,
)
from prefect_launch.runners.fill_rule import FillRule, Keys
from prefect_launch.runners.remote.jobs import JobChange, LogPart, RemoteJob, RemoteState, RemoteStatus, RunHandle
from prefect_launch.runners.remote.log_copy import LogCopy
from prefect_launch.runners.remote.poller import JoinedReads, StatusPoller

#: What the rest of an ended run's log may take; after that the log counts as not complete, and the run is kept.
_LOG_END_SECONDS: Final = 60.0
#: The pause before a run that a poll does not show is looked for again.
_LOOK_AGAIN_SECONDS: Final = 0.1
#: How long a job waits without a reason before the wait is reported.
_REASON_SECONDS: Final = 2.0
#: The least pause between two reports of a reason: some systems change it at every poll.
_NEXT_REASON_SECONDS: Final = 30.0

#: A job that is held has not been started, whatever the system calls it.
_RUN_STATES: Final = {
    RemoteState.HELD: RunState.CREATED,
    RemoteState.PENDING: RunState.SUBMITTED,
    RemoteState.RUNNING: RunState.RUNNING,
    RemoteState.ENDED: RunState.EXITED,
}


class RemoteRunner(Runner):
    """A runner on a system that queues jobs and starts them itself.

    Every method that a subclass gives raises `UnreachableError` when the system does not answer, and
    `InfrastructureError` when it fails. Its handles are those of jobs.
    """

    uses_this_machine: ClassVar[bool] = False
    max_submitted: ClassVar[int] = 100
    #: Whether the system accepts a job without starting it, until it is released.
    can_hold: ClassVar[bool] = False
    #: Whether a handle never names another job, as a number or a uid does; else a job's claim is read again before the
    #: job is released, cancelled or deleted.
    has_unique_handles: ClassVar[bool] = False
    #: Whether the system tells of the changes of its jobs, so that `changes` follows them.
    tells_changes: ClassVar[bool] = False
    #: How long `poll` may leave out a job that is there, after its submission or between two of its states, in seconds.
    lag_seconds: ClassVar[float] = 5.0
    #: What a run gets to end beyond the grace of its stop, before the stop counts as not proved, in seconds.
    stop_margin_seconds: ClassVar[float] = 30.0
    #: How long a part of a run may wait, while others run, before that is told, in seconds: parts start one by one.
    part_seconds: ClassVar[float] = 10.0
    #: The longest pause between two polls, in seconds; the first ones after a change come sooner.
    poll_seconds: ClassVar[float] = 5.0
    #: The shortest pause between two polls, in seconds; a slow poll is followed by a pause as long as itself.
    least_poll_seconds: ClassVar[float] = 0.1
    #: The pause before a log is read again that was read to its end while its job runs, in seconds.
    log_seconds: ClassVar[float] = 1.0
    #: How many logs are read a second, at most.
    log_reads_a_second: ClassVar[float] = 50.0

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._not_submitted: dict[str, RunPlan] = {}
        self._parts: dict[str, _Part] = {}
        self._log_pace = Pace(self.log_reads_a_second)

    @classmethod
    def fill_rule(cls, option: str, keys: Keys, text: str) -> FillRule:
        """Leave to submitters what they may set; where and as whom a job runs on a cluster, its queue's owner says."""
        return FillRule.ANY if option in cls.submitter_options else FillRule.OWNER

    # --- what the system offers ---

    @abstractmethod
    async def submit(self, plan: RunPlan) -> RemoteJob:
        """Submit a plan under its name and with its labels: held where the system can hold.

        Returns:
            The job. Where the system has one of that name already, that one, whoever submitted it.

        Raises:
            SpecError: when the system refuses the plan.
        """

    async def release(self, handle: str) -> None:
        """Let the system start a held job; nothing for a job that is not held, or is gone."""

    def part_of(self, handle: str) -> str:
        """Name the part of the system that a job is in, which is asked for itself; by default there is one."""
        return ""

    @abstractmethod
    async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob | LaunchError]:
        """Return these jobs by their handles, in as few calls as the system allows; those that are gone are left out.

        The labels are those that the job has in the system now: whose job it is, is read from them. In place of a job
        stands the error why it cannot be seen now, where others can. All are of one part (`part_of`).
        """

    async def poll_one(self, handle: str) -> RemoteJob | None:
        """Return a job by its handle; None for one that is gone.

        Raises:
            LaunchError: why it cannot be seen now.
        """
        job = (await self.poll([handle])).get(handle)
        if isinstance(job, LaunchError):
            raise job
        return job

    async def changes(self, part: str = "") -> AsyncIterator[JobChange]:
        """Follow the changes of this agent's jobs in a part of it, from now on; for a system with `tells_changes`.

        All jobs are asked for again by `poll` once the first change was yielded, so yield an empty `JobChange` as soon
        as changes will be told, and another whenever some may have been missed. After an end or an error this is
        called again, with a growing pause; meanwhile jobs are polled as if nothing told of them. Changes of jobs that
        are not followed do no harm.

        Args:
            part: as `part_of` names it.

        Yields:
            The changes.
        """
        return
        yield

    @abstractmethod
    async def list_jobs(self, labels: Mapping[str, str]) -> list[RemoteJob]:
        """Return all jobs with these labels, in any state; none is left out that the system has accepted."""

    @abstractmethod
    def read_logs(self, handle: str, after: str | None) -> AsyncIterator[LogPart]:
        """Read a job's log from a position on.

        Args:
            handle: of the job.
            after: the position of the last part that was kept; None for the whole log.

        Yields:
            The parts written so far, each with its position. A system that can follow a log may go on until the job
            ends.
        """

    def read_run_log(self, handle: str, plan: RunPlan, after: str | None) -> AsyncIterator[LogPart]:
        """Read a run's log as `read_logs` does; by default that of the job that has its handle."""
        return self.read_logs(RunHandle.parse(handle).job, after)

    async def left_end(self, plan: RunPlan) -> RemoteStatus | None:
        """Return how a run that is gone has ended, where it has written that down itself; by default it has not."""
        return None

    @abstractmethod
    async def cancel(self, handle: str, grace_seconds: float) -> None:
        """Ask for a job's end: TERM, then KILL after the grace. It may return before the job ends."""

    @abstractmethod
    async def delete(self, handle: str) -> None:
        """Remove a job that does not run; nothing for one that is gone."""

    async def fetch_outputs(self, handle: str, plan: RunPlan) -> LeftOut:
        """Copy what an ended job left to `plan.output_dir`; by default the job has written there itself."""
        return LeftOut()

    # --- the runner ---

    async def prepare(self, plan: RunPlan) -> None:
        self.check(plan)

    async def create(self, plan: RunPlan) -> str:
        self.check(plan)
        if self.can_hold:
            return str(RunHandle.of(await self._submit(plan)))
        handle = str(RunHandle(plan.name, plan.labels.get(Labels.CLAIM, "")))
        self._not_submitted[handle] = plan
        return handle

    async def start(self, handle: str) -> None:
        if self.can_hold:
            if not await self._is_stopped(handle) and await self._is_there(handle):
                await self.release(RunHandle.parse(handle).job)
        elif (plan := self._not_submitted.get(handle)) is not None:
            try:
                await self._submit(plan)
            except NoRoomError as error:
                self._not_submitted.pop(handle, None)
                raise NothingMadeError(str(error)) from error
            # Only now: a submission whose answer was lost is made again.
            self._not_submitted.pop(handle, None)
        self._part(handle).poller.wake()

    async def wait_running(self, handle: str, on_wait: Callable[[str], Awaitable[None]]) -> None:
        reported, due = None, time.monotonic() + _REASON_SECONDS
        with self._part(handle).poller.follow(handle) as feed:
            while (status := await feed.next()) is not None and status.state in (RemoteState.HELD, RemoteState.PENDING):
                now = time.monotonic()
                # The first reason is reported at once; an unknown one gets a moment to become known.
                if status.reason != reported and (now >= due or (reported is None and status.reason)):
                    reported, due = status.reason, now + _NEXT_REASON_SECONDS
                    await on_wait(reported)
                if status.refusal is not None:
                    break
        if status is not None and status.refusal is not None:
            raise status.refusal

    async def watch_parts(self, handle: str, on_wait: Callable[[str], Awaitable[None]]) -> None:
        reported, due, since = "", 0.0, None
        with self._part(handle).poller.follow(handle) as feed:
            while (status := await feed.next()) is not None and status.state is not RemoteState.ENDED:
                now = time.monotonic()
                if not (status.state is RemoteState.RUNNING and status.reason):
                    since = None
                    continue
                since = now if since is None else since
                is_due = status.reason != reported and now >= max(due, since + self.part_seconds)
                if is_due and not await self._is_stopped(handle):  # Of one that is stopped, nothing waits to start.
                    reported, due = status.reason, now + _NEXT_REASON_SECONDS
                    await on_wait(reported)

    async def watch(self, handle: str, plan: RunPlan, *, ended: Callable[[], None] = nothing) -> ExitStatus:
        await anyio.Path(plan.log_path).touch(mode=0o600)
        copy = LogCopy(plan.log_path, partial(self.read_run_log, handle, plan), self._log_pace, self.log_seconds)
        async with OwnedTasks() as beside:
            copying = beside.start(f"copy of the log of {handle}", copy.run)
            status = await self._end_of(handle) or await self.left_end(plan)
            ended()
            copy.ended.set()
            if status is not None:
                await asyncio.wait({copying}, timeout=_LOG_END_SECONDS)
            done = copying.done()
        stopped = await self._is_stopped(handle)
        if status is None:
            gone = f"{self.name} has it no more" if stopped else await self.why_gone(handle)
            return ExitStatus(exit_code=None, stopped=stopped, error=gone)
        problems = copy.problems
        if not (done or problems):
            problems = ["the end of the log could not be read in time"]
        warnings, left_out = [*problems], LeftOut()
        try:
            left_out = await self._outputs(handle, plan)
        except (LaunchError, OSError) as error:  # Also of an agent that may not read them.
            warnings.append(f"the outputs are not kept: {error}")
        end = status.exit or ExitStatus(exit_code=None, error=f"{self.name} does not report how it ended")
        return self._with_who(end, stopped=end.stopped or stopped).model_copy(
            update={
                "log_complete": not problems,
                "left_out": left_out,
                "warnings": (*end.warnings, *warnings),
            }
        )

    def _with_who(self, end: ExitStatus, *, stopped: bool) -> ExitStatus:
        """Say who ended a run, where the system does not: this agent, if it has noted that it asked for it."""
        error = end.error
        if end.ended_by_others and stopped:
            error = NEVER_STARTED if end.started_at is None else None
        elif end.ended_by_others:
            error = f"{error}: somebody stopped it on {self.name}, and not this agent"
        is_others = end.ended_by_others and not stopped
        return end.model_copy(update={"stopped": stopped, "ended_by_others": is_others, "error": error})

    async def stop(self, handle: str, grace_seconds: float) -> None:
        if self._not_submitted.pop(handle, None) is not None:
            await anyio.to_thread.run_sync(self._note_stop, handle)
        status = await self._find_status(handle)  # Raises when nobody answers.
        is_cancelled, limit = False, grace_seconds + self.lag_seconds + self.stop_margin_seconds
        with anyio.move_on_after(limit), self._part(handle).poller.follow(handle, tells_all=True) as feed:
            while status is not None and status.state is not RemoteState.ENDED:
                if not is_cancelled:
                    await anyio.to_thread.run_sync(self._note_stop, handle)
                    is_cancelled = await self._cancel(handle, grace_seconds)
                status = await feed.next()
            return
        seen = f"still {status.state.value}" + (f": {status.reason}" if status.reason else "") if status else "not seen"
        raise InfrastructureError(
            f"The run {await self.display_name(handle)!r} on {self.name} was told to end, and {limit:g} s later it is"
            f" {seen}."
            " It is not known to have stopped: look at it there."
        )

    async def find(self, labels: Mapping[str, str]) -> list[Found]:
        jobs = await self.list_jobs(labels)
        found = [
            Found(
                handle=str(RunHandle.of(job)),
                state=_state_of(job),
                labels=job.labels,
                name=job.name,
                is_complete=job.is_complete,
            )
            for job in jobs
            if Labels.ITEM in job.labels
        ]
        known = {one.handle for one in found}
        return found + [
            Found(handle=handle, state=RunState.CREATED, labels=plan.labels, run_dir=plan.run_dir, name=plan.name)
            for handle, plan in self._not_submitted.items()
            if handle not in known and labels.items() <= plan.labels.items()
        ]

    async def display_name(self, handle: str) -> str:
        return RunHandle.parse(handle).job

    async def why_gone(self, handle: str) -> str:
        return f"somebody else removed it from {self.name}, and its exit code with it"

    async def remove(self, handle: str) -> None:
        self._not_submitted.pop(handle, None)
        if await self._is_there(handle):
            await self.delete(RunHandle.parse(handle).job)
        with suppress(FileNotFoundError):
            await anyio.to_thread.run_sync(self._stop_note(handle).unlink)

    async def aclose(self) -> None:
        for part in self._parts.values():
            await part.poller.aclose()

    # --- inside ---

    def _part(self, handle: str) -> _Part:
        """Return what asks for the part of the system that a run is in."""
        name = self.part_of(RunHandle.parse(handle).job)
        if name not in self._parts:
            poller = StatusPoller(
                self.name,
                self._poll_runs,
                self.poll_seconds,
                self.lag_seconds,
                least_seconds=self.least_poll_seconds,
                changes=partial(self.changes, name) if self.tells_changes else None,
            )
            self._parts[name] = _Part(JoinedReads(self._poll_runs), poller)
        return self._parts[name]

    async def _submit(self, plan: RunPlan) -> RemoteJob:
        """Submit a plan; a job of an older claim that has its name is stopped and removed first."""
        job = await self.submit(plan)
        if not _is_of_claim(job, plan):
            if job.labels.get(Labels.ITEM) != plan.labels.get(Labels.ITEM):
                raise InfrastructureError(
                    f"{self.name} has a job named {plan.name!r} that is not of this item."
                    " Remove it there, and try again."
                )
            await self.stop(str(RunHandle.of(job)), TAKEOVER_SECONDS)
            await self.remove(str(RunHandle.of(job)))
            job = await self.submit(plan)
        if not _is_of_claim(job, plan):
            raise InfrastructureError(
                f"{self.name} still has a job named {plan.name!r} of another claim of this item. Try again."
            )
        return job

    async def _poll_runs(self, handles: Collection[str]) -> dict[str, RemoteStatus | LaunchError]:
        """Return the statuses of runs; a job that has a run's handle and another claim is not that run's."""
        runs = {handle: RunHandle.parse(handle) for handle in handles}
        jobs = await self.poll({run.job for run in runs.values()})
        found: dict[str, RemoteStatus | LaunchError] = {}
        for handle, run in runs.items():
            job = jobs.get(run.job)
            if isinstance(job, LaunchError):
                found[handle] = job
            elif job is not None and RunHandle.of(job) == run:
                found[handle] = job.status
        return found

    async def _find_status(self, handle: str) -> RemoteStatus | None:
        """Return a run's status now; None once no poll has shown it for as long as the system may lag."""
        gone_at = time.monotonic() + self.lag_seconds
        while True:
            status = await self._part(handle).reads.one(handle)
            if status is not None or time.monotonic() >= gone_at:
                return status
            await asyncio.sleep(max(_LOOK_AGAIN_SECONDS, self.lag_seconds / 10))

    async def _is_there(self, handle: str) -> bool:
        """Whether the job that has a run's handle is still that run's; taken for granted of a unique handle."""
        return self.has_unique_handles or await self._find_status(handle) is not None

    async def _cancel(self, handle: str, grace_seconds: float) -> bool:
        """Cancel a run's job if a poll shows now that it is this run's; whether it does."""
        is_shown = self.has_unique_handles or await self._part(handle).reads.one(handle) is not None
        if is_shown:
            await self.cancel(RunHandle.parse(handle).job, grace_seconds)
            self._part(handle).poller.wake()
        return is_shown

    async def _end_of(self, handle: str) -> RemoteStatus | None:
        with self._part(handle).poller.follow(handle) as feed:
            while (status := await feed.next()) is not None and status.state is not RemoteState.ENDED:
                if status.refusal is not None:
                    raise status.refusal
        return status

    async def _outputs(self, handle: str, plan: RunPlan) -> LeftOut:
        await anyio.to_thread.run_sync(lambda: plan.output_dir.mkdir(exist_ok=True))
        return await self.fetch_outputs(RunHandle.parse(handle).job, plan)

    # That a run was stopped by us outlives the agent: a time limit, say, differs from a job deleted by hand.

    def _stop_note(self, handle: str) -> Path:
        # A handle may be longer than a file's name.
        return self.home / "remote" / self.name / f"{sha256(handle.encode()).hexdigest()}.stopped"

    def _note_stop(self, handle: str) -> None:
        note = self._stop_note(handle)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()

    async def _is_stopped(self, handle: str) -> bool:
        return await anyio.to_thread.run_sync(self._stop_note(handle).exists)


async def finding_of(name: str, check: Callable[[], Awaitable[None]]) -> Finding:
    """Return what a check finds.

    Args:
        name: of what is looked at.
        check: raises a LaunchError when it is not well.
    """
    try:
        await check()
    except LaunchError as error:
        return Finding(name=name, is_ok=False, detail=str(error))
    return Finding(name=name, is_ok=True)


class _Part(NamedTuple):
    """What asks for the jobs of one part of a system.

    Attributes:
        reads: of single runs.
        poller: of those that are followed.
    """

    reads: JoinedReads
    poller: StatusPoller


def _state_of(job: RemoteJob) -> RunState:
    """Return the state of the run that a job is; one that is not whole was never started, whatever the system does."""
    if not job.is_complete and job.status.state is not RemoteState.ENDED:
        return RunState.CREATED
    return _RUN_STATES[job.status.state]


def _is_of_claim(job: RemoteJob, plan: RunPlan) -> bool:
    return job.labels.get(Labels.CLAIM) == plan.labels.get(Labels.CLAIM)
