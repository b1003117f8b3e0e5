"""Log streams: a job's standard output and standard error in one file, with marks that separate them.

`job.log` holds what the job wrote to both, byte for byte and in order (what it writes to both at nearly the same moment
may swap places, as in a container's log). The marks are in a second file, 8 bytes for each change of the stream: the
offset in the log where the stream changes, times two, plus one for the standard error. A mark is written before its
bytes, so a reader of the log always finds it. The supervisor of a process uses this module: standard library only.
"""

from __future__ import annotations

import json
import os
import select
import struct
import threading

TYPE_CHECKING = False  # The fork server needs no `typing`.
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

#: What the marks' file is called after the log.
_SUFFIX = ".streams"
_MARK = struct.Struct(">Q")
_PIECE_BYTES = 64 * 1024
#: How long a process that outlives its job may hold the streams open and write nothing.
_SILENCE_MS = 500


class Marks:
    """The marks of a log, as its one writer makes them.

    Args:
        log: path of the log.
        size: of the log: what is marked from there on was never written.
    """

    def __init__(self, log: str, size: int) -> None:
        self._file = os.open(log + _SUFFIX, os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC, 0o600)
        known = os.fstat(self._file).st_size // _MARK.size
        known = _first(self._file, known, size)
        self._size = known * _MARK.size
        os.ftruncate(self._file, self._size)
        self._last = bool(_read(self._file, known - 1) & 1) if known else False

    def mark(self, offset: int, is_error: bool) -> None:
        """Mark the stream of the bytes that are written next, from this offset in the log on.

        Raises:
            OSError: when it cannot be written.
        """
        if is_error is self._last:
            return
        try:
            written = os.write(self._file, _MARK.pack(offset << 1 | is_error))
        except OSError:
            written = 0
        if written < _MARK.size:  # Half a mark would make nonsense of all that follow it.
            os.ftruncate(self._file, self._size)
            raise OSError("a mark could not be written")
        self._size += written
        self._last = is_error

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class CopiedLog:
    """The log of a job that runs elsewhere, and the position to continue from, in a file next to it.

    The position is written after the log. A writer that was killed between the two leaves bytes that the position does
    not know: the next one cuts them off, and copies them again. So the log has no gap and no repeat. One thread writes
    it at a time; after an error it is opened anew.

    Args:
        log: path of the log; made when it is not there.
        position: path of the position's file.

    Attributes:
        position: what `save` was given last; None for the beginning of the log.
    """

    def __init__(self, log: str, position: str) -> None:
        self.position: Any = None
        self._position_path, self._size = position, 0
        self._file = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            if os.path.exists(position):
                with open(position, encoding="utf-8") as file:
                    kept = json.load(file)
                if os.fstat(self._file).st_size >= kept["log_bytes"]:  # Else the machine lost what was written last.
                    self._size, self.position = kept["log_bytes"], kept["position"]
            os.ftruncate(self._file, self._size)
            self._marks = Marks(log, self._size)
        except BaseException:
            os.close(self._file)
            raise

    def append(self, content: bytes, is_error: bool) -> None:
        """Append what the job wrote to one of its streams.

        Raises:
            OSError: when it cannot be written; then it counts as not copied.
        """
        self._marks.mark(self._size, is_error)
        left = memoryview(content)
        while left:  # On a disk that is nearly full, a file takes a part.
            left = left[os.write(self._file, left) :]
        self._size += len(content)

    def save(self, position: Any) -> None:
        """Save the position after what was appended, whole or not at all.

        Args:
            position: a value that JSON can hold.
        """
        temporary = f"{self._position_path}.{os.getpid()}.{threading.get_ident()}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({"position": position, "log_bytes": self._size}, file)
        os.replace(temporary, self._position_path)
        self.position = position

    def close(self) -> None:
        """Close the files."""
        self._marks.close()
        os.close(self._file)


