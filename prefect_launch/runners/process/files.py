"""Run folder of a `local-process` job: the files by which an agent and the job's supervisor communicate.

The truth about a run is in its folder, so any agent can read it after any crash. A process is identified by its id, its
start time and the boot, so a later process with the same id is never mistaken for it. Nothing here blocks for long.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from prefect_launch.inputs.outputs import OUTPUT_DIR_VARIABLE
from prefect_launch.runners.base import ExitStatus, RunState, signal_of
from prefect_launch.runners.process import supervisor

log = logging.getLogger(__name__)

#: The variable of a job's environment that marks its processes.
_MARK: Final = f"{OUTPUT_DIR_VARIABLE}="
#: What was killed and is still there then hangs in the kernel.
_KILL_SECONDS: Final = 5.0


class RunFolder:
    """One run's folder, as an agent sees it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def has(self, name: str) -> bool:
        """Whether a file is there, whatever is in it."""
        return (self.path / name).exists()

    def read(self, name: str) -> dict[str, Any] | None:
        """Return what a file says, or None when it is missing or unreadable."""
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("cannot read %s: %s", self.path / name, error)
            return None
        return value if isinstance(value, dict) else None

    def write(self, name: str, value: dict[str, Any]) -> None:
        """Write a file (readable by its owner only), whole or not at all."""
        temporary = self.path / f".{name}.{uuid4().hex}.tmp"
        with open(temporary, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump(value, file)
        temporary.replace(self.path / name)

    @property
    def state(self) -> RunState:
        """Where the run is. One whose supervisor was lost is `EXITED`."""
        if self.has(supervisor.EXIT):
            return RunState.EXITED
        if self.supervisor_pid() is not None:
            return RunState.RUNNING
        return RunState.EXITED if self.has(supervisor.STARTED) else RunState.CREATED

    def supervisor_pid(self) -> int | None:
        """Return the id of the supervisor's process when it lives."""
        return living_pid(self.read(supervisor.SUPERVISOR))

    def exit(self) -> ExitStatus | None:
        """Return how the run ended, as its supervisor wrote it down; None while it has not."""
        if not self.has(supervisor.EXIT):
            return None
        try:
            return _exit(self.read(supervisor.EXIT) or {})
        except (TypeError, ValueError, OverflowError):
            return _exit({})

    def environment(self) -> dict[str, str] | None:
        """Return the environment that the job runs in; None when no process shows one to this user.

        That of its first process, or of another where a program has written over its own.
        """
        first = (self.read(supervisor.STARTED) or {}).get("pid")
        marked = supervisor.marked(os.fsencode(self.mark))
        if not marked:
            return None
        _, variables = min(marked, key=lambda one: one[0] != first)
        pairs = (os.fsdecode(one).partition("=") for one in variables)
        return {name: value for name, is_set, value in pairs if is_set}

    def kill_job(self) -> list[int]:
        """Kill what is left of the job when its supervisor is gone; return the ids of those processes."""
        if not self.has(supervisor.STARTED):
            return []
        started = self.read(supervisor.STARTED) or {}
        if started.get("boot_id") not in (None, supervisor.identity(os.getpid())["boot_id"]):
            return []
        pid = started.get("pid")
        if isinstance(pid, int) and (living_pid(started) is not None or supervisor.stat_fields(pid) is None):
            # Else its id belongs to another process by now, so the group is gone.
            supervisor.send(signal.SIGKILL, _group(pid))
        return self.kill_marked()

    def kill_marked(self) -> list[int]:
        """Kill the processes whose environment says that they are of this run; return their ids. Blocks."""
        killed: set[int] = set()
        for pids in supervisor.looks_for(os.fsencode(self.mark), _KILL_SECONDS, pause=supervisor.LOOK_SECONDS):
            supervisor.send(signal.SIGKILL, pids)
            killed |= pids
        return sorted(killed)

    @property
    def mark(self) -> str:
        """The environment variable that the job's processes were started with, wherever they went."""
        return f"{_MARK}{self.path.absolute() / 'outputs'}"


def _exit(written: dict[str, Any]) -> ExitStatus:
    error = None if written else f"how it ended is not known: {supervisor.EXIT} in its run folder is broken"
    return ExitStatus(
        exit_code=written.get("exit_code"),
        signal=written.get("signal") or signal_of(written.get("exit_code")),
        oom_killed=written.get("oom_killed", False),
        stopped=written.get("stopped", False),
        error=written.get("error", error),
        started_at=_time(written.get("started_at")),
        ended_at=_time(written.get("ended_at")),
        peak_memory_bytes=written.get("peak_memory_bytes"),
        cpu_seconds=written.get("cpu_seconds"),
    )


def living_pid(identity: dict[str, Any] | None) -> int | None:
    """Return the process id of `identity` (as `supervisor.identity` made it) when that very process lives."""
    pid = identity.get("pid") if identity else None
    fields = supervisor.stat_fields(pid) if isinstance(pid, int) else None
    if identity is None or fields is None or fields[0] in ("Z", "X") or fields[19] != identity.get("start_time"):
        return None
    return pid if supervisor.identity(os.getpid())["boot_id"] == identity.get("boot_id") else None


def _group(group: int) -> set[int]:
    """Return the living processes of a process group that leads its own session, as a job's does."""
    members = set()
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        fields = supervisor.stat_fields(pid)
        if fields is not None and fields[0] not in ("Z", "X") and int(fields[2]) == group == int(fields[3]):
            members.add(pid)
    return members


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, timezone.utc)
