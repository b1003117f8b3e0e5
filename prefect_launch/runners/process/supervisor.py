"""Supervisor of one `local-process` job: starts the job once, waits for it, and writes down how it ended.

`main` runs in a process that the agent's fork server has forked (`forkserver.py`), with the standard library only and
in a session of its own, so it lives on when the agent ends. It promises two things. `started.json` is on disk before
any code of the job runs, and means "must never be started again". `exit.json` is on disk after everything that the job
left running is gone and its log is complete. The agent controls the supervisor by files in RUN_DIR (see `files.py`) and
by SIGTERM, which means "read stop.json and stop". The supervisor knows no agent.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import time

if __package__:
    from prefect_launch.runners.log_streams import LogWriter
else:  # in the fork server's process, which has the standard library and this folder only
    from log_streams import LogWriter  # type: ignore[import-not-found,no-redef]

TYPE_CHECKING = False  # The fork server needs no `typing`.
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    Json = dict[str, Any]

PROCESS = "process.json"
ENVIRONMENT = "environment.json"
SUPERVISOR = "supervisor.json"
STARTED = "started.json"
STOP = "stop.json"
EXIT = "exit.json"
#: Is there once `item exec` has run a command beside the job, and names the variable that marks the run's processes.
JOINED = "joined.json"
LOCK = "supervisor.lock"
LOG = "job.log"
#: The newest claim of the item, written by the agent that plans an attempt at it (`runners.base.CLAIM_FILE`).
CLAIM = "../claim"

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
#: As shells say it: the command was found but cannot be run; it was not found.
_CANNOT_RUN, _NOT_FOUND = 126, 127
#: How long a command that was run beside the job has to leave its terminal in order.
_LEAVE_SECONDS = 0.2
#: Looks in a row that find nothing of a job, until nothing of it is there.
_LOOKS = 2
LOOK_SECONDS = 0.02
#: How long killed processes may take to be gone; one in an uninterruptible call (a dead network disk) may never be.
_REAP_SECONDS = 10.0


class Job:
    """The job's main process and all that descends from it."""

    def __init__(self, pid: int, log: LogWriter) -> None:
        self.pid = pid
        self.log = log
        self.status: int | None = None
        self.peak_memory_bytes = 0
        self.cpu_seconds = 0.0
        self.kill_at: float | None = None
        self.killed_by_us = False

    def reap(self) -> bool:
        """Collect each descendant that has ended (orphans come to us: we are the subreaper); return if any is left."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.peak_memory_bytes = max(self.peak_memory_bytes, usage.ru_maxrss * 1024)
            self.cpu_seconds += usage.ru_utime + usage.ru_stime
            if pid == self.pid:
                self.status = status

    def signal_all(self, number: int) -> None:
        """Send a signal to every living descendant, also those that left the job's process group."""
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue


def main(run_dir: str, ready_fd: int | None, variables_fd: int | None = None) -> None:
    """Run the job in `run_dir` from start to end; `ready_fd` is closed once its program runs, or nothing will run.

    `variables_fd` holds, as JSON, the variables of an agent's own program, under those that the run's folder has.
    """
    # First of all: a stop that comes early must wait for us, not end us.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP})
    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)
    variables: Json = {}
    if variables_fd is not None:
        with os.fdopen(variables_fd, "rb") as file:
            variables = json.load(file)
    os.chdir(run_dir)
    lock = os.open(LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # Another supervisor has this run.
    if os.path.exists(EXIT) or os.path.exists(STARTED):
        return
    write_json(SUPERVISOR, identity(os.getpid()))
    begun = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
    process = read_json(PROCESS)
    refused = refusal(process.get("claim"))
    if refused is not None:
        finish(refused, begun)
        return
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    kills_before = out_of_memory_kills()
    job, problem = start(process, {**variables, **read_json(ENVIRONMENT)})
    unlink(ENVIRONMENT)
    if ready_fd is not None:
        os.close(ready_fd)
    if problem is not None:
        job.reap()
        job.log.finish(_REAP_SECONDS)
        finish({**problem, "started_at": begun[0]}, begun)
        return
    supervise(job)
    end_leftovers(job)
    end_joined()
    job.log.finish(_REAP_SECONDS)
    finish({**outcome(job, kills_before), "started_at": begun[0]}, begun)


def refusal(claim: str | None) -> Json | None:
    """Say why nothing may be started: a stop was requested, or another agent has claimed its item."""
    if os.path.exists(STOP):
        return {"stopped": True, "error": "it had not started"}
    if claim and os.path.exists(CLAIM):
        with open(CLAIM, encoding="utf-8", errors="replace") as file:
            return {"error": "not started: the item was claimed again"} if file.read() != claim else None
    return None


def start(process: Json, environment: Json) -> tuple[Job, Json | None]:
    """Fork the job; let it go on to its code only once `started.json` is on disk. Return it, and why it cannot run."""
    go_read, go_write = os.pipe()
    problem_read, problem_write = os.pipe()
    output, write_output = os.pipe()
    error, write_error = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go_write)
        become_job(process, environment, (write_output, write_error), go_read, problem_write)
    for ours in (go_read, problem_write, write_output, write_error):
        os.close(ours)
    log = LogWriter(LOG, output, error)
    write_json(STARTED, identity(pid))
    os.write(go_write, b"1")
    os.close(go_write)
    with os.fdopen(problem_read, "rb") as pipe:
        failure = pipe.read()  # Ends when the job's own program takes over (the pipe closes on exec).
    if failure:
        os.waitpid(pid, 0)
        return Job(pid, log), json.loads(failure)
    return Job(pid, log), None


def become_job(process: Json, environment: Json, streams: tuple[int, int], go: int, problem: int) -> None:
    """In the child: take on the job's session, streams and folder, and turn into its program. Never returns."""
    command = process["command"]
    try:
        os.setsid()
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # Should we be killed, the job must not run on unwatched.
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, streams[0]), (2, streams[1])):
            os.dup2(source, target)
        if os.read(go, 1) != b"1":
            os._exit(_CANNOT_RUN)
        os.chdir(process["cwd"])
        if process.get("nice"):
            os.nice(process["nice"])
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them; programs expect the default.
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, set())
        os.execvpe(command[0], command, environment)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        what = {
            "exit_code": _NOT_FOUND if missing else _CANNOT_RUN,
            "error": f"the entry point {command!r} cannot be run in {process['cwd']!r}: {error.strerror}",
        }
        os.write(problem, json.dumps(what).encode())
    finally:
        os._exit(_CANNOT_RUN)


def supervise(job: Job) -> None:
    """Wait until the job's main process has ended; stop it when a stop is requested."""
    while job.status is None:
        timeout = 3600.0 if job.kill_at is None else max(0.0, job.kill_at - time.monotonic())
        received = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, timeout)
        if received is not None and received.si_signo == signal.SIGTERM and os.path.exists(STOP):
            deadline = time.monotonic() + float(read_json(STOP).get("grace_seconds", 0))
            job.kill_at = deadline if job.kill_at is None else min(job.kill_at, deadline)
            job.signal_all(signal.SIGTERM)
        if job.kill_at is not None and time.monotonic() >= job.kill_at:
            job.killed_by_us = True
            job.signal_all(signal.SIGKILL)
            job.kill_at = time.monotonic() + 1.0  # Again: it may have forked meanwhile.
        job.reap()


def end_leftovers(job: Job) -> None:
    """Let leftover processes use the rest of the stop's grace, then kill them: a job ends with its main process."""
    give_up = time.monotonic() + _REAP_SECONDS + max(0.0, (job.kill_at or 0.0) - time.monotonic())
    while time.monotonic() < give_up:
        if not job.reap():
            return
        left = -1.0 if job.kill_at is None or job.killed_by_us else job.kill_at - time.monotonic()
        if left <= 0:
            job.signal_all(signal.SIGKILL)
            left = 0.05
        signal.sigtimedwait({signal.SIGCHLD}, left)


def end_joined() -> None:
    """End the commands that were run beside the job: they are no descendants, but carry its mark."""
    if not os.path.exists(JOINED):
        return
    mark = str(read_json(JOINED)["mark"]).encode()
    number = signal.SIGHUP
    for pids in looks_for(mark, _REAP_SECONDS, pause=_LEAVE_SECONDS):
        send(number, pids)
        number = signal.SIGKILL if pids else number


