"""Progress bars in a job's log: what a terminal would show of a line that is drawn again and again.

A bar such as tqdm's goes back to the start of its line (a carriage return) and draws over what stood there. Of a line
that has ended, its last state is shown; of one that is still being drawn, the newest state that is complete. A carriage
return before a line feed is one line end with it. This knows bytes only: when a bar is shown, and how far it was sent,
is the business of `logs.py`.
"""

from __future__ import annotations

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
