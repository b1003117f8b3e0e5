"""Log shipping: sends a job's log file to the server as the file grows, in few and bounded records.

The file is the whole log and the truth. A position file next to it says how far it was sent, so that the next agent
continues there: no gap, no repeat, even when the last agent ended in the middle of a request. A chatty job cannot flood
the server: past its share only the end is sent, with a note of what was left out. Lines on the standard error of the
job are warnings, tracebacks are errors.

A progress bar such as tqdm's goes back to the start of its line (a carriage return) and draws over it. Of a line that
has ended, its last state is sent; of one that is still being drawn, the newest complete state, now and then.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import logging
import re
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Final
from uuid import UUID

import anyio

from prefect_launch.core.cancellation import finished
from prefect_launch.core.masking import Mask
from prefect_launch.core.metric_lines import LINE_END, blank_metrics, from_first_whole_line, without_blanks
from prefect_launch.core.pace import Pace
from prefect_launch.core.supervision import OwnedTasks
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.runners.log_streams import parts as stream_parts
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import LogRecord

log = logging.getLogger(__name__)

#: The most characters of one record: Prefect Cloud takes 25 000, and one record costs the server as much as one line.
RECORD_CHARS: Final = 20_000
#: The most that is read and sent at a time.
CHUNK_BYTES: Final = 10 * RECORD_CHARS
#: The share of one run's log that the server gets while the run is running.
SHARE_BYTES: Final = 2_000_000
#: What it gets of the end when the log was longer.
TAIL_BYTES: Final = RECORD_CHARS
READ_SECONDS: Final = 0.5
#: The reads of all log files of this process, a second at most.
_PACE: Final = Pace(100.0)
#: The most changes of the stream that are sent at a time as they came: each is a record.
MOST_PARTS: Final = 40
#: A traceback of Python's, one of an exception group, and what they were caused by.
_TRACEBACK: Final = re.compile(
    r"(?:^Traceback \(most recent call last\):\n(?:[ \t].*\n)*(?:\S.*\n?)?"
    r"(?:\n(?:During handling of|The above exception).*\n\n(?=Traceback))?)+"
    r"|^  \+ Exception Group Traceback \(most recent call last\):\n(?:[ \t].*\n?)*",
    re.MULTILINE,
)
#: One that may go on: the exception of its last line has not come, or it is a group's, whose lines are all indented.
_OPEN_TRACEBACK: Final = re.compile(
    rb"^(?:  \+ Exception Group )?Traceback \(most recent call last\):\n(?:[ \t].*\n)*\Z", re.MULTILINE
)
#: From one state of a progress bar that is being drawn to the next that is shown.
BAR_SECONDS: Final = 10.0
#: A request whose answer was lost may still be in progress on a busy server: its records are looked for after these
#: pauses before they are sent again.
SETTLE_SECONDS: Final = (0.5, 1.0, 2.0)
#: What a request that is under way gets when the agent leaves.
LAST_WORDS_SECONDS: Final = 5.0
#: Records that may have the time of ours, or stand before it in the answer.
_LIKELY_RECORDS: Final = 20
#: The name under which a job's own lines are shown.
LOGGER: Final = "job"
_POSITION_FILE: Final = "log-sent.json"


@dataclass(frozen=True)
class Position:
    """How far a log was sent.

    Attributes:
        sent: bytes of the file that the server has for certain.
        asked: up to where a request sends them that was not answered yet.
        since: time of the first record of that request.
        last: time of the last record; the next ones are later, also by a clock that was set back.
        shown: bytes that the server was given: less than were read, when bars were drawn in them.
    """

    sent: int = 0
    asked: int | None = None
    since: datetime | None = None
    last: datetime | None = None
    shown: int = 0


class LogShipper:
    """Sends one run's log file to the server.

    Args:
        server: the Prefect server.
        item_id: the item.
        path: the log file; it may not be there yet.
        name: of the logger that its records are of.
        mask: hides the run's secrets.
    """

    def __init__(
        self, server: Server, item_id: UUID, path: Path, *, name: str = LOGGER, mask: Mask | None = None
    ) -> None:
        self._name = name
        self._mask = mask or Mask()
        self._server = server
        self._item_id = item_id
        self._path = path
        position = _read_position(path)
        self._sent = position.sent
        self._shown = position.shown
        self._last = position.last
        self._bar_at, self._bar_seen_to = float("-inf"), -1
        self._is_in_bar = False
        self._read_to = -1
        self._asked: Position | None = position if position.asked is not None else None
        self._ended = asyncio.Event()
        self._following = OwnedTasks()

    def follow(self) -> None:
        """Send what comes, from now on."""
        self._following.start(f"log of {self._item_id}", self._follow, over=self._ended)

    async def finish(self) -> None:
        """Send what is left, now that nothing more is written."""
        self._ended.set()
        await self._following.done()  # What it failed to send is sent below, or raises there.
        await self._settle()
        await self._send_new(whole_lines=False)
        size = await anyio.to_thread.run_sync(_size, self._path)
        if size > self._sent:
            await self._send_tail(size)

    async def let_go(self) -> None:
        """Stop sending; the next agent continues from here."""
        await self._following.end()

    async def _settle(self) -> None:
        """Find out whether a request whose answer nobody has, this agent's or the last one's, reached the server."""
        asked = self._asked
        if asked is None or asked.since is None or asked.asked is None:
            return
        for pause in (0.0, *SETTLE_SECONDS):
            await anyio.sleep(pause)
            if await self._has(asked.since):
                self._sent = asked.asked
                break
        self._asked = None

    async def _has(self, since: datetime) -> bool:
        """Whether the server has our record of this very time; others may write to this item's log, too."""
        found = await retry_until_available(
            "show the log", lambda: self._server.read_logs(self._item_id, limit=_LIKELY_RECORDS, since=since)
        )
        return any(record.name == self._name and record.timestamp == since for record in found)

    async def _follow(self) -> None:
        await self._settle()
        with _PACE:
            while not self._ended.is_set():
                await self._send_new(whole_lines=True)
                with anyio.move_on_after(_PACE.pause(READ_SECONDS)):
                    await self._ended.wait()

    async def last_lines(self, count: int) -> list[str]:
        """Return the last lines of the file."""
        size = await anyio.to_thread.run_sync(_size, self._path)
        start = max(0, size - CHUNK_BYTES)
        data = await self._read(start, CHUNK_BYTES)
        data = without_blanks(from_first_whole_line(data) if start else data)
        text = self._mask.shown(as_shown(data)).decode("utf-8", "replace")
        return text.removesuffix("\n").split("\n")[-count:] if text else []

    async def _send_new(self, *, whole_lines: bool) -> None:
        while self._shown < SHARE_BYTES:
            room = min(CHUNK_BYTES, SHARE_BYTES - self._shown)
            data = await self._read(self._sent, CHUNK_BYTES)
            full = len(data) == CHUNK_BYTES
            if is_drawn(data) and (whole_lines or full):
                await self._send_bar(data, full=full)
                if full:
                    continue
                return
            data = _cut(data[:room], whole_lines=whole_lines, full=len(data) >= room)
            end = self._end_of_whole(data) if whole_lines and not full else len(data)
            if end:
                await self._send(data[:end], self._sent + end)
            if end < len(data) or not data:
                return

    def _end_of_whole(self, data: bytes) -> int:
        """Return where a traceback begins that is still being written, which has one level; the end of all else.

        One to which nothing was added since the last read is taken as it is.
        """
        found = _OPEN_TRACEBACK.search(data)
        read_to = self._sent + len(data)
        is_still, self._read_to = read_to == self._read_to, read_to
        return len(data) if found is None or is_still else found.start()

    async def _send_bar(self, data: bytes, *, full: bool) -> None:
        """Send the newest state of a bar when it is time for one; else pass over its older ones when there are many."""
        seen_to = self._sent + len(data)
        is_still, self._bar_seen_to = seen_to == self._bar_seen_to, seen_to
        state = newest_state(data, complete=True)
        if state is None and (is_still or full):
            state = newest_state(data, complete=False) or ((len(data), len(data)) if full else None)
        if state is None:
            return
        start, end = state
        if time.monotonic() - self._bar_at >= BAR_SECONDS or (full and start == 0):
            await self._send(data[start:end], self._sent + end)
            self._bar_at, self._is_in_bar = time.monotonic(), True
        elif full:
            await self._send(b"", self._sent + start)

    async def _read(self, start: int, count: int) -> bytes:
        """Read a part of the file in which each byte of a secret, or of a line of metrics, is a blank."""

        def read() -> bytes:
            return blank_metrics(self._mask.read(self._path, start, count))

        return await anyio.to_thread.run_sync(read)

    async def _send_tail(self, size: int) -> None:
        start = max(self._sent, size - TAIL_BYTES)
        tail = await self._read(start, size - start)
        note = f"[… {start - self._sent:,} bytes left out here; the whole log is kept with the run's outputs …]\n"
        await self._send(tail, size, before=note if start > self._sent else "")

    async def _send(self, data: bytes, position: int, *, before: str = "") -> None:
        """Send the part of the file that ends at a position, a record or more for each change of the stream."""
        parts = await anyio.to_thread.run_sync(stream_parts, str(self._path), position - len(data), data)
        pieces = [(logging.INFO, before)] if before else []
        for is_error, part in _joined(_without_metrics(parts)):
            lines = self._mask.shown(as_shown(part))
            if self._is_in_bar:
                lines = lines.removeprefix(b"\n")  # the end of a line that was shown as a bar
                self._is_in_bar = False
            self._shown += len(lines)
            pieces += by_level(lines.decode("utf-8", "replace"), is_error=is_error)
        records: list[LogRecord] = []
        for level, text in pieces:
            records += split_records(text, name=self._name, after=self._last, level=level)
            self._last = records[-1].timestamp if records else self._last
        await retry_until_available("take the log", lambda: self._deliver(records, position))

    async def _deliver(self, records: Sequence[LogRecord], position: int) -> None:
        await self._settle()
        await whole(self._write(records, position))

    async def _write(self, records: Sequence[LogRecord], position: int) -> None:
        if records and self._sent < position:
            self._asked = Position(self._sent, position, records[0].timestamp, self._last, self._shown)
            await anyio.to_thread.run_sync(_write_position, self._path, self._asked)
            await self._server.write_logs(self._item_id, records)
            self._asked = None
        self._sent = position
        done = Position(position, last=self._last, shown=self._shown)
        await anyio.to_thread.run_sync(_write_position, self._path, done)