class LogWriter:
    """Writes what comes through the pipes of a job's two streams to its log, in a thread of its own.

    When the disk is full, the job continues: what cannot be written is lost, and the log says how much.

    Args:
        log: path of the log, which may be there already.
        output: the end to read from of the pipe that is the standard output.
        error: that of the standard error.
    """

    def __init__(self, log: str, output: int, error: int) -> None:
        self._log = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._log).st_size
        self._marks = Marks(log, self._size)
        self._pipes = {output: False, error: True}
        self._lost = 0
        self._ended, self._end = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def finish(self, seconds: float) -> None:
        """Write the rest of the output of an ended job; blocks until it is written, for at most this many seconds."""
        os.close(self._end)
        self._thread.join(seconds)

    def _run(self) -> None:
        poller = select.poll()
        for descriptor in (*self._pipes, self._ended):
            poller.register(descriptor, select.POLLIN)
        timeout = None
        while self._pipes:
            found = [descriptor for descriptor, _ in poller.poll(timeout)]
            if not found:
                break
            for descriptor in found:
                if descriptor == self._ended:
                    poller.unregister(descriptor)
                    timeout = _SILENCE_MS
                    continue
                piece = os.read(descriptor, _PIECE_BYTES)
                if piece:
                    self._take(piece, self._pipes[descriptor])
                else:
                    poller.unregister(descriptor)
                    os.close(descriptor)
                    del self._pipes[descriptor]
        self._take(b"", False)

    def _take(self, piece: bytes, is_error: bool) -> None:
        if self._lost:
            note = b"\n[prefect-launch] %d bytes of the log are lost: there was no room for them\n" % self._lost
            if self._write(note, False):
                self._lost += len(piece)
                return
        self._lost = self._write(piece, is_error)

    def _write(self, piece: bytes, is_error: bool) -> int:
        """Write a piece; return how many bytes of it could not be written."""
        left = memoryview(piece)
        try:
            self._marks.mark(self._size, is_error)
            while left:
                written = os.write(self._log, left)
                left, self._size = left[written:], self._size + written
        except OSError:
            pass
        return len(left)


def parts(log: str, start: int, data: bytes) -> list[tuple[bool, bytes]]:
    """Split a part of a log into its two streams; a log without marks is all standard output.

    Args:
        log: its path.
        start: where the part begins, in bytes.
        data: the part.

    Returns:
        Its pieces in their order, each with whether it is of the standard error; two in a row are of two streams.
    """
    try:
        file = os.open(log + _SUFFIX, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return [(False, data)] if data else []
    try:
        marks = list(_marks(file, start, start + len(data)))
    finally:
        os.close(file)
    found: list[tuple[bool, bytes]] = []
    for (offset, is_error), (end, _) in zip(marks, [*marks[1:], (start + len(data), False)], strict=True):
        piece = data[max(offset, start) - start : end - start]
        if piece and found and found[-1][0] is is_error:
            found[-1] = (is_error, found[-1][1] + piece)
        elif piece:
            found.append((is_error, piece))
    return found


def _marks(file: int, start: int, end: int) -> Iterator[tuple[int, bool]]:
    """Yield the marks of a part of a log: where each begins, first of all the one that the part begins in."""
    count = os.fstat(file).st_size // _MARK.size
    place = _first(file, count, start + 1)
    yield start, bool(_read(file, place - 1) & 1) if place else False
    while place < count:
        value = _read(file, place)
        if value >> 1 >= end:
            return
        yield value >> 1, bool(value & 1)
        place += 1


def _first(file: int, count: int, offset: int) -> int:
    """Return the number of the first mark at or after a byte of the log."""
    low, high = 0, count
    while low < high:
        middle = (low + high) // 2
        if _read(file, middle) >> 1 < offset:
            low = middle + 1
        else:
            high = middle
    return low


def _read(file: int, number: int) -> int:
    value: int = _MARK.unpack(os.pread(file, _MARK.size, number * _MARK.size))[0]
    return value
