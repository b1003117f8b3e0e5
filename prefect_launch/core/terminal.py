"""Terminal output sanitizing: text from a job, a submitter or a queue's owner cannot control the terminal.

A terminal obeys sequences that begin with an escape character: they move the cursor, set the window's title, write the
clipboard, answer as if somebody typed. Such sequences are removed; any other control character is shown by a visible
sign. Colours may stay: they change nothing else.

No library does this: rich strips five control characters, and click colours and cursor moves, from what is no terminal.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TextIO

#: In the order in which they are tried; each begins at an escape character, or at a C1 control character.
_SEQUENCES: Final = re.compile(
    r"(?P<colour>\x1b\[[0-9;:]*m)"
    r"|(?P<sequence>(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    # OSC, DCS, SOS, PM, APC: what they carry goes with them. One that does not end loses its beginning alone.
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~])"
    r"|(?P<line_end>\r(?=\n))"
    r"|(?P<control>[\x00-\x08\x0b-\x1f\x7f-\x9f])"
)
_RESET: Final = "\x1b[0m"
_PICTURES: Final = 0x2400
_DELETE: Final = 0x7F


def printable(text: str, *, colours: bool = False) -> str:
    """Return a text that a terminal shows and does not obey.

    Args:
        text: whatever somebody wrote.
        colours: keep colours and other looks of letters (SGR sequences). The caller that prints it ends them: see
            `line`.
    """

    def safe(match: re.Match[str]) -> str:
        if match["control"] is None:
            return match[0] if match["line_end"] or (colours and match["colour"]) else ""
        code = ord(match[0])
        if code < _DELETE:
            return chr(_PICTURES + code)
        return "\u2421" if code == _DELETE else "\ufffd"

    return _SEQUENCES.sub(safe, text)


def line(text: str) -> str:
    """Return a line of a log for a terminal, with its colours, which end with it."""
    safe = printable(text, colours=True)
    return f"{safe}{_RESET}" if "\x1b" in safe else safe


class _Guarded:
    """A terminal's stream that is written to with `printable` text alone, colours included."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(printable(text, colours=True))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for text in lines:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def guarded_terminal() -> Iterator[None]:
    """Sanitize all that this process prints to a terminal inside the block.

    What goes to a file or a pipe stays byte for byte.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_Guarded(stream) if stream.isatty() else stream for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def unguarded_stdout() -> TextIO:
    """Return the stream behind a guarded terminal, for what is all our own and moves the cursor."""
    stream: TextIO = getattr(sys.stdout, "_stream", sys.stdout)
    return stream


class _PrintableRecords(logging.Filter):
    """Makes the messages of prefect-launch's log records printable; it drops none."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.startswith("prefect_launch"):
            message = record.getMessage()
            safe = printable(message)
            if safe != message:
                record.msg, record.args = safe, ()
        return True


_FILTER: Final = _PrintableRecords()


def sanitize_log_lines() -> None:
    """Make prefect-launch's log lines printable: names and messages in them are other people's texts.

    A logger's filter does not see its child loggers' records, so each handler of the root logger and of the logger
    `prefect_launch` gets one. Call it again for handlers that are added later.
    """
    for name in (None, "prefect_launch"):
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_FILTER)