async def whole(work: Coroutine[None, None, None]) -> None:
    """Do something to its end even when cancelled meanwhile: what was sent is better noted as sent.

    A server that is away keeps nobody from leaving: the next agent finds out what has reached it.
    """
    await finished(work, seconds=LAST_WORDS_SECONDS)


def _without_metrics(parts: Sequence[tuple[bool, bytes]]) -> Sequence[tuple[bool, bytes]]:
    """Take the lines of metrics out, and join what they stood between."""
    left: list[tuple[bool, bytes]] = []
    for is_error, part in parts:
        shown = without_blanks(part)
        if shown and left and left[-1][0] is is_error:
            left[-1] = (is_error, left[-1][1] + shown)
        elif shown:
            left.append((is_error, shown))
    return left


def _joined(parts: Sequence[tuple[bool, bytes]]) -> Sequence[tuple[bool, bytes]]:
    """Return the parts of both streams as they came, or each stream as one when they change too often for that."""
    if len(parts) <= MOST_PARTS:
        return parts
    whole = [(wanted, b"".join(part for is_error, part in parts if is_error is wanted)) for wanted in (False, True)]
    return [(is_error, part) for is_error, part in whole if part]


def by_level(text: str, *, is_error: bool) -> list[tuple[int, str]]:
    """Split a text of one stream by level: a Python traceback is ERROR, the standard error else WARNING."""
    usual, end = logging.WARNING if is_error else logging.INFO, 0
    pieces: list[tuple[int, str]] = []
    for found in _TRACEBACK.finditer(text):
        pieces += [(usual, text[end : found.start()]), (logging.ERROR, found[0])]
        end = found.end()
    return [(level, piece) for level, piece in (*pieces, (usual, text[end:])) if piece]


