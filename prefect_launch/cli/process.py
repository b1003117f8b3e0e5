"""Process of a command: server, log lines, imports, and signals."""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, NoReturn

from prefect_launch.core.early_signals import SIGNALLED
from prefect_launch.core.terminal import sanitize_log_lines
from prefect_launch.errors import SpecError

if TYPE_CHECKING:
    from prefect_launch.client.api import Api


def connected(*, verbose: bool = False) -> Api:
    """Return the server of Prefect's settings; shows Prefect's own log lines only with `verbose`."""
    from prefect_launch.client.api import default_api

    warnings_only(verbose)
    return default_api()


# Log lines of commands: our own on standard error; Prefect's only with `verbose`.

_OURS: Final = ("prefect_launch", "prefect.launch")
#: Clients of clouds: they log a traceback of what they raise besides, and this package tells.
_TOLD: Final = ("aiobotocore", "azure", "botocore", "google.auth")


def set_up(level: int, *, form: str, verbose: bool = False, file: Path | None = None) -> None:
    """Send prefect-launch's log lines to standard error, or to the end of a file; Prefect's own too with `verbose`.

    Raises:
        SpecError: when the file cannot be written.
    """
    handler = logging.StreamHandler() if file is None else _to_file(file)
    from prefect.logging.configuration import setup_logging
    from prefect.logging.handlers import PrefectConsoleHandler

    # Prefect's own, as `import prefect.main` does it, which loads flows and tasks besides; after this it would be late.
    setup_logging()

    root = logging.getLogger()
    if not verbose:
        for console in [each for each in root.handlers if isinstance(each, PrefectConsoleHandler)]:
            root.removeHandler(console)
        for name in _TOLD:
            logging.getLogger(name).setLevel(logging.CRITICAL)
    handler.setFormatter(logging.Formatter(form, datefmt="%H:%M:%S%z"))
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers[:] = [handler]
        logger.propagate = False
    sanitize_log_lines()


def _to_file(file: Path) -> logging.Handler:
    try:
        return logging.FileHandler(file, encoding="utf-8")
    except OSError as error:
        raise SpecError(
            f"The log file {str(file)!r} cannot be written: {error.strerror}. Name a file in a folder that exists."
        ) from None


def warnings_only(verbose: bool = False) -> None:
    """Show prefect-launch's warnings, one line each."""
    set_up(logging.WARNING, form="%(levelname)s: %(message)s", verbose=verbose)


# Imports with the garbage collector paused.


@contextmanager
def loading() -> Iterator[None]:
    """Pause the garbage collector during imports, and exclude the imported objects from later collections.

    Prefect and its models make a million objects that live as long as the process. Collecting among them takes a fifth
    of the CPU time of the import.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()


# Signals: SIGTERM, and SIGHUP of a closed terminal, unwind a command as Ctrl-C does, so that it cleans up.

_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Turn these signals into `SystemExit` inside the block, with a shell's exit code.

    An ignored signal (`nohup`) stays ignored. Call it in the main thread.
    """
    handled = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _end) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(SIGNALLED + number)
