"""Early signals: SIGINT and SIGTERM that come while a program still loads, noted for the handlers it sets later."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

#: The signals that ask a program to end in order.
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
#: Those, and that of a terminal that is closed.
ENDING_SIGNALS: Final = (*SIGNALS, signal.SIGHUP)
#: What a shell adds to a signal's number.
SIGNALLED: Final = 128
_LEAVING: Final = "Leaving before the agent has started; its next start adopts its unfinished items, if any."


@contextmanager
def early_signals(notify: Callable[[str], None]) -> Iterator[list[signal.Signals]]:
    """Note the first signal inside the block, instead of dying of it; the second ends the process.

    Code that sets its own handlers inside the block first sets them, then acts on the noted signals. Main thread only.

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
            notify(_LEAVING)
        raise
    finally:
        give_back()