def split_records(
    text: str, *, name: str = LOGGER, after: datetime | None = None, level: int = logging.INFO
) -> list[LogRecord]:
    """Join lines into records of at most `RECORD_CHARS`, all later than `after`; a longer line is cut."""
    now = datetime.now(timezone.utc)
    if after is not None:
        now = max(now, after + timedelta(microseconds=1))
    parts: list[str] = []
    for line in text.replace("\x00", "\ufffd").removesuffix("\n").split("\n"):
        for start in range(0, max(len(line), 1), RECORD_CHARS):
            piece = line[start : start + RECORD_CHARS]
            if parts and start == 0 and len(parts[-1]) + len(piece) < RECORD_CHARS:
                parts[-1] += f"\n{piece}"
            else:
                parts.append(piece)
    # The server sorts by time: no two records may have the same.
    return [
        LogRecord(name=name, level=level, message=part, timestamp=now + timedelta(microseconds=index))
        for index, part in enumerate(parts)
        if part.strip()
    ]


def _cut(data: bytes, *, whole_lines: bool, full: bool) -> bytes:
    """Return what can be sent of `data`: up to its last line's end, or all of it but a character that is cut in two."""
    end = max(data.rfind(b"\n"), data.rfind(LINE_END)) + 1
    if end:
        return data[:end]
    if whole_lines and not full:
        return b""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    pending = len(decoder.getstate()[0]) if full else 0
    return data[: len(data) - pending]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _read_position(path: Path) -> Position:
    try:
        kept = json.loads((path.parent / _POSITION_FILE).read_text())
        sent, shown = int(kept["bytes"]), int(kept.get("shown", kept["bytes"]))
        return Position(sent, kept.get("asked"), _time(kept.get("since")), _time(kept.get("last")), shown)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Position()


