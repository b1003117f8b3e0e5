"""One poll for the status of all jobs that an agent follows on a system, and one connection that tells of changes.

A poll is the truth. A system that tells of changes is polled when something may have been missed, and now and then;
any other is polled soon after each change, then less and less often.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import anyio

from prefect_launch.core.backoff import Backoff
from prefect_launch.core.cancellation import ended
from prefect_launch.core.supervision import OwnedTasks, restarted
from prefect_launch.errors import LaunchError
from prefect_launch.runners.remote.jobs import JobChange, RemoteState, RemoteStatus, RunHandle

log = logging.getLogger(__name__)

#: Returns the statuses of runs by their handles, or why one cannot be seen now, and leaves out those that are gone.
Poll = Callable[[Collection[str]], Awaitable[Mapping[str, RemoteStatus | LaunchError]]]
#: Follows the changes of jobs.
Changes = Callable[[], AsyncIterator[JobChange]]

#: The pause before a connection that tells of changes is made again; each further one is twice as long.
_FIRST_PAUSE_SECONDS: Final = 0.5
_LONGEST_PAUSE_SECONDS: Final = 30.0


class StatusFeed:
    """The statuses of one run, for one coroutine that follows it; made by `StatusPoller.follow`.

    Args:
        lag_seconds: how long polls may leave out a job that is there.
        tells_all: whether `next` returns after every poll; else not after one that shows a job running as before, so
            that a poll of hundreds wakes only those who have something to do.
    """

    def __init__(self, lag_seconds: float, *, tells_all: bool = False) -> None:
        self._lag_seconds = lag_seconds
        self._tells_all = tells_all
        self._changed = asyncio.Event()
        self._latest: RemoteStatus | None = None
        self._missed_at: float | None = None

    @property
    def is_in_doubt(self) -> bool:
        """Whether the last poll did not show the job, and it is too early to call it gone."""
        return self._missed_at is not None and (self._latest is not None or not self._changed.is_set())

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
        if changed or self._tells_all or status is None or status.state is not RemoteState.RUNNING or status.reason:
            self._changed.set()
        return changed

    def tell(self, status: RemoteStatus) -> bool:
        """Take a status that the system tells of; whether it is to be taken. An old one may come after a poll."""
        is_old = self._latest is not None and self._latest.state is RemoteState.ENDED is not status.state
        if not is_old:
            self.put(status)
        return not is_old


class StatusPoller:
    """Polls a system for as long as any of its jobs is followed.

    Args:
        name: of the system, for the log.
        poll: as `Poll` says.
        most_seconds: the longest pause between two polls.
        lag_seconds: how long `poll` may leave out a run that is there.
        least_seconds: the shortest pause between two polls; it is as long as a poll takes, if that is longer.
        changes: follows the changes of jobs; None: the system tells of none.
    """

    def __init__(
        self,
        name: str,
        poll: Poll,
        most_seconds: float,
        lag_seconds: float,
        *,
        least_seconds: float = 0.1,
        changes: Changes | None = None,
    ) -> None:
        self._name = name
        self._poll = poll
        self._most_seconds = most_seconds
        self._least_seconds = min(least_seconds, most_seconds)
        self._lag_seconds = lag_seconds
        self._changes = changes
        self._is_told = False
        self._feeds: dict[str, list[StatusFeed]] = {}
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()

    @contextmanager
    def follow(self, handle: str, *, tells_all: bool = False) -> Iterator[StatusFeed]:
        """Follow a job for as long as the context lasts; enter it in a running event loop.

        Args:
            handle: of its run.
            tells_all: whether to hear of every poll, as `StatusFeed` says.
        """
        feed = StatusFeed(self._lag_seconds, tells_all=tells_all)
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
        if task is not None:
            await ended(task)

    async def _run(self) -> None:
        # Again for whoever begins to follow a job while the connection of the last one is closed.
        while self._feeds:
            async with OwnedTasks() as beside:
                if self._changes is not None:
                    beside.start(f"changes of {self._name}", self._listen)
                await self._poll_all()

    async def _poll_all(self) -> None:
        pause = self._least_seconds
        away: set[str] = set()
        while self._feeds:
            if self._wake.is_set():
                pause = self._least_seconds
                self._wake.clear()
            followed = {handle: tuple(feeds) for handle, feeds in self._feeds.items()}
            began = time.monotonic()
            found = await self._poll_parts(followed.keys())
            away = self._warn(away, found)
            changes = [
                feed.put(status)
                for handle, feeds in followed.items()
                if not isinstance(status := found.get(handle), LaunchError)
                for feed in feeds
            ]
            if any(changes):
                pause = self._least_seconds
            is_sure = self._is_told and not any(feed.is_in_doubt for feeds in followed.values() for feed in feeds)
            took = time.monotonic() - began
            await asyncio.sleep(max(self._least_seconds, min(took, _LONGEST_PAUSE_SECONDS)))
            with anyio.move_on_after(self._most_seconds if is_sure else pause):
                await self._wake.wait()
            pause = min(pause * 2, self._most_seconds)

    async def _poll_parts(self, handles: Collection[str]) -> Mapping[str, RemoteStatus | LaunchError]:
        """Poll; where nothing can be seen, that is so of each run."""
        try:
            return await self._poll(handles)
        except LaunchError as error:
            return dict.fromkeys(handles, error)

    def _warn(self, away: set[str], found: Mapping[str, RemoteStatus | LaunchError]) -> set[str]:
        """Log once why runs cannot be seen; return the reasons."""
        reasons = {str(error) for error in found.values() if isinstance(error, LaunchError)}
        for reason in () if away else sorted(reasons):
            log.warning("%s does not report the status of its jobs; polling again: %s", self._name, reason)
        return reasons

    async def _listen(self) -> None:
        """Take what the system tells, over connections that break."""
        assert self._changes is not None
        pauses, is_away = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS), False
        while True:
            try:
                async for change in self._changes():
                    if not self._is_told:
                        # What changed until now was not told.
                        self.wake()
                    self._is_told, is_away = True, False
                    pauses.reset()
                    self._take(change)
            except LaunchError as error:
                if not is_away:
                    log.warning("%s does not tell of its jobs; polling meanwhile: %s", self._name, error)
                is_away = True
            finally:
                self._is_told = False
                self.wake()
            await pauses.sleep()

    def _take(self, change: JobChange) -> None:
        if change.job is not None:
            for feed in self._feeds.get(str(RunHandle.of(change.job)), ()):
                if not feed.tell(change.job.status):
                    self.wake()
        elif change.handle is None or any(RunHandle.parse(handle).job == change.handle for handle in self._feeds):
            self.wake()


class JoinedReads:
    """Reads of single runs, of which those that are asked for while one is under way are made in one call.

    Args:
        read: as `Poll` says.
    """

    def __init__(self, read: Poll) -> None:
        self._read = read
        self._waiting: list[tuple[str, asyncio.Future[RemoteStatus | None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def one(self, handle: str) -> RemoteStatus | None:
        """Return a run's status by a read that begins now or later; None for one that is not shown."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[RemoteStatus | None] = loop.create_future()
        self._waiting.append((handle, future))
        if self._task is None or self._task.done() or self._task.get_loop() is not loop:
            self._task = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            try:
                found = await self._read({handle for handle, _ in batch})
            except Exception as error:  # noqa: BLE001 - each who asked gets it raised
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for handle, future in batch:
                    status = found.get(handle)
                    if future.done():
                        continue
                    if isinstance(status, LaunchError):
                        future.set_exception(status)
                    else:
                        future.set_result(status)
            finally:
                for _, future in batch:
                    future.cancel()
