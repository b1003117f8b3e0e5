"""Base of the runners for work that runs elsewhere: a cluster or a service accepts a job, queues it and starts it.

`RemoteRunner` turns what such a system offers into a `Runner`. A subclass says how to submit, poll, read a log, cancel
and delete; the base keeps the promises:

- Submitting is idempotent by name. A system that can hold a job gets it held at `create` and released at `start`. Any
  other gets it at `start`: until then `create` only keeps the plan, and the job's handle is its name.
- A run's handle is the job's handle and the claim that the run was made under. The job that has the handle now may be
  that of a newer claim: before a job is released, cancelled or deleted, its claim is read again from its labels.
- What the system has accepted and not started is `RunState.SUBMITTED`, with the system's own reason (`wait_running`).
- One poller asks for the status of all runs that an agent follows, in one call.
- `job.log` has no gap and no repeat: the position up to which the log was read stands beside it.
- A stop is proved: `stop` returns once the run was seen to have ended or to be gone, and raises otherwise. A job is
  gone when no poll has shown it for the system's `lag_seconds`.

A system that does not answer ends no run: it is asked again until it does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import ClassVar, Final, NamedTuple
from urllib.parse import quote

import anyio
from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core.output_limits import LeftOut
from prefect_launch.core.supervision import restarted
from prefect_launch.errors import InfrastructureError, LaunchError
from prefect_launch.runners.base import (
    TAKEOVER_SECONDS,
    ExitStatus,
    Found,
    Labels,
    Runner,
    RunPlan,
    RunState,
    nothing,
)
from prefect_launch.runners.log_streams import CopiedLog

log = logging.getLogger(__name__)

#: What a run gets to end beyond the grace of its stop, before the stop counts as not proved.
_STOP_MARGIN_SECONDS: Final = 30.0
#: What the rest of an ended run's log may take; after that the log counts as not complete, and the run is kept.
_LOG_END_SECONDS: Final = 60.0
#: The pause after a change, or after a new job is followed; each further pause is twice as long.
_FIRST_PAUSE_SECONDS: Final = 0.1
#: How long a job waits without a reason before the wait is reported.
_REASON_SECONDS: Final = 2.0
#: The least pause between two reports of a reason: some systems change it at every poll.
_NEXT_REASON_SECONDS: Final = 30.0
#: In a run's folder: how far its log was read.
_POSITION_FILE: Final = "remote-log.json"


class RemoteState(str, Enum):
    """Where a job is, from the system's own view."""

    HELD = "held"
    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"


class RemoteStatus(BaseModel):
    """The status of a job.

    Attributes:
        state: where it is.
        reason: why it does not run yet, in the system's own words; empty where the system gives none.
        exit: how it ended; given with `ENDED`.
    """

    model_config = ConfigDict(frozen=True)

    state: RemoteState
    reason: str = ""
    exit: ExitStatus | None = None


class RemoteJob(BaseModel):
    """A job that the system knows.

    Attributes:
        handle: names it in all further calls; where the system cannot hold jobs, its name.
        name: that it was submitted under.
        labels: that it was submitted with.
        status: of the job now.
    """

    model_config = ConfigDict(frozen=True)

    handle: str
    name: str
    labels: dict[str, str] = Field(default_factory=dict)
    status: RemoteStatus


class RunHandle(NamedTuple):
    """The handle of a run on a system of jobs.

    Attributes:
        job: the job's handle, which a job of a later claim may have too.
        claim: that the run was made under; empty for a direct `launch`.
    """

    job: str
    claim: str

    def __str__(self) -> str:
        return f"{self.job}@{self.claim}"

    @classmethod
    def parse(cls, text: str) -> RunHandle:
        """Read a handle from its text."""
        job, _, claim = text.rpartition("@")
        return cls(job, claim)

    @classmethod
    def of(cls, job: RemoteJob) -> RunHandle:
        """Return the handle of the run that a job is."""
        return cls(job.handle, job.labels.get(Labels.CLAIM, ""))


