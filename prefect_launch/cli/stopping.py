"""Ending a command in order: SIGTERM, and a terminal that is closed, unwind it as Ctrl-C does, so that it ends what it
has begun. For commands that begin something which would go on without them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final, NoReturn

#: What a shell adds to a signal's number.
_SIGNALLED: Final = 128
_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let these signals end the process by an exception inside the block, with the exit code that a shell would give.

    One that is ignored (`nohup`) stays so. For the main thread.
    """
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(_SIGNALLED + number)
