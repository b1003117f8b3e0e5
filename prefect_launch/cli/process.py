"""The process of a command: its server, its log lines, its imports, and how a signal ends it."""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from prefect_launch.client.api import Api


def connected(*, verbose: bool = False) -> Api:
    """Return the server that Prefect's settings name, with Prefect's own log lines kept quiet unless asked for."""
    from prefect_launch.client.api import default_api

    warnings_only(verbose)
    return default_api()


# Log lines of commands: our own on standard error, short; Prefect's only when asked for.

_OURS: Final = ("prefect_launch", "prefect.launch")


def set_up(level: int, *, form: str, verbose: bool = False) -> None:
    """Send our log lines to standard error.

    Args:
        level: of the lines that are shown.
        form: of a line.
        verbose: show Prefect's own lines too.
    """
    from prefect.logging.configuration import setup_logging
    from prefect.logging.handlers import PrefectConsoleHandler

    # Prefect's own, as `import prefect.main` does it, which loads flows and tasks besides; after this it would be late.
    setup_logging()

    root = logging.getLogger()
    if not verbose:
        for console in [each for each in root.handlers if isinstance(each, PrefectConsoleHandler)]:
            root.removeHandler(console)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(form, datefmt="%H:%M:%S%z"))
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers[:] = [handler]
        logger.propagate = False


def warnings_only(verbose: bool = False) -> None:
    """Show our warnings, as a line each."""
    set_up(logging.WARNING, form="%(levelname)s: %(message)s", verbose=verbose)


# Loading of a program's modules with the garbage collector paused.


@contextmanager
def loading() -> Iterator[None]:
    """Pause the garbage collector while modules are loaded, and leave what they made out of its later rounds.

    Prefect and its models make a million objects that live as long as the process. To look through them again and again
    while they are made takes a fifth of the CPU time of the import.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


# Ending a command in order: SIGTERM, and a terminal that is closed, unwind it as Ctrl-C does, so that it ends what it.

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
