"""Background work of `launch(synchronous=False)` and `sweep`: the process follows it, and waits for it at its exit.

An event loop in its own daemon thread follows them, so that neither synchronous code nor the end of another event loop
blocks them. The main thread waits for that thread at the end of the program. A flow waits for the runs that it started
before its call returns.

A SIGINT or SIGTERM ends the runs. A signal during the wait is noted, and reaches the program once the runs have ended,
so that a second one does not cut their end short. Nor does a second SIGTERM cut short the end of the program itself.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import sys
import threading
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from uuid import UUID

import anyio
from anyio.from_thread import start_blocking_portal
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import TerminationSignal
from prefect.logging import get_logger
from prefect.utilities.engine import is_prefect_sigterm_handler_installed

from prefect_launch.core.event_loop import SIGNAL_SECONDS, wait_all
from prefect_launch.core.terminal import printable
from prefect_launch.errors import ExecutionError
from prefect_launch.runners.run import AbstractRun, RunnerRun, Status

if TYPE_CHECKING:
    from types import FrameType

    from anyio.from_thread import BlockingPortal
    from prefect import Flow
    from prefect.client.schemas.objects import FlowRun

T = TypeVar("T")
F = TypeVar("F", bound="Followed")

_logger = get_logger("launch")

#: Runs a flow to its end; returns the run, or raises the error of a run without success.
Work = Callable[[], Awaitable[AbstractRun]]

_here: ContextVar[FollowedRun | None] = ContextVar("prefect_launch_followed_run", default=None)


class Followed(ABC):
    """A flow that this process follows to its end while its caller does something else.

    Args:
        portal: of the event loop that it is followed on.
        loop: that event loop.
        parent: the flow run whose code started it; None outside of flows.

    Attributes:
        started: done once what the flow runs has started.
        end: done once it has ended and all is reported to the server.
        stop_requested: whether a stop was requested.
    """

    def __init__(self, portal: BlockingPortal, loop: asyncio.AbstractEventLoop, parent: UUID | None) -> None:
        self.parent = parent
        self.started: Future[None] = Future()
        self.end: Future[Any] = Future()
        self.stop_requested = False
        self._portal = portal
        self._loop = loop

    @property
    @abstractmethod
    def id(self) -> str:
        """What it is called in messages."""

    def begin(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Start to follow it, in the caller's context."""
        self.end = self._portal.start_task_soon(self._follow, work)

    async def _follow(self, work: Callable[[], Awaitable[Any]]) -> Any:
        return await work()

    @abstractmethod
    def stop(self) -> None:
        """Start to stop it, on the loop that follows it. A further call does nothing, unless the last stop failed."""

    def stop_soon(self) -> None:
        """Request a stop without waiting for it; safe in a signal handler."""
        if not self.end.done():
            self.stop_requested = True
            self._loop.call_soon_threadsafe(self.stop)


