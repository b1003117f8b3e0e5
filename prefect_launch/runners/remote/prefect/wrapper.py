"""Wrapper of a job in another work pool: runs its command where a worker has started it, and reports to the server.

It runs in the worker's infrastructure, in whatever image that has: the standard library of Python 3.8 is all it needs.
The server hands it over with the run's plan (`payload.py`). It promises:

- A run is started once, however often a worker starts its infrastructure again.
- Each byte of the output is sent once, in order, also when the server is away meanwhile. Output that the server does
  not take is counted, and reported in the log.
- The end is reported after the whole log, with the exact exit code.

It ends the job, TERM then KILL, when its flow run is asked to end, has ended or is gone, or when it gets TERM itself.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.machinery
import io
import json
import os
import selectors
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

if __package__:
    from prefect_launch.core.masking import Mask
    from prefect_launch.runners.remote.prefect.wrapper_api import Api, GoneError, RefusedError
else:  # where a worker has started it, without this package
    from masking import Mask  # type: ignore[import-not-found,no-redef]
    from wrapper_api import Api, GoneError, RefusedError  # type: ignore[import-not-found,no-redef]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Json = dict[str, Any]
    #: Name, level, text.
    Record = tuple[str, int, str]

START_KEY = "launch-start"
CODE_KEY = "launch-code"
OUTPUTS_KEY = "launch-outputs"
#: Where the library for a job's inputs is, in its code.
LIBRARY = "._prefect_launch_inputs"
HEARTBEAT_LABEL = "prefect-launch.heartbeat"
#: Begins the names under which the output is logged: `job.stdout`, `job.stderr`.
STREAMS = ("job.stdout", "job.stderr")
#: Ends the name of a record whose text has no line end after it; of one whose text is base64 of what is no text.
PART, BINARY = ".part", ".base64"

#: As Prefect Cloud takes them at most, less a margin; and what is sent in one request, as it is encoded.
_RECORD_BYTES, _BATCH_RECORDS, _BATCH_BYTES = 20_000, 50, 256 * 1024
#: What a record has beside its text, as it is encoded.
_FRAME_BYTES = 300
#: A record that is refused is cut in two, down to so few bytes.
_LEAST_RECORD_BYTES = 1_000
_SEND_SECONDS = 1.0
#: A line that does not end is sent after this time.
_OPEN_LINE_SECONDS = 5.0
#: Beyond this, the job waits while the server takes its output, however slowly; while it takes none, more is discarded.
_MOST_PENDING_BYTES = 64 * 1024 * 1024
_STALL_SECONDS = 60.0
_HEARTBEAT_SECONDS = 60.0
#: The longest pause between two looks at the flow run's state; the first minute has shorter ones.
_LOOK_SECONDS = 10.0
#: How long streams may stay open in silence once the command has ended.
_SILENCE_SECONDS = 0.5
_CHUNK_CHARS = 512 * 1024
_NEVER_STARTED = "it had not started"
_CANNOT_RUN, _NOT_FOUND = 126, 127


class Log:
    """The output of the job on its way to the server.

    Args:
        api: the server.
        mask: hides the secrets that the job was given, also where a line is cut.

    Attributes:
        lost_bytes: of the output, which the server has not taken.
        lost_why: why the last of them.
    """

    def __init__(self, api: Api, mask: Mask | None = None) -> None:
        self._api, self._mask = api, mask or Mask()
        self._pieces: list[tuple[bool, bytearray]] = []
        self._pending_bytes = self._discarded_bytes = 0
        self._open_since = self._progress_at = 0.0
        self._last = datetime.now(timezone.utc)
        self._changed = threading.Condition()
        self._is_final = self._is_closed = False
        self.lost_bytes, self.lost_why = 0, ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def is_full(self) -> bool:
        """Whether the job should wait: the server is slow, and takes what there is."""
        return self._is_beyond() and time.monotonic() - self._progress_at < _STALL_SECONDS

    def _is_beyond(self) -> bool:
        return self._pending_bytes > _MOST_PENDING_BYTES

    def add(self, is_error: bool, piece: bytes) -> None:
        """Take what the job has written to one of its streams; it is discarded when too much waits already."""
        with self._changed:
            if self._is_closed or self._is_beyond():
                self._discarded_bytes += len(piece)
                return
            self._note_discarded()
            self._append(is_error, piece)

    def _append(self, is_error: bool, piece: bytes) -> None:
        now = time.monotonic()
        if not self._pieces:
            self._open_since = now
        if not self._pending_bytes:
            self._progress_at = now
        if not (self._pieces and self._pieces[-1][0] is is_error):
            self._pieces.append((is_error, bytearray()))
        self._pieces[-1][1].extend(piece)
        self._pending_bytes += len(piece)

    def _note_discarded(self) -> None:
        """Say in the log, at its place, what was discarded."""
        if self._discarded_bytes:
            note = self._lose(self._discarded_bytes, "the server has taken none of it for too long")
            self._discarded_bytes = 0
            is_open = bool(self._pieces) and not self._pieces[-1][1].endswith(b"\n")
            self._append(True, (b"\n" if is_open else b"") + note)

    def _lose(self, count: int, why: str) -> bytes:
        self.lost_bytes += count
        self.lost_why = why
        return f"[prefect-launch: {count:,} bytes of the output are not here: {why}]\n".encode()

    def finish(self) -> None:
        """Send the rest; blocks until the server has it."""
        with self._changed:
            self._note_discarded()
            self._is_final = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            is_final = False
            while not is_final:
                with self._changed:
                    if not self._is_final:
                        self._changed.wait(_SEND_SECONDS)
                    is_final, pieces = self._is_final, self._take()
                shown = ((is_error, self._mask.data(piece)) for is_error, piece in pieces)
                records = [record for is_error, piece in shown for record in records_of(is_error, piece)]
                hidden = sum(len(piece) for _, piece in pieces) - sum(map(bytes_of, records))
                for batch in batches_of(records):
                    self._send(batch)
                self._count(hidden)
        except Exception as error:  # noqa: BLE001 - such as a flow run that is gone: the job comes to its end without a log
            with self._changed:
                self._is_closed = True
                self._lose(self._pending_bytes, str(error))
                self._pieces = []

    def _send(self, batch: list[Record]) -> None:
        """Send records, in halves when they are refused together; one that is refused alone is discarded."""
        try:
            self._api.log([self._stamped(*record) for record in batch])
        except RefusedError as error:
            halves = [batch[: len(batch) // 2], batch[len(batch) // 2 :]] if len(batch) > 1 else halves_of(batch[0])
            for half in halves:
                self._send(half)
            if not halves:
                self._discard(batch[0], str(error))
            return
        self._count(sum(map(bytes_of, batch)))

    def _discard(self, record: Record, why: str) -> None:
        note = self._lose(bytes_of(record), why)
        self._count(bytes_of(record))
        with contextlib.suppress(RefusedError):
            self._api.log([self._stamped(*one) for one in records_of(True, note)])

    def _count(self, done: int) -> None:
        with self._changed:
            self._pending_bytes -= done
            self._progress_at = time.monotonic()

    def _take(self) -> list[tuple[bool, bytes]]:
        """Take what can be sent now: whole lines, unless the last one has been open for long."""
        taken, self._pieces = [(is_error, bytes(piece)) for is_error, piece in self._pieces], []
        if not taken or self._is_final:
            return taken
        is_error, last = taken.pop()
        cut = last.rfind(b"\n") + 1
        if time.monotonic() - self._open_since > _OPEN_LINE_SECONDS:
            cut = max(cut, self._mask.sure(last))
        if last[cut:]:
            self._pieces = [(is_error, bytearray(last[cut:]))]
        return [*taken, (is_error, last[:cut])] if cut else taken

    def _stamped(self, name: str, level: int, message: str) -> Json:
        # Each record has a time of its own, after that of the last: the reader goes by them.
        self._last = max(datetime.now(timezone.utc), self._last + timedelta(microseconds=1))
        return {"name": name, "level": level, "message": message, "timestamp": self._last.isoformat()}


def batches_of(records: list[Record]) -> Iterator[list[Record]]:
    """Cut records into what goes into one request."""
    batch: list[Record] = []
    size = 0
    for record in records:
        length = len(json.dumps(record)) + _FRAME_BYTES
        if batch and (len(batch) == _BATCH_RECORDS or size + length > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += length
    if batch:
        yield batch


def bytes_of(record: Record) -> int:
    """Return how many bytes of the output a record holds."""
    return len(_output_of(record))


def _output_of(record: Record) -> bytes:
    name, _, message = record
    if name.endswith(BINARY):
        return base64.b64decode(message)
    return message.encode() + (b"" if name.endswith(PART) else b"\n")


def halves_of(record: Record) -> list[list[Record]]:
    """Cut a record in two, which are sent one after the other; none of a short one."""
    output, name = _output_of(record), record[0]
    if len(output) <= _LEAST_RECORD_BYTES:
        return []
    middle = len(output) // 2
    while not name.endswith(BINARY) and output[middle] & 0xC0 == 0x80:  # Inside a character of UTF-8.
        middle -= 1
    is_error = name.startswith(STREAMS[1])
    return [records_of(is_error, half) for half in (output[:middle], output[middle:])]


def records_of(is_error: bool, output: bytes) -> list[Record]:
    """Return output of one stream as records: the name, which says how to read the text, the level and the text."""
    found = []
    name, level = STREAMS[is_error], 30 if is_error else 20
    for is_text, block in _blocks(output):
        if not is_text:
            found.append((name + BINARY, level, base64.b64encode(block).decode()))
        elif block.endswith(b"\n"):
            found.append((name, level, block[:-1].decode()))
        else:
            found.append((name + PART, level, block.decode()))
    return found


def _blocks(output: bytes) -> list[tuple[bool, bytes]]:
    """Cut output into blocks that records can hold: whole lines where they are short, and what is no text apart."""
    blocks: list[tuple[bool, bytes]] = []
    for line in _lines(output):
        for piece in _pieces_of(line):
            is_text = _is_text(piece)
            if blocks and blocks[-1][0] is is_text and len(blocks[-1][1]) + len(piece) <= _RECORD_BYTES:
                blocks[-1] = (is_text, blocks[-1][1] + piece)
            else:
                blocks.append((is_text, piece))
    return blocks


def _lines(output: bytes) -> list[bytes]:
    """Split at line feeds alone: a carriage return is a part of its line."""
    lines = [line + b"\n" for line in output.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return [line for line in lines if line]


def _pieces_of(line: bytes) -> list[bytes]:
    pieces = []
    while len(line) > _RECORD_BYTES:
        end = _RECORD_BYTES
        while end > _RECORD_BYTES - 4 and line[end] & 0xC0 == 0x80:  # Inside a character of UTF-8.
            end -= 1
        pieces.append(line[:end])
        line = line[end:]
    return [*pieces, line]


def _is_text(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return b"\0" not in piece  # Which the server would leave out.


class Job:
    """The command, as a process group of its own.

    Args:
        plan: says what to run.
        folder: of this run alone.
        env: its variables.
    """

    def __init__(self, plan: Json, folder: str, env: dict[str, str]) -> None:
        self._out_of_memory_before = out_of_memory_kills()
        self._kill_at: float | None = None
        self.error: str | None = None
        self.returncode: int | None = None
        cwd = os.path.normpath(os.path.join(folder, "code", plan.get("working_dir") or "")) if plan["code"] else None
        if cwd is None and plan.get("working_dir"):
            cwd = plan["working_dir"]
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._process = subprocess.Popen(
                plan["command"],
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            self.returncode = _NOT_FOUND if missing else _CANNOT_RUN
            why = getattr(error, "strerror", None) or error
            self.error = f"the entry point {plan['command']!r} cannot be run in {cwd or os.getcwd()!r}: {why}"

        self._guard = guard(self._process.pid) if self._process is not None else None

    def stop(self, grace_seconds: float) -> None:
        """Send TERM, and KILL after the grace; may be called again, with another grace."""
        deadline = time.monotonic() + max(0.0, grace_seconds)
        if self._kill_at is None or deadline < self._kill_at:
            self._kill_at = deadline
        self._signal(signal.SIGTERM)

    def follow(self, log: Log) -> None:
        """Copy the output to the log until the command has ended, and nothing of its group is left."""
        if self._process is None:
            return
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        with selectors.DefaultSelector() as selector:
            for is_error, stream in enumerate((self._process.stdout, self._process.stderr)):
                selector.register(stream, selectors.EVENT_READ, bool(is_error))
            quiet_since: float | None = None
            while selector.get_map() or self.returncode is None:
                if self.returncode is None and self._process.poll() is not None:
                    self.returncode = self._process.returncode
                    self._signal(signal.SIGKILL)  # A job ends with its command.
                    quiet_since = time.monotonic()
                if self._kill_at is not None and time.monotonic() >= self._kill_at:
                    self._signal(signal.SIGKILL)
                if log.is_full or not selector.get_map():
                    time.sleep(0.05)
                    continue
                for key, _ in selector.select(0.05):
                    piece = os.read(key.fd, 65536)
                    if piece:
                        log.add(key.data, piece)
                        quiet_since = None if quiet_since is None else time.monotonic()
                    else:
                        selector.unregister(key.fileobj)
                # A process that has left the group may hold the streams open.
                if quiet_since is not None and time.monotonic() - quiet_since > _SILENCE_SECONDS:
                    return

    def end(self) -> Json:
        """Say how it has ended."""
        code = self.returncode or 0
        number = -code if code < 0 else 0
        names = {one.value: one.name for one in signal.Signals}
        if self._guard is not None:
            os.write(self._guard, b"1")
            self._guard = None
        killed = number == signal.SIGKILL and self._kill_at is None
        return {
            "exit_code": 128 + number if number else code,
            "signal": names.get(number, f"SIGNAL {number}") if number else None,
            "error": self.error,
            "oom_killed": killed and out_of_memory_kills() > self._out_of_memory_before,
            "peak_memory_bytes": _peak_memory(),
        }

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def guard(group: int) -> int:
    """Start a process that kills a process group when this process is killed; return what to write to, to end it."""
    reading, writing = os.pipe()
    if os.fork() > 0:
        os.close(reading)
        return writing
    try:
        os.setsid()
        os.close(writing)
        if not os.read(reading, 1):
            os.killpg(group, signal.SIGKILL)
    finally:
        os._exit(0)


def out_of_memory_kills() -> int:
    """Return how often the kernel has killed a process of this container because its memory ran out."""
    for path, key in (
        ("/sys/fs/cgroup/memory.events", "oom_kill"),
        ("/sys/fs/cgroup/memory/memory.oom_control", "oom_kill"),
        ("/proc/vmstat", "oom_kill"),
    ):
        try:
            with open(path, encoding="ascii") as lines:
                for line in lines:
                    name, _, count = line.partition(" ")
                    if name == key:
                        return int(count)
        except (OSError, ValueError):
            continue
    return 0


def _peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


class Watch(threading.Thread):
    """Looks at the flow run's state, and says that its job lives.

    Args:
        api: the server.
        plan: of the run.
        stop: gets the grace in seconds when the job is to end.
    """

    def __init__(self, api: Api, plan: Json, stop: Callable[[float], None]) -> None:
        super().__init__(daemon=True)
        self._api, self._plan, self._stop_job = api, plan, stop
        self._ended = threading.Event()
        #: Whether the flow run was asked to end; whether it is no longer this job's.
        self.is_stopped = self.is_taken = False

    def finish(self) -> None:
        """Look no more."""
        self._ended.set()

    def run(self) -> None:
        begun, beat_at = time.monotonic(), time.monotonic() + _HEARTBEAT_SECONDS
        first = float(self._plan["look_seconds"])
        while not self._ended.wait(min(_LOOK_SECONDS, first + (time.monotonic() - begun) / 60)):
            try:
                if time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + _HEARTBEAT_SECONDS
                    self._api.label({HEARTBEAT_LABEL: datetime.now(timezone.utc).isoformat()})
                state = self._api.state()
            except GoneError:
                state = {}
            self._look(state)

    def _look(self, state: Json) -> None:
        kind = state.get("type")
        if kind == "CANCELLING":
            data = state.get("data")
            grace = data.get("grace_seconds") if isinstance(data, dict) else None
            if not self.is_stopped:
                self.is_stopped = True
                self._stop_job(self._plan["grace_seconds"] if grace is None else grace)
        elif kind not in ("RUNNING", "PAUSED") and not (self._ended.is_set() or self.is_taken):
            self.is_taken = True
            self._stop_job(self._plan["grace_seconds"])


# --- the run ---


def main(plan: Json, api: Api) -> int:
    """Run a job from start to end; return the exit code of the wrapper.

    Args:
        plan: what the runner has handed over.
        api: the server, as this flow run.
    """
    api.gone_seconds = plan["gone_seconds"]
    token = os.urandom(16).hex()
    if not api.put_input(START_KEY, token) and api.read_input(START_KEY) != token:
        sys.stderr.write("prefect-launch: this run was started, or stopped, before; it is not started again\n")
        return 0
    stops: list[float] = []
    with tempfile.TemporaryDirectory(prefix="launch-") as folder:
        terminated = threading.Event()
        job: Job | None = None

        def stop(grace: float) -> None:
            stops.append(grace)
            if job is not None:
                job.stop(grace)

        def on_signal(number: int, frame: object) -> None:
            terminated.set()
            stop(plan["grace_seconds"])

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        output = os.path.join(folder, "outputs")
        os.mkdir(output)
        try:
            if plan["code"]:
                unpack(b"".join(chunks(api, plan["code_key"], plan["code"])), os.path.join(folder, "code"))
            env, mask = job_environment(plan, output, api.secret)
            add_library(env, folder)
        except NotStartedError as error:
            return api.finish("FAILED", {"exit_code": None, "error": str(error)})
        if not api.set_running():
            if api.state().get("type") == "CANCELLING":  # Else it has ended, as somebody else has said.
                api.finish("CANCELLED", {"exit_code": None, "stopped": True, "error": _NEVER_STARTED})
            return 0
        started = datetime.now(timezone.utc)
        job = Job(plan, folder, env)
        if stops:
            job.stop(stops[-1])
        api.limit_patience(None)
        log, watch = Log(api, mask), Watch(api, plan, stop)
        watch.start()
        job.follow(log)
        watch.finish()
        api.limit_patience()
        end = {**job.end(), "started_at": started.isoformat(), "ended_at": datetime.now(timezone.utc).isoformat()}
        log.finish()
        end.update({"log_lost_bytes": log.lost_bytes, "log_lost_why": log.lost_why})
        if watch.is_taken:
            return 0
        end.update(send_outputs(api, output, plan))
    if watch.is_stopped:
        return api.finish("CANCELLED", {**end, "stopped": True})
    if terminated.is_set():
        return api.finish("CRASHED", {**end, "terminated": True})
    return api.finish("COMPLETED" if end["exit_code"] == 0 else "FAILED", end)


class NotStartedError(Exception):
    """Why a job cannot be started, in words."""


def job_environment(plan: Json, output: str, secret: Callable[[str], str | None]) -> tuple[dict[str, str], Mask]:
    """Return the variables of the job: those of its infrastructure but Prefect's own, and those of its plan.

    With it comes what hides the secrets in them.
    """
    values = []
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env = {"WANDB_DIR": output, **inherited, **plan["env"]}
    for name, parts in plan["secret_env"].items():
        texts = []
        for part in parts:
            text = part["text"] if "text" in part else secret(part["secret"])
            if text is None:
                raise NotStartedError(
                    f"There is no Secret block {part['secret']!r} on the Prefect server. Make it, and put the item back"
                    " into its queue."
                )
            values += [] if "text" in part else [text]
            texts.append(text)
        env[name] = "".join(texts)
    env[plan["output_variable"]] = output
    return env, Mask(values)


def add_library(env: dict[str, str], folder: str) -> None:
    """Let the job import the library for its inputs, unless its Python has prefect-launch."""
    library = os.path.join(folder, "code", LIBRARY)
    installed = [folder for folder in sys.path if folder]  # Not where this wrapper happens to be started.
    if os.path.isdir(library) and importlib.machinery.PathFinder.find_spec("prefect_launch", installed) is None:
        env["PYTHONPATH"] = os.pathsep.join(filter(None, (env.get("PYTHONPATH"), library)))


def chunks(api: Api, key: str, count: int) -> list[bytes]:
    """Read what was cut into inputs, and delete them."""
    found = []
    for number in range(count):
        text = api.read_input(f"{key}-{number}")
        if text is None:
            raise NotStartedError("The code of the job is not on the Prefect server any more. Queue the item again.")
        found.append(base64.b64decode(text))
    for number in range(count):
        api.delete_input(f"{key}-{number}")
    return found


def unpack(archive: bytes, folder: str) -> None:
    """Unpack the code, which the agent has checked."""
    os.mkdir(folder)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        tar.extraction_filter = getattr(tarfile, "tar_filter", lambda member, path: member)
        tar.extractall(folder)


def send_outputs(api: Api, folder: str, plan: Json) -> Json:
    """Send the files that the job has left, the results first, as far as they fit; say how many inputs hold them."""
    packed, left_out = pack_outputs(folder, plan["results_file"], plan["output_bytes"])
    text = base64.b64encode(packed).decode() if packed else ""
    parts = [text[start : start + _CHUNK_CHARS] for start in range(0, len(text), _CHUNK_CHARS)]
    try:
        for number, part in enumerate(parts):
            api.put_input(f"{OUTPUTS_KEY}-{number}", part)
    except RefusedError as error:
        return {"outputs": 0, "left_out": [("all files", str(error)), *left_out]}
    return {"outputs": len(parts), "left_out": left_out}


def pack_outputs(folder: str, results_file: str, most_bytes: int) -> tuple[bytes, list[tuple[str, str]]]:
    """Pack the regular files below a folder, the results first; return the archive, and what is left out with why."""
    files, left_out = [], []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            files.append((os.path.relpath(path, folder).encode("utf-8", "replace").decode(), path))
    files.sort(key=lambda one: (one[0] != results_file, one[0]))
    packed, size, count = io.BytesIO(), 0, 0
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, path in files:
            if os.path.islink(path) or not os.path.isfile(path):
                left_out.append((name, "it is no regular file"))
                continue
            size += os.path.getsize(path)
            if size > most_bytes:
                left_out.append((name, f"only {most_bytes} bytes are sent over the Prefect server"))
                size -= os.path.getsize(path)
                continue
            tar.add(path, arcname=name, recursive=False)
            count += 1
    return (packed.getvalue() if count else b""), left_out[:1000]
