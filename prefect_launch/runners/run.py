"""Run handle: an `AbstractRun` is a started run as its caller sees it, and looks like a Future.

It keeps the reference's status words. `RunnerRun` implements it over any runner. It reports what the machine says, and
knows nothing of queues or of the Prefect server.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import anyio

from prefect_launch.core.event_loop import run_sync
from prefect_launch.runners.base import ExitStatus, Runner, RunPlan, RunState

State = Literal["unknown", "starting", "running", "failed", "finished", "stopping", "stopped", "preempted"]

#: What `cancel` gives a job between TERM and KILL, as `docker stop` does.
DEFAULT_GRACE_SECONDS = 10.0


class Status:
    """Where a run is. Equal to another status, or to a text, of the same state.

    Attributes:
        state: one of unknown, starting, running, failed, finished, stopping, stopped, preempted.
        messages: what there is to say about it, such as why it failed.
    """

    __slots__ = ("messages", "state")

    def __init__(self, state: State = "unknown", messages: list[str] | None = None) -> None:
        self.state: State = state
        self.messages: list[str] = list(messages or [])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Status):
            return self.state == other.state
        return self.state == other if isinstance(other, str) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.state)

    def __str__(self) -> str:
        return self.state

    def __repr__(self) -> str:
        return f"Status(state={self.state!r}, messages={self.messages!r})"


class AbstractRun(ABC):
    """A run that was started: wait for it, read its log, cancel it.

    `wait`, `cancel`, `get_status` and `get_logs` are coroutines, as the reference has them; synchronous code calls
    `wait_sync`, `cancel_sync`, `get_status_sync` and `get_logs_sync`.
    """

    @property
    @abstractmethod
    def id(self) -> str | None:
        """The run's id."""

    @property
    @abstractmethod
    def status(self) -> Status:
        """The status as it was last seen, without asking."""

    @abstractmethod
    async def get_status(self) -> Status:
        """Ask for the status now."""

    @abstractmethod
    async def get_logs(self) -> str | None:
        """Return what the job has written so far, both streams as they came, its secrets masked; None: no log yet."""

    @abstractmethod
    async def wait(self, timeout: float | None = None) -> bool:
        """Wait until the run has ended.

        Args:
            timeout: at most this many seconds; None waits as long as it takes. The run continues when it passes.

        Returns:
            Whether it succeeded.

        Raises:
            TimeoutError: when it has not ended in time.
        """

    @abstractmethod
    async def cancel(self) -> None:
        """End it: TERM, then KILL. Returns when it is seen to be gone; a run that has ended is left as it is."""

    # --- the same for synchronous code ---

    def get_status_sync(self) -> Status:
        """`get_status` for synchronous code. It blocks a running event loop."""
        return run_sync(self.get_status())

    def get_logs_sync(self) -> str | None:
        """`get_logs` for synchronous code. It blocks a running event loop."""
        return run_sync(self.get_logs())

    def wait_sync(self, timeout: float | None = None) -> bool:
        """`wait` for synchronous code, with its argument, result and errors. It blocks a running event loop."""
        return run_sync(self.wait(timeout))

    def cancel_sync(self) -> None:
        """`cancel` for synchronous code. It blocks a running event loop."""
        run_sync(self.cancel())


class RunnerRun(AbstractRun):
    """A run on any resource.

    Args:
        runner: the runner that created it, or one made after it for the same machine.
        handle: what `Runner.create` returned.
        plan: what it was created from.
        grace_seconds: what `cancel` gives the job between TERM and KILL.
    """

    def __init__(
        self, runner: Runner, handle: str, plan: RunPlan, *, grace_seconds: float = DEFAULT_GRACE_SECONDS
    ) -> None:
        self._runner = runner
        self._handle = handle
        self._plan = plan
        self._grace_seconds = grace_seconds
        self._status = Status("starting")
        self._watch: asyncio.Task[ExitStatus] | None = None
        self._exit: ExitStatus | None = None

    @property
    def id(self) -> str:
        return self._plan.run_id

    @property
    def status(self) -> Status:
        return self._status

    @property
    def exit(self) -> ExitStatus | None:
        """How it ended; None while it has not been seen to end."""
        return self._exit

    @property
    def log_path(self) -> Path:
        """The file that its log grows in."""
        return self._plan.log_path

    async def get_status(self) -> Status:
        if self._exit is None and self._status != "stopping":
            found = await self._runner.find(self._plan.labels)
            state = next((one.state for one in found if one.handle == self._handle), None)
            if state is RunState.EXITED:
                await self._ended()
            else:
                self._status = _living_status(state)
        return self._status

    async def get_logs(self) -> str | None:
        text = await asyncio.to_thread(_read_text, self._plan.log_path)
        return None if text is None else await asyncio.to_thread(self._plan.mask.text, text)

    async def wait(self, timeout: float | None = None) -> bool:
        try:
            with anyio.fail_after(timeout):
                return (await self._ended()).succeeded
        except TimeoutError:
            raise TimeoutError(
                f"The run {self.id!r} has not ended within {timeout} s; it continues. Wait again, or cancel it."
            ) from None

    async def cancel(self) -> None:
        if self._exit is not None:
            return
        self._status = Status("stopping")
        await self._runner.stop(self._handle, self._grace_seconds)
        await self._ended()

    async def _ended(self) -> ExitStatus:
        """Wait for the end in one task that all callers share, so that one caller's time limit ends no other's
        waiting."""
        if self._exit is None:
            loop = asyncio.get_running_loop()
            if self._watch is None or self._watch.done() or self._watch.get_loop() is not loop:
                self._watch = loop.create_task(self._runner.watch(self._handle, self._plan))
            self._exit = await asyncio.shield(self._watch)
            self._status = _final_status(self._exit)
        return self._exit


def _living_status(state: RunState | None) -> Status:
    if state is None:
        return Status("unknown", ["it does not exist any more"])
    return Status("running" if state is RunState.RUNNING else "starting")


def _final_status(end: ExitStatus) -> Status:
    if end.stopped:
        return Status("stopped", [end.describe(), *end.warnings])
    if end.succeeded:
        return Status("finished", list(end.warnings))
    return Status("failed", [end.describe(), *end.warnings])


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
