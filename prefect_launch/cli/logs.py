"""Log lines of commands: our own on standard error, short; Prefect's only when asked for."""

from __future__ import annotations

import logging
from typing import Final

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