def outcome(job: Job, kills_before: int) -> Json:
    """Say how the main process ended. A kill counts as out of memory only when the kernel counted one meanwhile."""
    status = job.status or 0
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = 128 + number if number else os.WEXITSTATUS(status)
    stopped = os.path.exists(STOP)
    killed = code == 128 + signal.SIGKILL and not stopped
    return {
        "exit_code": code,
        "signal": signal_name(number),
        "oom_killed": killed and out_of_memory_kills() > kills_before,
        "stopped": stopped,
        "peak_memory_bytes": job.peak_memory_bytes,
        "cpu_seconds": round(job.cpu_seconds, 3),
    }


def signal_name(number: int) -> str | None:
    """Return such as "SIGKILL", also for a real-time signal that Python has no name for."""
    names = {one.value: one.name for one in signal.Signals}
    return names.get(number, f"SIGNAL {number}") if number else None


def out_of_memory_kills() -> int:
    """Return how often the kernel has killed a process because memory ran out (the machine's or a control group's)."""
    try:
        with open("/proc/vmstat", encoding="ascii") as lines:
            return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
    except OSError:
        return 0


def descendants(root: int) -> list[int]:
    """Return the ids of all living processes below `root`."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        fields = stat_fields(int(entry)) if entry.isdigit() else None
        if fields is not None and fields[0] not in ("Z", "X"):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, left = [], [root]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def stat_fields(pid: int) -> list[str] | None:
    """Return the fields of `/proc/PID/stat` from the state on (its third), or None when there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def environments() -> Iterator[tuple[int, list[bytes]]]:
    """Yield the processes of this user, each with the environment variables (`NAME=value`) that it was started with."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/environ", "rb") as file:
                yield int(entry), file.read().split(b"\0")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # Ended, or another user's: not the job's.


def marked(mark: bytes) -> list[tuple[int, list[bytes]]]:
    """Return the processes that have a variable in their environment, each with all of that."""
    return [(pid, variables) for pid, variables in environments() if mark in variables]


def looks_for(mark: bytes, most: float, *, pause: float) -> Iterator[set[int]]:
    """Look for the processes that have a variable in their environment, until none was found twice.

    One that is just starting a program shows no environment, and one may be forked behind the look.

    Args:
        mark: the variable.
        most: after which time it gives up, s.
        pause: after a look that has found some, s.
    """
    unseen, give_up = 0, time.monotonic() + most
    while unseen < _LOOKS and time.monotonic() < give_up:
        found = {pid for pid, _ in marked(mark)}
        yield found
        unseen = 0 if found else unseen + 1
        time.sleep(pause if found else LOOK_SECONDS)


def send(number: int, pids: Iterable[int]) -> None:
    """Send a signal to processes, some of which may be gone."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def identity(pid: int) -> Json:
    """Return the identity of a process. Its id is not enough: the kernel uses ids again."""
    fields = stat_fields(pid)
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return {"pid": pid, "start_time": fields[19] if fields else None, "boot_id": file.read().strip()}


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process that only the C library's `prctl` can set."""
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl failed")


def read_json(name: str) -> Json:
    """Read one of the run's files."""
    with open(name, encoding="utf-8") as file:
        return dict(json.load(file))


def write_json(name: str, value: Json) -> None:
    """Write a file whole or not at all, whatever is killed when."""
    temporary = f"{name}.{os.getpid()}.tmp"
    if os.path.exists(f"{name}.reserve"):
        os.replace(f"{name}.reserve", temporary)  # Its blocks are there even when the disk is full by now.
    keep = ~os.O_TRUNC
    with open(temporary, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags & keep, 0o600)) as file:
        json.dump(value, file)
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, name)


def unlink(name: str) -> None:
    """Remove a file when it is there."""
    if os.path.exists(name):
        os.unlink(name)


def finish(value: Json, begun: tuple[float, float]) -> None:
    """Write down how the run ended: its time by a clock that nobody sets meanwhile."""
    unlink(ENVIRONMENT)
    write_json(EXIT, {**value, "ended_at": begun[0] + time.clock_gettime(time.CLOCK_BOOTTIME) - begun[1]})
