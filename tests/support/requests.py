"""Requests to a Prefect server as any program may send them, with no look of ours before they leave."""

from __future__ import annotations

from typing import Any, Final

import httpx

from tests.support.live import until

_BUSY: Final = 503
_SECONDS: Final = 60.0


def send(method: str, url: str, **options: Any) -> httpx.Response:
    """Send a request, and again while the server's SQLite is busy; return the answer.

    Args:
        method: such as "POST".
        url: of the thing.
        options: of `httpx.request`.

    Raises:
        httpx.HTTPStatusError: when the server refuses it.
    """

    def answer() -> httpx.Response | None:
        found = httpx.request(method, url, timeout=_SECONDS, **options)
        return None if found.status_code == _BUSY else found

    sent: httpx.Response = until(answer)
    return sent.raise_for_status()
