"""Early signals: SIGINT and SIGTERM that come while a program still loads, noted for the handlers it sets later."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

#: The signals that ask a program to end in order.
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
#: What a shell adds to a signal's number.
SIGNALLED: Final = 128
_LEAVING: Final = "Leaving before the agent has started; what it has left in work, if anything, is for its next start."


@contextmanager
def early_signals(notify: Callable[[str], None]) -> Iterator[list[signal.Signals]]:
    """Note the first signal inside the block, instead of dying of it; the second ends the process.

    Whoever sets handlers of its own inside the block first sets them, then acts on what was noted. For the main thread.

    Args:
        notify: is called with a sentence for people when a second signal ends the process.

    Yields:
        What was noted; it grows.

    Raises:
        SystemExit: at the second signal, with the exit code that a shell would give for the first one.
    """
    received: list[signal.Signals] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        if len(received) > 1:
            give_back()  # A third one ends the process by itself.
            raise SystemExit(SIGNALLED + received[0])

    def give_back() -> None:
        for number, handler in before.items():
            if signal.getsignal(number) is note:
                signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, note)
    try:
        yield received
    except SystemExit:
        if len(received) > 1:
            notify(
                "Leaving before the agent has started; what it has left in work, if anything, is for its next start."
            )
        raise
    finally:
        give_back()
