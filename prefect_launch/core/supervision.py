"""Supervision of background tasks: one that fails is logged, with its traceback, and started again.

A background task handles the failures that it foresees, such as a server that is away. Whatever else it raises is a
fault in the program: without an owner, asyncio would keep the exception to itself, and the task would be gone without a
word.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import anyio
import anyio.abc

from prefect_launch.core.cancellation import ended
from prefect_launch.errors import InternalError, LaunchError, clause

log = logging.getLogger(__name__)

#: A task starts again after this time, after twice as long the next time, and so on up to a minute.
FIRST_PAUSE_SECONDS: Final = 1.0
LONGEST_PAUSE_SECONDS: Final = 60.0
#: So many failures of a vital task within this time end the program.
MOST_FAILURES: Final = 5
WINDOW_SECONDS: Final = 300.0
#: What the program gets to end in order, before its work is cancelled.
LEAVE_SECONDS: Final = 5.0

#: Runs a task: until it is cancelled, or until its work is done.
Run = Callable[[], Awaitable[None]]


class BackgroundTaskError(InternalError):
    """A background task that the program cannot do without fails again and again."""


@dataclass(frozen=True)
class BackgroundTask:
    """A task that runs in parallel with the program's work for as long as that lasts.

    Attributes:
        name: for the log.
        run: runs it. It ends only by being cancelled.
        vital: the program cannot do its work without the task, so it ends when the task fails again and again. A task
            that is not vital is started again without limit.
    """

    name: str
    run: Run
    vital: bool = True


class _Failures:
    """The failures of one task within the last minutes."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._times: deque[float] = deque()

    def note(self, error: Exception) -> int:
        """Log a failure; return how many there were within the window."""
        now = time.monotonic()
        self._times.append(now)
        while now - self._times[0] > WINDOW_SECONDS:
            self._times.popleft()
        count = len(self._times)
        log.error("task-failed %s (%d within %g s): %r", self._name, count, WINDOW_SECONDS, error, exc_info=error)
        return count

    @property
    def pause(self) -> float:
        """How long to wait before the task is started again, in seconds."""
        return float(min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(len(self._times) - 1, 10)))


@contextmanager
def unless_away(log: logging.Logger, undone: str) -> Iterator[None]:
    """Do a part of a background task that it does again soon: a server that is away is no error.

    Args:
        log: of the task's module.
        undone: what was not done then, such as `limits not read`.
    """
    try:
        yield
    except LaunchError as error:
        log.debug("%s: %s", undone, error)


async def restarted(name: str, run: Run, *, over: asyncio.Event | None = None) -> None:
    """Run a task until it returns; when it fails, log it and run the task again after a pause.

    Args:
        name: of the task, for the log.
        run: runs it; may be called several times.
        over: once it is set, a task that fails is not run again.
    """
    failures = _Failures(name)
    over = over or asyncio.Event()
    while True:
        try:
            await run()
            return
        except Exception as error:  # noqa: BLE001 - this is where what nobody foresaw is dealt with
            failures.note(error)
        with anyio.move_on_after(failures.pause):
            await over.wait()
        if over.is_set():
            return


class OwnedTasks:
    """The owner of tasks beside other work: they run as `restarted` does, and have ended when its block has."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, run: Run, *, over: asyncio.Event | None = None) -> asyncio.Task[None]:
        """Start a task, as `restarted` says, unless one of that name goes on."""
        self._tasks = {known: task for known, task in self._tasks.items() if not task.done()}
        if name not in self._tasks:
            self._tasks[name] = asyncio.create_task(restarted(name, run, over=over))
        return self._tasks[name]

    async def done(self) -> None:
        """Wait until the tasks have ended of their own accord."""
        if self._tasks:
            await asyncio.wait(self._tasks.values())

    async def end(self) -> None:
        """Cancel the tasks, and wait until they have ended."""
        await ended(*self._tasks.values())

    async def __aenter__(self) -> OwnedTasks:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.end()


class Supervisor:
    """The owner of a program's background tasks; made by `supervised`."""

    def __init__(self, group: anyio.abc.TaskGroup, give_up: Callable[[], object]) -> None:
        self._group = group
        self._give_up = give_up
        self.failure: BackgroundTaskError | None = None

    def supervise(self, *tasks: BackgroundTask) -> None:
        """Start tasks, and start each again whenever it fails."""
        for task in tasks:
            self._group.start_soon(self._run, task, name=task.name)

    async def work(self, name: str, run: Run) -> None:
        """Do work of the block itself: run it until it returns, and again whenever it fails, as a vital task.

        Args:
            name: of the work, for the log.
            run: does it; may be called several times.

        Raises:
            LaunchError: what `run` raises of these was foreseen: it is passed on at once.
            BackgroundTaskError: when it failed again and again.
        """
        failures = _Failures(name)
        while True:
            try:
                return await run()
            except LaunchError:
                raise
            except Exception as error:
                if failures.note(error) >= MOST_FAILURES:
                    raise self._fail(name, error) from error
            await anyio.sleep(failures.pause)

    async def _run(self, task: BackgroundTask) -> None:
        failures = _Failures(task.name)
        while True:
            try:
                await task.run()
                raise InternalError(f"The background task {task.name!r} ended, though it must never return.")
            except Exception as error:  # noqa: BLE001 - this is where what nobody foresaw is dealt with
                if failures.note(error) >= MOST_FAILURES and task.vital:
                    self._fail(task.name, error)
                    break
            await anyio.sleep(failures.pause)
        await anyio.sleep(LEAVE_SECONDS)
        self._group.cancel_scope.cancel()

    def _fail(self, name: str, error: Exception) -> BackgroundTaskError:
        """Give up over a task; return what the block is to raise."""
        if self.failure is None:
            self.failure = BackgroundTaskError(
                f"The background task {name!r} failed {MOST_FAILURES} times within {WINDOW_SECONDS:g} s, the last"
                f" time with {type(error).__name__}: {clause(error)}."
                " Please report it, with the traceback from the log."
            )
            self.failure.__cause__ = error
        log.critical("leaving: %s", self.failure)
        self._give_up()
        return self.failure


@asynccontextmanager
async def supervised(give_up: Callable[[], object]) -> AsyncIterator[Supervisor]:
    """Supervise background tasks for as long as the block lasts; at its end they are cancelled.

    Args:
        give_up: is called when a vital task fails again and again: the block is to end. When it has not within 5 s, it
            is cancelled.

    Raises:
        BackgroundTaskError: at the end of the block, when a vital task failed again and again.
    """
    caught: Exception | None = None
    async with anyio.create_task_group() as group:
        supervisor = Supervisor(group, give_up)
        try:
            yield supervisor
        except Exception as error:  # noqa: BLE001 - raised again below, without the group around it
            caught = error
        finally:
            group.cancel_scope.cancel()
    if caught is not None:
        raise caught
    if supervisor.failure is not None:
        raise supervisor.failure