def _time(kept: str | None) -> datetime | None:
    return datetime.fromisoformat(kept) if kept else None


def _write_position(path: Path, position: Position) -> None:
    target = path.parent / _POSITION_FILE
    part = target.with_suffix(".part")
    since, last = (None if time is None else time.isoformat() for time in (position.since, position.last))
    kept = {"bytes": position.sent, "asked": position.asked, "since": since, "last": last, "shown": position.shown}
    try:
        part.write_text(json.dumps(kept))
        part.replace(target)
    except OSError as error:
        # On a full disk the log is sent all the same; only an agent that dies now may send a part twice.
        log.warning("not noted how far %s was sent: %s", path, error)


_BACK = b"\r"
_END = b"\n"


def as_shown(data: bytes) -> bytes:
    """Return lines as a terminal shows them: of each, what was drawn last and is not blank."""
    if _BACK not in data:
        return data
    return _END.join(_last_state(line) for line in data.split(_END))


def is_drawn(data: bytes) -> bool:
    """Whether this, the end of a log, is one line that is drawn again and again and has not ended."""
    return _BACK in data and _END not in data


def newest_state(data: bytes, *, complete: bool) -> tuple[int, int] | None:
    """Return where the newest state of a bar begins and ends; `None` when it has none.

    Args:
        data: the line so far, without its end.
        complete: only one that has been drawn over already: the last one may be half written.
    """
    end = len(data)
    if complete:
        # A `\r` that is the last byte may be half of a line's end.
        end = max(data.rfind(_BACK, 0, max(len(data) - 1, 0)), 0)
    # What is blank at the end is jumped over at once: there may be megabytes of it.
    inked = len(data[:end].rstrip())
    if not inked:
        return None
    start = data.rfind(_BACK, 0, inked) + 1
    back = data.find(_BACK, inked, end)
    return start, end if back < 0 else back


def _last_state(line: bytes) -> bytes:
    found = newest_state(line, complete=False) if _BACK in line else (0, len(line))
    return line[slice(*found)] if found else b""