class FollowedRun(Followed, AbstractRun):
    """A run of `launch` that this process follows.

    With retries it is the current attempt: `wait` waits for the last one, `cancel` cancels further ones.
    """

    def __init__(self, portal: BlockingPortal, loop: asyncio.AbstractEventLoop, parent: UUID | None) -> None:
        super().__init__(portal, loop, parent)
        self._attempt: RunnerRun | None = None
        self._unstarted: asyncio.Future[Any] | None = None
        self._stopping: asyncio.Future[None] | None = None

    @staticmethod
    def here() -> FollowedRun | None:
        """Return the background run of the flow around this call; None when the flow's caller waits for it."""
        return _here.get()

    async def _follow(self, work: Callable[[], Awaitable[Any]]) -> Any:
        _here.set(self)
        return await work()

    # --- called by the flow, on the loop that follows it ---

    async def unless_stopped(self, work: Awaitable[T]) -> T:
        """Wait for something between attempts; a stop cancels the wait.

        Raises:
            ExecutionError: when the run was stopped.
        """
        waiting: asyncio.Future[T] = asyncio.ensure_future(work)
        self._unstarted = waiting
        if self.stop_requested:
            waiting.cancel()
        try:
            return await waiting
        except asyncio.CancelledError:
            if self.stop_requested:
                raise ExecutionError("Stopped while nothing of it ran.") from None
            raise
        finally:
            self._unstarted = None

    def attempt_started(self, run: RunnerRun) -> None:
        """Record an attempt that has started."""
        self._attempt = run
        if self.stop_requested:
            self.stop()
        if not self.started.done():
            self.started.set_result(None)

    def stop(self) -> None:
        self.stop_requested = True
        if self._unstarted is not None:
            self._unstarted.cancel()
        elif self._attempt is not None and (self._stopping is None or self._stopping.done()):
            self._stopping = asyncio.ensure_future(self._end_attempt(self._attempt))

    async def _end_attempt(self, attempt: RunnerRun) -> None:
        try:
            await attempt.cancel()
        except Exception as error:  # noqa: BLE001 - whatever a runner raises
            _logger.warning("The run %s could not be ended, and is waited for: %s", attempt.id, error)

    # --- called by its caller, from any thread or event loop ---

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
        """The end of an attempt is the run's once outputs are kept, all is reported, and no retry follows."""
        if self.end.done() or self._run.exit is None:
            return status
        return Status("stopping" if self.stop_requested else "running", [f"this attempt is {status}", *status.messages])

    async def get_logs(self) -> str | None:
        return await self._run.get_logs()

    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, its outputs are kept and its flow run has its final state.

        Raises:
            TimeoutError: when it has not ended in time; it continues.
            LaunchError: when it could not be watched, or a further attempt could not be started.
        """
        try:
            with anyio.fail_after(timeout):
                await _one_of(self.end)
        except TimeoutError:
            raise TimeoutError(
                f"The run {self.id!r} has not ended within {timeout} s; it continues. Wait again, or cancel it."
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
    """Follower of the background work of a process.

    One for each process, see `follower`.
    """

    def __init__(self) -> None:
        self._pid: Final = os.getpid()
        self._living: set[Followed] = set()
        self._resources = ExitStack()
        self._portal = self._resources.enter_context(start_blocking_portal())
        self._loop = self._portal.call(asyncio.get_running_loop)
        self._lock = threading.Lock()
        self._exit_call: Any = None
        self._signals: list[int] = []
        self._is_exiting = False
        self._waits = 0
        self._handlers_before: dict[int, Any] = {}
        self._wait_first_at_exit()
        # Again: a signal just after the end of a program makes `threading` skip its exit calls.
        atexit.register(self._at_exit)

    @property
    def alive(self) -> bool:
        """Whether it belongs to this process; a fork has none of its threads."""
        return self._pid == os.getpid()

    async def begin(self, work: Work) -> AbstractRun:
        """Start a run, and return it as soon as it has started.

        Args:
            work: runs its flow, which reports its start to `FollowedRun.here`.

        Returns:
            The run; or the result of `work`, when it has ended without a run to follow.

        Raises:
            BaseException: the error that kept it from starting.
        """
        run = await self.follow(FollowedRun, lambda _: work())
        return run if run.started.done() else run.end.result()

    @property
    def living(self) -> frozenset[Followed]:
        """What it follows now."""
        return frozenset(self._living)

    async def follow(self, kind: type[F], work: Callable[[F], Awaitable[Any]]) -> F:
        """Start a flow, and return as soon as what it runs has started, or the flow has ended.

        Args:
            kind: of what is followed.
            work: runs the flow to its end, and marks what it is given as started.
        """
        self._is_exiting = False
        self.end_runs_at_sigterm()
        context = FlowRunContext.get()
        run = kind(self._portal, self._loop, context.flow_run.id if context and context.flow_run else None)
        if context is not None and context.flow is not None:
            self._end_with(context.flow)
        run.begin(lambda: work(run))
        self._living.add(run)
        run.end.add_done_callback(lambda _: self._ended(run))
        try:
            await _one_of(run.started, run.end)
        except BaseException:
            run.stop_soon()
            await _one_of(run.end)
            raise
        self._wait_first_at_exit()
        return run

    def _ended(self, run: Followed) -> None:
        self._living.discard(run)
        error = None if run.end.cancelled() else run.end.exception()
        if isinstance(error, ExecutionError) and error.last_lines and not run.stop_requested:
            tail = "".join(f"\n  {printable(line)}" for line in error.last_lines)
            _logger.error("The run %s has failed, with these last lines:%s", run.id, tail)

    # --- waiting, and interrupts ---

    def _wait(self, runs: Collection[Followed]) -> None:
        """Wait for the end of runs; an interrupt ends them, and is raised when they have ended."""
        ends = [run.end for run in runs]
        with self._interruptible():
            _log_awaited_runs(runs)
            try:
                wait_all(ends)
            except BaseException:  # A handler of the program's own has raised it.
                _stop(runs)
                wait_all(ends)
                raise

    async def _await(self, runs: Collection[Followed]) -> None:
        """`_wait` on an event loop, where a cancellation is an interrupt, too."""
        cancelled: asyncio.CancelledError | None = None
        with self._interruptible():
            _log_awaited_runs(runs)
            for run in runs:
                while not run.end.done():
                    try:
                        with anyio.CancelScope(shield=cancelled is not None):
                            await _one_of(run.end)
                    except asyncio.CancelledError as error:
                        cancelled = error
                        _stop(runs)
            if cancelled is not None:
                raise cancelled

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Let a signal during a wait end all runs, and raise it after the wait; the program's own handlers stay.

        Raises:
            KeyboardInterrupt: at a SIGINT.
            SystemExit: at a SIGTERM.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        seen = len(self._signals)
        self._waits += 1
        try:
            for number in filter(_kills, (signal.SIGINT, signal.SIGTERM)):
                self._handlers_before[number] = signal.signal(number, self._on_signal)
            yield
        finally:
            self._waits -= 1
            if not self._waits:
                for taken, handler in self._handlers_before.items():
                    if signal.getsignal(taken) == self._on_signal:
                        signal.signal(taken, handler)
                self._handlers_before.clear()
        if came := self._signals[seen:]:
            raise KeyboardInterrupt if came[0] == signal.SIGINT else SystemExit(128 + came[0])

    def end_runs_at_sigterm(self) -> None:
        """Let a SIGTERM that would kill this process end the runs first. An existing handler decides instead."""
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals.append(number)
        _stop(self._living)
        if not (self._waits or self._is_exiting):
            self._is_exiting = True
            raise SystemExit(128 + number)

    # --- the end of a flow ---

    def _end_with(self, flow: Flow[Any, Any]) -> None:
        """Make a flow wait for its runs when it ends; an interrupted flow ends them."""
        hook = self._wait_in_async_flow if flow.isasync else self._wait_in_flow
        for hooks, register in (
            (flow.on_completion_hooks, flow.on_completion),
            (flow.on_failure_hooks, flow.on_failure),
            (flow.on_crashed_hooks, flow.on_crashed),
            (flow.on_cancellation_hooks, flow.on_cancellation),
        ):
            if hook not in hooks:
                register(hook)

    def _wait_in_flow(self, flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
        with _interrupting(flow_run, state):
            self._wait(self._of(flow_run, state))

    async def _wait_in_async_flow(self, flow: Flow[Any, Any], flow_run: FlowRun, state: State[Any]) -> None:
        with _interrupting(flow_run, state):
            await self._await(self._of(flow_run, state))

    def _of(self, flow_run: FlowRun, state: State[Any]) -> list[Followed]:
        runs = [run for run in set(self._living) if run.parent == flow_run.id]
        if not (state.is_completed() or state.is_failed()):
            _stop(runs)
        return runs

    # --- the end of the process ---

    def _wait_first_at_exit(self) -> None:
        """Be the first of what `threading` calls at the exit, before Prefect's services that a run has started.

        `threading` calls these, last in first out, before `concurrent.futures` takes no more work.
        """
        calls = threading._threading_atexits  # type: ignore[attr-defined]
        with self._lock:
            if self._exit_call in calls:
                calls.remove(self._exit_call)
            threading._register_atexit(self._at_exit)  # type: ignore[attr-defined]
            self._exit_call = calls[-1]

    def _at_exit(self) -> None:
        """Wait for the runs that still run; an interrupt ends them, whether it ended the program or comes now."""
        if not self.alive:
            return
        seen = len(self._signals)
        with suppress(KeyboardInterrupt, SystemExit), self._interruptible():
            if _was_interrupted() or _is_cancelled({run.parent for run in self._living if run.parent}):
                _stop(self._living)
            self._wait(set(self._living))
        last = getattr(sys, "last_value", None)
        came = self._signals[seen:] or ([last.signal] if isinstance(last, TerminationSignal) else [])
        if came:
            atexit.register(_die, came[0])
        self._resources.close()


class _Interrupted(State[Any]):
    """A flow's last state, for which its caller gets an interrupt. Prefect drops one that comes after that state."""

    data: BaseException

    def result(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise self.data

    async def aresult(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise self.data


@contextmanager
def _interrupting(flow_run: FlowRun, state: State[Any]) -> Iterator[None]:
    """Let an interrupt of a hook reach the flow's caller."""
    try:
        yield
    except BaseException as interrupt:
        flow_run.state = _Interrupted.model_construct(**{**dict(state), "data": interrupt})
        raise
    if isinstance(state.data, TerminationSignal):
        # Prefect would kill the process next, with lines of the runs' logs that are still to be sent.
        raise SystemExit(128 + state.data.signal)


def _kills(number: int) -> bool:
    """Whether a signal would end the program or its flow; not when the program handles it, or ignores it."""
    if number == signal.SIGTERM and is_prefect_sigterm_handler_installed():
        return True
    return signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def _die(number: int) -> None:
    """End by a signal, after all else that the exit has to do. It is too late for Python to have another exit code."""
    atexit.unregister(_die)
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # The first process of a container is not killed by a signal.


async def _one_of(*futures: Future[Any]) -> None:
    """Wait until one of these futures of other threads is done. Giving up the wait does not affect them."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()

    def wake(_: Future[Any]) -> None:
        with suppress(RuntimeError):  # The loop has ended, and with it the waiting.
            loop.call_soon_threadsafe(done.set)

    for future in futures:
        future.add_done_callback(wake)
    while not done.is_set():
        with anyio.move_on_after(SIGNAL_SECONDS):
            await done.wait()


def _stop(runs: Iterable[Followed]) -> None:
    for run in set(runs):
        run.stop_soon()


def _log_awaited_runs(runs: Iterable[Followed]) -> None:
    names = [run.id for run in runs if run.started.done() and not run.end.done() and not run.stop_requested]
    if names:
        _logger.info("Waiting for the end of what launch has started: %s. Ctrl-C ends it.", ", ".join(names))


def _was_interrupted() -> bool:
    """Whether Ctrl-C, or a SIGTERM in a flow, has ended this program, and not just a line of an interactive one."""
    last = getattr(sys, "last_type", None)
    return last is not None and issubclass(last, (KeyboardInterrupt, TerminationSignal)) and not hasattr(sys, "ps1")


def _is_cancelled(flow_run_ids: Collection[UUID]) -> bool:
    """Whether one of these flows was cancelled. For a deployment's flow only the server knows, and no hook."""
    if not flow_run_ids:
        return False
    try:
        with get_client(sync_client=True) as client:
            states = [client.read_flow_run(flow_run_id).state for flow_run_id in flow_run_ids]
    except Exception as error:  # noqa: BLE001 - a server that does not answer, a deleted flow run
        _logger.warning("Cannot read whether the flow was cancelled; waiting for its runs: %s", error)
        return False
    return any(state is not None and (state.is_cancelling() or state.is_cancelled()) for state in states)


_follower: Follower | None = None
_making: Final = threading.Lock()


def follower() -> Follower:
    """Return the follower of this process."""
    global _follower
    with _making:
        if _follower is None or not _follower.alive:
            _follower = Follower()
        return _follower
