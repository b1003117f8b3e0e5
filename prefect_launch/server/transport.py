"""The HTTP transport under Prefect's client: patient with a busy server, plain about one that is not there.

Prefect's own retry waits two seconds and more after the `503` that a SQLite server gives whenever two writers meet;
here it is 50 to 500 ms. Writes of one client go one at a time, which is what such a server can take (concurrent writers
only lengthen each other's wait). When the server cannot be reached for longer than the patience,
`ServerUnavailableError` says so.
"""

from __future__ import annotations

import random
import time
from contextlib import nullcontext
from typing import Final

import anyio
import httpx

from prefect_launch.errors import ServerUnavailableError

#: A caller at a prompt hears within 15 s that the server is not there: this is what is left for trying again.
DEFAULT_PATIENCE_SECONDS: Final = 10.0
CONNECT_TIMEOUT_SECONDS: Final = 3.0
#: A server that is well says so in milliseconds; a busy one was seen to take a second.
HEALTH_TIMEOUT_SECONDS: Final = 5.0
#: A SQLite server under many writes was seen to answer nothing at all for 60 s, which is its own limit for a lock in
#: the database, and then to go on as if nothing had been: this must be longer.
READ_TIMEOUT_SECONDS: Final = 75.0

_RETRY_MIN_SECONDS: Final = 0.05
_RETRY_MAX_SECONDS: Final = 0.5
_BUSY: Final = frozenset({429, 502, 503})
#: A server that says that it is busy is there, and was seen to be so for half a minute: it gets this many times the
#: patience.
_BUSY_PATIENCE_FACTOR: Final = 6
_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout)
#: Sent, but the answer was lost. What we write can be sent twice: creations carry an idempotency key, moves a
#: transition id. (Log records and artifacts carry nothing, and may then be there twice.)
_LOST = (httpx.ReadTimeout, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError, httpx.PoolTimeout)


class ServerTransport(httpx.AsyncBaseTransport):
    """Sends requests, again when the server is busy or away for a moment."""

    def __init__(self, inner: httpx.AsyncBaseTransport, *, address: str, patience_seconds: float) -> None:
        self._inner = inner
        self._address = address
        self._patience = patience_seconds
        self._writing = anyio.Semaphore(1)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises:
            ServerUnavailableError: when no answer came within the patience, or the server stayed busy for longer still.
        """
        failing_since: float | None = None
        while True:
            # A write gives up its turn between attempts: none waits out another's patience.
            async with nullcontext() if _is_read(request) else self._writing:
                started = time.monotonic()
                try:
                    response = await self._inner.handle_async_request(request)
                    if response.status_code not in _BUSY:
                        return response
                    await response.aclose()
                    fault, patience = f"busy: {response.status_code}", self._patience * _BUSY_PATIENCE_FACTOR
                except (*_UNREACHED, *_LOST) as error:
                    fault, patience = f"{type(error).__name__}: {error or 'no answer in time'}", self._patience
            failing_since = started if failing_since is None else failing_since
            if time.monotonic() - failing_since >= patience:
                raise ServerUnavailableError(
                    f"The Prefect server at {self._address} does not answer ({fault}). Start it with"
                    " 'prefect server start', or set PREFECT_API_URL to the address of the one to use."
                )
            await anyio.sleep(random.uniform(_RETRY_MIN_SECONDS, _RETRY_MAX_SECONDS))

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def _is_read(request: httpx.Request) -> bool:
    return request.method == "GET" or request.url.path.endswith(("/filter", "/count", "/latest/filter"))
