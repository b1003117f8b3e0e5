"""Scripts of jobs for the in-memory fakes: how long a job takes, what it writes, how it ends. Nothing runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone

import anyio

from prefect_launch.core.states import ItemState
from prefect_launch.errors import LaunchError
from prefect_launch.runners.base import NEVER_STARTED, ExitStatus, RunPlan, nothing, signal_of
from prefect_launch.runners.usage import Usage


class Err(bytes):
    """A piece of a job's log that is written to its standard error."""


@dataclass(frozen=True)
class Script:
    """One job's behaviour.

    Attributes:
        seconds: how long it runs, after its log lines were written.
        exit_code: how it ends by itself.
        log: what it writes at its start, piece by piece; an `Err` is of its standard error.
        late_log: what it writes at its end.
        outputs: files that it leaves in its outputs folder, by relative path.
        code: files that it writes into its code folder, likewise.
        ignores_term: whether only a kill ends it.
        oom_killed: whether the kernel ends it because memory runs out.
        memory_bytes: what it holds while it runs; None: that is not told.
        cpus: how many CPUs it keeps busy.
        missing: whether its program does not exist.
        waits_for: what its machine has to bring about first: `PULLING` or `BUILDING`.
        prepare_error, create_error, start_error: raised by that step of its runner.
    """

    seconds: float = 0.0
    exit_code: int = 0
    log: tuple[bytes, ...] = ()
    late_log: tuple[bytes, ...] = ()
    outputs: Mapping[str, bytes] = field(default_factory=dict)
    code: Mapping[str, bytes] = field(default_factory=dict)
    ignores_term: bool = False
    oom_killed: bool = False
    memory_bytes: int | None = None
    cpus: float = 0.0
    missing: bool = False
    waits_for: ItemState | None = None
    prepare_error: LaunchError | None = None
    create_error: LaunchError | None = None
    start_error: LaunchError | None = None


class ScriptedProcess:
    """A script that "runs" in the current event loop.

    Args:
        script: what it does.
        write: takes what it writes.
        on_end: called once it has ended.
    """

    def __init__(self, script: Script, write: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self.exit_code: int | None = None
        self._script = script
        self._write = write
        self._on_end = on_end
        self._ended = asyncio.Event()
        self._killed_with: int | None = None
        self._began = time.monotonic()
        self._stopped = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def signal(self) -> str | None:
        """The signal that ended it."""
        return signal_of(self.exit_code)

    @property
    def usage(self) -> Usage | None:
        """What it uses; None when it does not run, or does not tell."""
        if self.exit_code is not None or self._script.memory_bytes is None:
            return None
        return Usage(self._script.cpus * (time.monotonic() - self._began), self._script.memory_bytes)

    def kill(self, number: int) -> None:
        """Send it a signal: 9 ends it always, another one unless it ignores TERM."""
        if number == 9 or not self._script.ignores_term:
            self._killed_with = number
            self._stopped.set()

    def finish(self) -> None:
        """Let it come to its end now, in the place of when its time is over."""
        self._stopped.set()

    async def wait(self) -> int:
        """Wait until it has ended; return its exit code."""
        await self._ended.wait()
        return self.exit_code or 0

    async def _run(self) -> None:
        script = self._script
        for piece in script.log:
            self._write(piece)
        with anyio.move_on_after(max(script.seconds, 0.001)):
            await self._stopped.wait()
        if self._killed_with is None:
            for piece in script.late_log:
                self._write(piece)
        code = 137 if script.oom_killed else script.exit_code
        self.exit_code = code if self._killed_with is None else 128 + self._killed_with
        self._on_end()
        self._ended.set()


@dataclass
class ScriptedRun:
    """A run on a fake machine or cluster: what it was made from, and its process once it was started."""

    plan: RunPlan
    script: Script
    process: ScriptedProcess | None = None
    stopped: bool = False
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def is_running(self) -> bool:
        """Whether its process runs."""
        return self.process is not None and self.process.exit_code is None

    def start(self, write: Callable[[bytes], None], on_end: Callable[[], None] = nothing) -> None:
        """Start its process; one whose program does not exist ends with 127, as in a shell.

        Args:
            write: takes what it writes.
            on_end: is called once it has ended.
        """

        def end() -> None:
            self.ended_at = datetime.now(timezone.utc)
            on_end()

        self.started_at = datetime.now(timezone.utc)
        self.process = ScriptedProcess(Script(exit_code=127) if self.script.missing else self.script, write, end)

    def finish(self) -> None:
        """Let its process come to its end now, if it has one."""
        if self.process is not None:
            self.process.finish()

    def kill(self, number: int) -> None:
        """Send its process a signal, if it has one."""
        if self.process is not None:
            self.process.kill(number)

    def write_outputs(self) -> None:
        """Write the files that it leaves."""
        code = self.plan.code_dir or self.plan.run_dir
        for folder, files in ((self.plan.output_dir, self.script.outputs), (code, self.script.code)):
            for name, content in files.items():
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)

    def exit_status(self) -> ExitStatus:
        """Return how it ended."""
        if self.process is None:
            return ExitStatus(exit_code=None, stopped=self.stopped, error=NEVER_STARTED)
        return ExitStatus(
            exit_code=self.process.exit_code,
            signal=self.process.signal,
            oom_killed=self.script.oom_killed and not self.stopped,
            stopped=self.stopped,
            error=f"the entry point {self.plan.command!r} is not there" if self.script.missing else None,
            started_at=self.started_at,
            ended_at=self.ended_at,
        )
