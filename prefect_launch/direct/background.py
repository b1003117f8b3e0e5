"""Runs of `launch(synchronous=False)`: followed to their ends in the background, and waited for at the process's exit.

They are followed on an event loop in a thread of its own, so that neither synchronous code nor an event loop that ends
holds them up. That thread is a daemon; the main thread waits for it at the end of the program, where an interrupt can
still reach it. A flow waits for the runs that it has started before its call returns.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from uuid import UUID

from anyio.from_thread import start_blocking_portal
from prefect.context import FlowRunContext
from prefect.logging import get_logger

from prefect_launch.errors import ExecutionError
from prefect_launch.runners.run import AbstractRun, RunnerRun, Status

if TYPE_CHECKING:
    from types import FrameType

    from anyio.from_thread import BlockingPortal
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun, State

T = TypeVar("T")

_logger = get_logger("launch")

#: Runs a flow to its end; it gives the run, or raises how that ended without success.
Work = Callable[[], Awaitable[AbstractRun]]

_here: ContextVar[FollowedRun | None] = ContextVar("prefect_launch_followed_run", default=None)


class FollowedRun(AbstractRun):
    """A run that this process follows to its end while its caller does something else.

    With retries it is the attempt in work: `wait` waits for the end of the last one, `cancel` calls off the others.

    Args:
        portal: of the event loop that it is followed on.
        parent: the flow run whose code has started it; None outside of flows.

    Attributes:
        started: done once the first attempt has started.
        end: done once the last attempt has ended and all is told to the server.
    """

    def __init__(self, portal: BlockingPortal, parent: UUID | None) -> None:
        self.parent = parent
        self.started: Future[None] = Future()
        self.end: Future[AbstractRun] = Future()
        self._portal = portal
        self._attempt: RunnerRun | None = None
        self._stop_asked = False
        self._unstarted: asyncio.Future[Any] | None = None
        self._stopping: asyncio.Future[None] | None = None

    @staticmethod
    def here() -> FollowedRun | None:
        """Return the run that the flow around this call is followed as; None when its caller waits for it."""
        return _here.get()

    def begin(self, work: Work) -> None:
        """Begin to follow it, in the caller's context."""
        self.end = self._portal.start_task_soon(self._follow, work)

    async def _follow(self, work: Work) -> AbstractRun:
        _here.set(self)
        return await work()

    # --- what the flow tells, on the loop that it is followed on ---

    async def unless_stopped(self, work: Awaitable[T]) -> T:
        """Wait for something during which no attempt runs, and which a stop cancels.

        Raises:
            ExecutionError: when the run was stopped.
        """
        waiting: asyncio.Future[T] = asyncio.ensure_future(work)
        self._unstarted = waiting
        if self._stop_asked:
            waiting.cancel()
        try:
            return await waiting
        except asyncio.CancelledError:
            if self._stop_asked:
                raise ExecutionError("Stopped while nothing of it ran.") from None
            raise
        finally:
            self._unstarted = None

    def attempt_started(self, run: RunnerRun) -> None:
        """Take note of an attempt that has started."""
        self._attempt = run
        if self._stop_asked:
            self._stopping = asyncio.ensure_future(run.cancel())
        if not self.started.done():
            self.started.set_result(None)

    async def _stop(self) -> None:
        self._stop_asked = True
        if self._unstarted is not None:
            self._unstarted.cancel()
        elif self._attempt is not None:
            await self._attempt.cancel()

    # --- what its caller sees, from any thread or event loop ---

    def stop_soon(self) -> None:
        """Ask for its end, and do not wait for that."""
        if not self.end.done():
            self._portal.start_task_soon(self._stop)

    @property
    def _run(self) -> RunnerRun:
        assert self._attempt is not None, "it is handed out when it has started"
        return self._attempt

    @property
    def id(self) -> str:
        return self._run.id

    @property
    def status(self) -> Status:
        return self._seen(self._run.status)

    async def get_status(self) -> Status:
        if self.end.done():
            return self._run.status
        return self._seen(await asyncio.wrap_future(self._portal.start_task_soon(self._run.get_status)))

    def _seen(self, status: Status) -> Status:
        """An attempt's end is the run's once its outputs are kept, all is told, and no retry follows."""
        if self.end.done() or self._run.exit is None:
            return status
        return Status("stopping" if self._stop_asked else "running", [f"this attempt is {status}", *status.messages])

    async def get_logs(self) -> str | None:
        return await self._run.get_logs()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, its outputs are kept and its flow run tells how it ended.

        Raises:
            TimeoutError: when it has not ended in time; it goes on.
            LaunchError: when it was lost sight of, or an attempt after the first could not be started.
        """
        try:
            await asyncio.wait_for(_one_of(self.end), timeout)
        except asyncio.TimeoutError:
            raise TimeoutError(
                f"The run {self.id!r} has not ended within {timeout} s; it goes on. Wait again, or cancel it."
            ) from None
        try:
            self.end.result()
        except ExecutionError:
            return False
        return True

    async def cancel(self) -> None:
        self.stop_soon()
        await _one_of(self.end)


class Follower:
    """Follows the runs that a process has started and does not wait for.

    Made once a process, by `follow`.
    """

    def __init__(self) -> None:
        self._pid: Final = os.getpid()
        self._living: set[FollowedRun] = set()
        self._resources = ExitStack()
        self._portal = self._resources.enter_context(start_blocking_portal())
        # Before `concurrent.futures` takes no more work, which happens before what `atexit` has. Prefect's own services
        # end in the same way.
        threading._register_atexit(self._at_exit)  # type: ignore[attr-defined]
        self._end_runs_at_sigterm()

    @property
    def alive(self) -> bool:
        """Whether it is of this process; a fork has none of its threads."""
        return self._pid == os.getpid()

    async def begin(self, work: Work) -> AbstractRun:
        """Begin with a run, and return it as soon as it has started.

        Args:
            work: runs its flow, which tells `FollowedRun.here` of its start.

        Returns:
            The run; what `work` has returned, when that has ended without following any.

        Raises:
            BaseException: what has kept it from starting.
        """
        context = FlowRunContext.get()
        run = FollowedRun(self._portal, context.flow_run.id if context and context.flow_run else None)
        if context is not None and context.flow is not None:
            self._end_with(context.flow)
        run.begin(work)
        self._living.add(run)
        run.end.add_done_callback(lambda _: self._living.discard(run))
        try:
            await _one_of(run.started, run.end)
        except BaseException:
            await run.cancel()
            raise
        # Once more, after Prefect's services for logs and events, which the run has started: last in, first called.
        threading._register_atexit(self._at_exit)  # type: ignore[attr-defined]
        return run if run.started.done() else run.end.result()

    # --- the end of a flow ---

    def _end_with(self, flow: Flow[Any, Any]) -> None:
        """Let a flow wait for its runs when it ends; a flow that crashes, as when it is interrupted, ends them."""
        hook = self._wait_in_async_flow if flow.isasync else self._wait_in_flow
        for hooks, register in (
            (flow.on_completion_hooks, flow.on_completion),
            (flow.on_failure_hooks, flow.on_failure),
            (flow.on_crashed_hooks, flow.on_crashed),
        ):
            if hook not in hooks:
                register(hook)

    def _wait_in_flow(self, flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
        wait([run.end for run in self._of(flow_run, state)])

    async def _wait_in_async_flow(self, flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
        for run in self._of(flow_run, state):
            await _one_of(run.end)

    def _of(self, flow_run: FlowRun, state: State[Any]) -> list[FollowedRun]:
        runs = [run for run in set(self._living) if run.parent == flow_run.id]
        if state.is_crashed():
            _stop(runs)
        return runs

    # --- the end of the process ---

    def _at_exit(self) -> None:
        """Wait for what still runs; an interrupt ends it, the one that has ended the program or one that comes now."""
        if not self.alive:
            return
        if _was_interrupted():
            _stop(self._living)
        elif self._living:
            _logger.info("Waiting for the end of %d run(s) of launch; Ctrl-C ends them.", len(self._living))
        try:
            self._wait()
        except (KeyboardInterrupt, SystemExit):
            _stop(self._living)
            self._wait()
        self._resources.close()

    def _wait(self) -> None:
        wait([run.end for run in set(self._living)])

    def _end_runs_at_sigterm(self) -> None:
        """Let a SIGTERM that would kill this process end the runs first. Whoever handles it already decides instead."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_sigterm)

    def _on_sigterm(self, number: int, frame: FrameType | None) -> NoReturn:
        _stop(self._living)
        raise SystemExit(128 + number)


async def _one_of(*futures: Future[Any]) -> None:
    """Wait until one of these futures of other threads is done. They are left alone when the waiting is given up."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def tell(_: Future[Any]) -> None:
        with suppress(RuntimeError):  # The loop has ended, and with it the waiting.
            loop.call_soon_threadsafe(done.set)

    for future in futures:
        future.add_done_callback(tell)
    await done.wait()


def _stop(runs: Iterable[FollowedRun]) -> None:
    for run in set(runs):
        run.stop_soon()


def _was_interrupted() -> bool:
    """Whether Ctrl-C has ended this program, and not just a line of an interactive one."""
    return getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1")


_follower: Follower | None = None
_making: Final = threading.Lock()


def follower() -> Follower:
    """Return the one of this process."""
    global _follower
    with _making:
        if _follower is None or not _follower.alive:
            _follower = Follower()
        return _follower