class LogPart(NamedTuple):
    """A part of a job's log.

    Attributes:
        content: as the job wrote it.
        position: from where to read on after this part; only the runner interprets it.
        is_error: whether the job wrote it to its standard error, where the system separates the two streams.
    """

    content: bytes
    position: str
    is_error: bool = False


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
    #: How long `poll` may leave out a job that is there, after its submission or between two of its states, in seconds.
    lag_seconds: ClassVar[float] = 5.0
    #: The longest pause between two polls, in seconds; the first ones after a change come sooner.
    poll_seconds: ClassVar[float] = 5.0
    #: The pause before a log is read again that was read to its end while its job runs, in seconds.
    log_seconds: ClassVar[float] = 1.0

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self._not_submitted: dict[str, RunPlan] = {}
        self._poller = StatusPoller(self.name, self._poll_runs, self.poll_seconds, self.lag_seconds)

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

    @abstractmethod
    async def poll(self, handles: Collection[str]) -> Mapping[str, RemoteJob]:
        """Return these jobs by their handles, in as few calls as the system allows; those that are gone are left out.

        The labels are those that the job has in the system now: whose job it is, is read from them.
        """

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
            if not await self._is_stopped(handle) and await self._find_status(handle) is not None:
                await self.release(RunHandle.parse(handle).job)
        elif (plan := self._not_submitted.get(handle)) is not None:
            await self._submit(plan)
            # Only now: a submission whose answer was lost is made again.
            self._not_submitted.pop(handle, None)
        self._poller.wake()

    async def wait_running(self, handle: str, on_wait: Callable[[str], Awaitable[None]]) -> None:
        reported, due = None, time.monotonic() + _REASON_SECONDS
        with self._poller.follow(handle) as feed:
            while (status := await feed.next()) is not None and status.state in (RemoteState.HELD, RemoteState.PENDING):
                now = time.monotonic()
                # The first reason is reported at once; an unknown one gets a moment to become known.
                if status.reason != reported and (now >= due or (reported is None and status.reason)):
                    reported, due = status.reason, now + _NEXT_REASON_SECONDS
                    await on_wait(reported)

    async def watch(self, handle: str, plan: RunPlan, *, ended: Callable[[], None] = nothing) -> ExitStatus:
        has_ended, problems = asyncio.Event(), list[str]()
        await anyio.Path(plan.log_path).touch(mode=0o600)
        copying = asyncio.create_task(self._copy_log(handle, plan.log_path, has_ended, problems))
        try:
            status = await self._end_of(handle)
            ended()
            has_ended.set()
            if status is not None:
                await asyncio.wait({copying}, timeout=_LOG_END_SECONDS)
        finally:
            # Also when this is cancelled: whoever watches next goes on from the position.
            done = copying.done()
            copying.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait({copying})
        stopped = await self._is_stopped(handle)
        if status is None:
            return ExitStatus(exit_code=None, stopped=stopped, error=self._why_gone(stopped))
        if done and (error := copying.exception()) is not None:
            raise error
        if not (done or problems):
            problems.append("the end of the log could not be read in time")
        warnings, left_out = [*problems], LeftOut()
        try:
            left_out = await self._outputs(handle, plan)
        except (InfrastructureError, OSError) as error:
            warnings.append(f"the outputs are not kept: {error}")
        end = status.exit or ExitStatus(exit_code=None, error=f"{self.name} does not report how it ended")
        return end.model_copy(
            update={
                "stopped": end.stopped or stopped,
                "log_complete": not problems,
                "left_out": left_out,
                "warnings": (*end.warnings, *warnings),
            }
        )

    async def stop(self, handle: str, grace_seconds: float) -> None:
        if self._not_submitted.pop(handle, None) is not None:
            await anyio.to_thread.run_sync(self._note_stop, handle)
        status = await self._find_status(handle)  # Raises when nobody answers.
        is_cancelled, limit = False, grace_seconds + self.lag_seconds + _STOP_MARGIN_SECONDS
        with anyio.move_on_after(limit), self._poller.follow(handle) as feed:
            while status is not None and status.state is not RemoteState.ENDED:
                if not is_cancelled:
                    await anyio.to_thread.run_sync(self._note_stop, handle)
                    is_cancelled = await self._cancel(handle, grace_seconds)
                status = await feed.next()
            return
        seen = f"still {status.state.value}" + (f": {status.reason}" if status.reason else "") if status else "not seen"
        raise InfrastructureError(
            f"The run {handle!r} on {self.name} was told to end, and {limit:g} s later it is {seen}."
            " It is not known to have stopped: look at it there."
        )

    async def find(self, labels: Mapping[str, str]) -> list[Found]:
        jobs = await self.list_jobs(labels)
        found = [
            Found(handle=str(RunHandle.of(job)), state=_RUN_STATES[job.status.state], labels=job.labels, name=job.name)
            for job in jobs
            if Labels.ITEM in job.labels
        ]
        known = {one.handle for one in found}
        return found + [
            Found(handle=handle, state=RunState.CREATED, labels=plan.labels, run_dir=plan.run_dir, name=plan.name)
            for handle, plan in self._not_submitted.items()
            if handle not in known and labels.items() <= plan.labels.items()
        ]

    async def remove(self, handle: str) -> None:
        self._not_submitted.pop(handle, None)
        if await self._find_status(handle) is not None:
            await self.delete(RunHandle.parse(handle).job)
        with suppress(FileNotFoundError):
            await anyio.to_thread.run_sync(self._stop_note(handle).unlink)

    async def aclose(self) -> None:
        await self._poller.aclose()

    # --- inside ---

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

    async def _poll_runs(self, handles: Collection[str]) -> dict[str, RemoteStatus]:
        """Return the statuses of runs; a job that has a run's handle and another claim is not that run's."""
        runs = {handle: RunHandle.parse(handle) for handle in handles}
        jobs = await self.poll({run.job for run in runs.values()})
        return {
            handle: job.status
            for handle, run in runs.items()
            if (job := jobs.get(run.job)) is not None and RunHandle.of(job) == run
        }

    async def _find_status(self, handle: str) -> RemoteStatus | None:
        """Return a run's status now; None once no poll has shown it for as long as the system may lag."""
        gone_at = time.monotonic() + self.lag_seconds
        while True:
            status = (await self._poll_runs([handle])).get(handle)
            if status is not None or time.monotonic() >= gone_at:
                return status
            await asyncio.sleep(max(_FIRST_PAUSE_SECONDS, self.lag_seconds / 10))

    async def _cancel(self, handle: str, grace_seconds: float) -> bool:
        """Cancel a run's job if a poll shows now that it is this run's; whether it does."""
        is_shown = handle in await self._poll_runs([handle])
        if is_shown:
            await self.cancel(RunHandle.parse(handle).job, grace_seconds)
            self._poller.wake()
        return is_shown

    async def _end_of(self, handle: str) -> RemoteStatus | None:
        with self._poller.follow(handle) as feed:
            while (status := await feed.next()) is not None and status.state is not RemoteState.ENDED:
                pass
        return status

    async def _copy_log(self, handle: str, path: Path, has_ended: asyncio.Event, problems: list[str]) -> None:
        """Copy the log until a whole pass was made that began after the job's end; note what failed in the last one."""
        while True:
            is_last = has_ended.is_set()
            try:
                await self._copy_new_log(handle, path)
                problems.clear()
                if is_last:
                    return
            except (LaunchError, OSError) as error:
                problems[:] = [f"the log could not be copied: {error}"]
            if is_last:
                await asyncio.sleep(self.log_seconds)
            else:
                with anyio.move_on_after(self.log_seconds):
                    await has_ended.wait()

    async def _copy_new_log(self, handle: str, path: Path) -> None:
        copied = await anyio.to_thread.run_sync(CopiedLog, str(path), str(path.with_name(_POSITION_FILE)))

        def write(part: LogPart) -> None:
            copied.append(part.content, part.is_error)
            copied.save(part.position)

        with closing(copied):
            async for part in self.read_logs(RunHandle.parse(handle).job, copied.position):
                await anyio.to_thread.run_sync(write, part)

    async def _outputs(self, handle: str, plan: RunPlan) -> LeftOut:
        await anyio.to_thread.run_sync(lambda: plan.output_dir.mkdir(exist_ok=True))
        return await self.fetch_outputs(RunHandle.parse(handle).job, plan)

    def _why_gone(self, stopped: bool) -> str:
        if stopped:
            return f"stopped: {self.name} has it no more"
        return f"somebody else removed it from {self.name}, and its exit code with it"

    # That a run was stopped by us outlives the agent: a time limit, say, differs from a job deleted by hand.

    def _stop_note(self, handle: str) -> Path:
        return self.home / "remote" / self.name / f"{quote(handle, safe='')}.stopped"

    def _note_stop(self, handle: str) -> None:
        note = self._stop_note(handle)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()

    async def _is_stopped(self, handle: str) -> bool:
        return await anyio.to_thread.run_sync(self._stop_note(handle).exists)


