"""Mark in the log of a container: how far it is kept, so that it is read on without a gap or a repeat.

The kubelet keeps a log of each container, whose order never changes, and reads it from a whole second on. So a mark
says how many lines from its second on are kept, and the last of their stamps: those are skipped. Where the kubelet has
rotated some of them away meanwhile, a line in the log says so. A line may come in parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, Final

#: Seconds that are counted apart: lines of the two streams may stand in the log a little out of order.
_WINDOW: Final = 3
#: The runtime cuts longer lines into pieces of this size.
_PIECE_BYTES: Final = 16 * 1024
_STAMP: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)$")
_INNER_STAMP: Final = re.compile(rb"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d) ")
_LOST: Final = b"[prefect-launch] the node has rotated this log: lines between %s and %s may be lost\n"
_WORDS: Final = b"[prefect-launch] the node says of this log: %s\n"
#: What the kubelet sends in the place of a log that went with its container.
_NO_LOG: Final = b"unable to retrieve container logs for "

#: No stamp is longer, with the blank after it.
_STAMP_BYTES: Final = 40
#: Given to `LogMark.take` at the end of a stream.
END: Final = b""


class LogMark:
    """How far the log of one container is kept.

    Args:
        kept: the `value` of the mark to continue from; None for the beginning.
    """

    def __init__(self, kept: Mapping[str, Any] | None = None) -> None:
        kept = kept or {}
        self._counts: dict[str, int] = dict(kept.get("counts") or {})
        self._last: str = kept.get("last") or ""
        self._open: int | None = kept.get("open")
        self._skip, self._skip_until = 0, ""
        self._line: _Line | None = None
        self._words = b""

    @property
    def value(self) -> dict[str, Any]:
        """The mark as JSON holds it."""
        return {"counts": self._counts, "last": self._last, "open": self._open}

    @property
    def since(self) -> str:
        """The second to read from, as the API takes it; empty for the beginning."""
        first = min(self._counts, default="")
        return f"{first}Z" if first else ""

    def rewind(self) -> None:
        """Begin to read from `since` on: what is kept comes again."""
        self._skip, self._skip_until = sum(self._counts.values()), self._last
        self._line = None

    def take(self, piece: bytes) -> bytes:
        """Take a line as the kubelet gives it, or a part of one; return what is new of it, without its stamp.

        Args:
            piece: what follows one without an end continues its line; `END` ends the stream.
        """
        told = b""
        if self._line is None:
            stamp, blank, content = piece.partition(b" ")
            order = in_order(stamp.decode("ascii", "replace")) if blank else ""
            if not order:
                return b"" if self._skip else self._take_words(piece)
            told, self._line = self._begin(order)
        else:
            content = piece
        line, is_over = self._line, piece.endswith(b"\n")
        new = line.take(content, is_last=is_over or piece == END)
        if line.seen > line.kept:
            self._open = None if is_over else line.seen
        if is_over or piece == END:
            self._line = None
        return told + new

    def _take_words(self, piece: bytes) -> bytes:
        """Take what is no line of the container, but the kubelet's own words: it repeats them at each try."""
        if piece == END or piece == self._words or piece.startswith(_NO_LOG):
            return b""
        self._words = piece
        return _WORDS % piece.rstrip(b"\n")

    def _begin(self, order: str) -> tuple[bytes, _Line]:
        """Begin a line with this stamp; return the output before it."""
        told = b""
        if self._skip:
            if order <= self._skip_until:
                self._skip -= 1
                # The last line that is kept may have been cut off: the rest of it is new.
                is_cut = not self._skip and self._open is not None
                return b"", _Line(kept=self._open if is_cut and self._open is not None else math.inf)
            # Kept lines are all up to that stamp, so this one is new, and some of them are there no more.
            told = _LOST % (self._skip_until.encode(), order.encode())
            self._skip = 0
        second = order[:19]
        if second >= min(self._counts, default=""):
            self._counts[second] = self._counts.get(second, 0) + 1
            if len(self._counts) > _WINDOW:
                del self._counts[min(self._counts)]
        self._last = max(self._last, order)
        return told, _Line(kept=0)


class _Line:
    """A line that is read, part by part.

    Args:
        kept: how many bytes of it are kept already; infinite: all.

    Attributes:
        seen: how many bytes of it have come, without stamps.
    """

    def __init__(self, kept: float) -> None:
        self.kept = kept
        self.seen = 0
        self._column = 0
        self._held = b""

    def take(self, content: bytes, *, is_last: bool) -> bytes:
        """Take a part; return what is new of it."""
        clean = self._without_stamps(content, is_last)
        before, self.seen = self.seen, self.seen + len(clean)
        if self.seen <= self.kept:
            return b""
        return clean[max(0, int(self.kept) - before) :]

    def _without_stamps(self, content: bytes, is_last: bool) -> bytes:
        """Take out the stamps that older kubelets put before each piece that the runtime cuts a line into."""
        rest, self._held = self._held + content, b""
        pieces = []
        while rest:
            if self._column < _PIECE_BYTES:
                piece, rest = rest[: _PIECE_BYTES - self._column], rest[_PIECE_BYTES - self._column :]
                pieces.append(piece)
                self._column += len(piece)
                continue
            if len(rest) < _STAMP_BYTES and not is_last:
                self._held = rest  # It may be the beginning of a stamp.
                break
            rest = _INNER_STAMP.sub(b"", rest, count=1)
            self._column = 0
        return b"".join(pieces)


def in_order(stamp: str) -> str:
    """Return a stamp of the kubelet as text whose order is that of time, in UTC; empty for what is no stamp.

    The kubelet leaves out the zeros at a stamp's end, and writes it in the zone of its node.
    """
    found = _STAMP.match(stamp)
    if found is None:
        return ""
    second, fraction, zone = found.groups()
    if zone != "Z":
        second = datetime.fromisoformat(f"{second}{zone}").astimezone(timezone.utc).isoformat()[:19]
    return f"{second}.{(fraction or ''):0<9}"
