"""The log of a build, on standard error while it goes on: an image takes minutes, and silence looks like a fault.

However the command is stopped, the build is ended with it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import typer

from prefect_launch.cli.stopping import ending_in_order

_LOGGER: Final = "prefect.launch.build"


class _Echo(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        typer.echo(record.getMessage(), err=True)


@contextmanager
def build_log(is_wanted: bool) -> Iterator[None]:
    """Show the log of builds inside the block.

    Args:
        is_wanted: whether there is a build at all.
    """
    if not is_wanted:
        yield
        return
    logger, handler = logging.getLogger(_LOGGER), _Echo()
    was = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        with ending_in_order():
            yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = was
