"""Patience of what waits for items: a server that is restarted ends no wait."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final, TypeVar

from prefect_launch.errors import ServerUnavailableError

T = TypeVar("T")

log = logging.getLogger(__name__)

_PAUSE_SECONDS: Final = 1.0


def when_answered(read: Callable[[], T], *, give_up_at: float | None = None) -> T:
    """Read from the server, again and again while it does not answer.

    Args:
        read: the call.
        give_up_at: the time by `time.monotonic` at which no further try is made; `None` for as long as it takes.

    Raises:
        TimeoutError: when the server did not answer by then.
    """
    is_told = False
    while True:
        try:
            return read()
        except ServerUnavailableError as error:
            if give_up_at is not None and time.monotonic() >= give_up_at:
                raise TimeoutError(f"The time was up while the server was away. {error}") from error
            if not is_told:
                log.warning("Waiting for the server to come back. %s", error)
            is_told = True
            time.sleep(_PAUSE_SECONDS)