def _is_of_claim(job: RemoteJob, plan: RunPlan) -> bool:
    return job.labels.get(Labels.CLAIM) == plan.labels.get(Labels.CLAIM)


# --- one poll for all that is followed ---


class StatusFeed:
    """The statuses of one run, for one coroutine that follows it; made by `StatusPoller.follow`.

    Args:
        lag_seconds: how long polls may leave out a job that is there.
    """

    def __init__(self, lag_seconds: float) -> None:
        self._lag_seconds = lag_seconds
        self._changed = asyncio.Event()
        self._latest: RemoteStatus | None = None
        self._missed_at: float | None = None

    async def next(self) -> RemoteStatus | None:
        """Return the status that a poll shows, waiting for the next one; None once the job is gone."""
        await self._changed.wait()
        self._changed.clear()
        return self._latest

    def put(self, status: RemoteStatus | None) -> bool:
        """Take the status that a poll has shown; whether it is another than that of the poll before."""
        now = time.monotonic()
        if status is not None:
            self._missed_at = None
        elif self._missed_at is None:
            self._missed_at = now
            return True
        elif now - self._missed_at < self._lag_seconds:
            return False
        changed = status != self._latest
        self._latest = status
        self._changed.set()
        return changed


class StatusPoller:
    """Polls a system for as long as any of its jobs is followed.

    Args:
        name: of the system, for the log.
        poll: returns the statuses of runs by their handles, and leaves out those that are gone.
        most_seconds: the longest pause between two polls.
        lag_seconds: how long `poll` may leave out a run that is there.
    """

    def __init__(
        self,
        name: str,
        poll: Callable[[Collection[str]], Awaitable[Mapping[str, RemoteStatus]]],
        most_seconds: float,
        lag_seconds: float,
    ) -> None:
        self._name = name
        self._poll = poll
        self._most_seconds = most_seconds
        self._lag_seconds = lag_seconds
        self._feeds: dict[str, list[StatusFeed]] = {}
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    @contextmanager
    def follow(self, handle: str) -> Iterator[StatusFeed]:
        """Follow a job for as long as the context lasts; enter it in a running event loop."""
        feed = StatusFeed(self._lag_seconds)
        self._feeds.setdefault(handle, []).append(feed)
        loop = asyncio.get_running_loop()
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._wake = asyncio.Event()
            self._task = loop.create_task(restarted(f"status of {self._name}", self._run))
        self.wake()
        try:
            yield feed
        finally:
            self._feeds[handle].remove(feed)
            if not self._feeds[handle]:
                del self._feeds[handle]

    def wake(self) -> None:
        """Poll now: something is about to change."""
        self._wake.set()

    async def aclose(self) -> None:
        """End polling."""
        task, self._task = self._task, None
        if task is not None and task.get_loop() is asyncio.get_running_loop():
            task.cancel()
            await asyncio.wait({task})

    async def _run(self) -> None:
        pause, is_away = _FIRST_PAUSE_SECONDS, False
        while self._feeds:
            if self._wake.is_set():
                pause = _FIRST_PAUSE_SECONDS
                self._wake.clear()
            followed = {handle: tuple(feeds) for handle, feeds in self._feeds.items()}
            try:
                found = await self._poll(followed.keys())
            except LaunchError as error:
                if not is_away:
                    log.warning("%s does not report the status of its jobs; polling again: %s", self._name, error)
                is_away = True
            else:
                is_away = False
                changes = [feed.put(found.get(handle)) for handle, feeds in followed.items() for feed in feeds]
                if any(changes):
                    pause = _FIRST_PAUSE_SECONDS
            try:
                await asyncio.wait_for(self._wake.wait(), min(pause, self._most_seconds))
            except asyncio.TimeoutError:
                pause = min(pause * 2, self._most_seconds)
