"""Container log copier: copies a container's log live into the run's `job.log`, with no gap and no repeat.

The engine's log is the truth, and its order never changes. A position file records how many of its pieces, from a given
second on, are in the first bytes of `job.log`. The next copier cuts the file there and skips those pieces, so a copier
that was killed between the two files does no harm. One thread copies one container's log. It does not watch the
container.
"""

from __future__ import annotations

import calendar
import logging
import threading
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from prefect_launch.errors import InfrastructureError
from prefect_launch.runners.docker.engine import Engine, LogStream
from prefect_launch.runners.log_streams import CopiedLog

log = logging.getLogger(__name__)

#: Between two reads of a log whose stream ended while its container continues (the engine restarted).
_REOPEN_SECONDS = 0.5
#: Between two tries to write on a disk that is full. The engine keeps the log meanwhile.
_FULL_SECONDS = 2.0
#: How often the position is written while a job writes without pause.
_SAVE_SECONDS = 0.5
_CLOSE_SECONDS = 10.0
#: Seconds that are counted apart: pieces of two streams may stand in the log a little out of order.
_WINDOW = 3
#: The engine cuts longer lines into pieces of this size.
_PIECE_BYTES = 16 * 1024


class LogPosition:
    """How far a log has been copied: the pieces of its last seconds.

    Args:
        kept: the `value` of the position to continue from; None for the beginning of the log.
    """

    def __init__(self, kept: Mapping[str, Any] | None = None) -> None:
        kept = kept or {}
        self._counts: dict[str, int] = dict(kept.get("counts", {}))
        self._in_long_line: bool = kept.get("in_long_line", False)
        self._owes_newline: bool = kept.get("owes_newline", False)

    @property
    def value(self) -> dict[str, Any]:
        """The position as JSON holds it."""
        return {"counts": self._counts, "in_long_line": self._in_long_line, "owes_newline": self._owes_newline}

    @property
    def since(self) -> int:
        """The second to read from, since 1970."""
        first = min(self._counts, default="")
        return calendar.timegm(time.strptime(first, "%Y-%m-%dT%H:%M:%S")) if first else 0

    @property
    def pieces(self) -> int:
        """How many pieces from that second on are copied."""
        return sum(self._counts.values())

    def add(self, piece: bytes) -> bytes:
        """Count one more piece of the engine's log, and return what is to be written for it."""
        stamp, _, content = piece.partition(b" ")
        second = stamp[:19].decode("ascii")
        content = self._with_lost_newline(content)
        if second >= min(self._counts, default=""):
            self._counts[second] = self._counts.get(second, 0) + 1
            if len(self._counts) > _WINDOW:
                del self._counts[min(self._counts)]
        return content

    def _with_lost_newline(self, content: bytes) -> bytes:
        """Put back the end of a line that the engine cut into pieces: its `local` log driver (20.10) drops that
        newline."""
        before = b"\n" if self._owes_newline else b""
        whole_line = content.endswith(b"\n")
        full = len(content) == _PIECE_BYTES
        self._owes_newline = self._in_long_line and not whole_line and not full
        self._in_long_line = full and not whole_line
        return before + content


class LogCopier:
    """Copies one container's log in a thread of its own.

    Args:
        engine: where the container is.
        container_id: which one.
        log_path: the file that its log goes into.
    """

    def __init__(self, engine: Engine, container_id: str, log_path: Path) -> None:
        self._engine = engine
        self._container_id = container_id
        self._log_path = log_path
        self._ended = threading.Event()
        self._closed = threading.Event()
        self._done = threading.Event()
        self._stream: LogStream | None = None
        self._copied = 0
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"log-{container_id[:12]}", daemon=True)

    def start(self) -> None:
        """Begin to copy, while the container runs."""
        self._thread.start()

    def finish(self, silence_seconds: float) -> None:
        """Copy what is left of a container that has ended, all of it when `start` was not called; blocks until its log
        is whole.

        Args:
            silence_seconds: a stream that stays open for so long with nothing new is cut off; the rest is read at once.
        """
        self._ended.set()
        if not self._has_begun:
            self._thread.start()
        copied = self._copied
        while not self._done.wait(silence_seconds):
            if copied == self._copied:
                self._cut_off()
            copied = self._copied

    def close(self) -> None:
        """Stop copying at once; blocks until the file is closed."""
        self._closed.set()
        self._ended.set()
        self._cut_off()
        if self._has_begun:
            # An engine that hangs may keep the thread for longer; it writes nothing more once it comes back.
            self._thread.join(_CLOSE_SECONDS)

    @property
    def _has_begun(self) -> bool:
        return self._thread.ident is not None

    def _run(self) -> None:
        try:
            while not self._closed.is_set():
                last = self._ended.is_set()
                full = not self._copy(follow=not last)
                if last:
                    return
                self._ended.wait(_FULL_SECONDS if full else _REOPEN_SECONDS)
        finally:
            self._done.set()

    def _copy(self, *, follow: bool) -> bool:
        """Continue from what is safe on the disk; return whether everything could be written."""
        try:
            path = self._log_path
            with closing(CopiedLog(str(path), str(path.with_name("log-position.json")))) as copied:
                self._read(copied, LogPosition(copied.position), follow=follow)
        except OSError as error:
            self.problem = f"the log could not be written: {error}"
            return False
        except Exception as error:
            # On its own thread, nobody else would see the error.
            log.exception("The log of %s could not be copied; it is opened again.", self._container_id)
            self.problem = f"the log could not be copied: {error!r}"
        return True

    def _read(self, copied: CopiedLog, position: LogPosition, *, follow: bool) -> None:
        skip = position.pieces
        saved = time.monotonic()
        try:
            self._stream = self._engine.open_log(self._container_id, position.since, follow=follow)
            for piece in self._stream:
                if skip:
                    skip -= 1
                    continue
                if self._closed.is_set():
                    break
                copied.append(position.add(piece.content), piece.is_error)
                self._copied += 1
                if time.monotonic() - saved > _SAVE_SECONDS:
                    copied.save(position.value)
                    saved = time.monotonic()
            self.problem = None
        except InfrastructureError as error:
            self.problem = f"the end of the log could not be read: {error}"
        # Not when a piece could not be written: the position is ahead of the file then.
        copied.save(position.value)

    def _cut_off(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.close()
