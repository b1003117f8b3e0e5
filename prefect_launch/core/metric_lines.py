"""Lines of metrics in a log, as bytes: where they stand, and the log as it is shown, without them.

A line may begin behind what another stream has left of its own line, such as a progress bar. A line that is longer than
the limit is no metric, and is shown.
"""

from __future__ import annotations

import re
from typing import Final

from prefect_launch.inputs.metrics import MARK, MAX_LINE_BYTES

MARK_BYTES: Final = MARK.encode()
_LINE: Final = re.compile(re.escape(MARK_BYTES) + rb"[^\n]{0,%d}\n" % MAX_LINE_BYTES)
#: Neither byte is part of any UTF-8 text: one stands for each byte of a line, the other for its end.
_BLANK: Final = b"\xfe"
LINE_END: Final = b"\xff"
#: What these bytes become where they stood by chance.
_NO_BLANK: Final = bytes.maketrans(_BLANK + LINE_END, b"\xc0\xc0")


def blank_metrics(data: bytes) -> bytes:
    """Return bytes of the same length in which lines of metrics are blanks, which `without_blanks` takes out."""
    plain = data.translate(_NO_BLANK)
    if MARK_BYTES not in plain:
        return plain
    return _LINE.sub(lambda line: _BLANK * (len(line[0]) - 1) + LINE_END, plain)


def without_blanks(data: bytes) -> bytes:
    """Return what `blank_metrics` gave without the lines of metrics."""
    return data.translate(None, _BLANK + LINE_END)


def from_first_whole_line(data: bytes) -> bytes:
    """Return a part of a log from the first line on that begins in it; a part that is of one line as it is."""
    return data.partition(b"\n")[2] or data


def without_metrics(data: bytes) -> bytes:
    """Return a log without its lines of metrics."""
    return without_blanks(blank_metrics(data))
