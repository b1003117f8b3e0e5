"""Count of the requests that this process makes, and of the bytes that come back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch


@dataclass
class Requests:
    """What was asked of a server.

    Attributes:
        count: of requests.
        received: bytes of the answers' bodies.
    """

    count: int = 0
    received: int = 0


@contextmanager
def counted() -> Iterator[Requests]:
    """Count the requests of all asynchronous clients of httpx, for as long as the block lasts."""
    import httpx

    found = Requests()
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def counting(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        response = await send(self, request)
        found.count += 1
        found.received += int(response.headers.get("content-length", 0))
        return response

    with patch.object(httpx.AsyncHTTPTransport, "handle_async_request", counting):
        yield found
