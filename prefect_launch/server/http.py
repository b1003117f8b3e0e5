"""HTTP transport to the Prefect server, patient with a busy one, and the errors for its refusals.

Prefect's own retry waits two seconds and more after the `503` that a SQLite server gives whenever two writers meet;
here it is 50 to 500 ms. Writes of one client go one at a time, which is what such a server can take (concurrent writers
only lengthen each other's wait). When the server cannot be reached for longer than the patience,
`ServerUnavailableError` is raised. A request that would take effect twice is not sent again when its answer was lost:
it raises `AnswerLostError`, and the caller reads the server first.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Final

import anyio
import httpx

from prefect_launch.core.validation import check_body, check_server_json
from prefect_launch.errors import (
    AnswerLostError,
    InternalError,
    OperatorError,
    ServerFailedError,
    ServerUnavailableError,
    SpecError,
)

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient

log = logging.getLogger(__name__)

#: A caller at a prompt hears within 15 s that the server is not there: this is what is left for trying again.
DEFAULT_PATIENCE_SECONDS: Final = 10.0
CONNECT_TIMEOUT_SECONDS: Final = 3.0
#: A server that is well says so in milliseconds; a busy one was seen to take a second.
HEALTH_TIMEOUT_SECONDS: Final = 5.0
#: A SQLite server under many writes was seen to answer nothing at all for 60 s, which is its own limit for a lock in
#: the database, and then to continue as if nothing had happened: this must be longer.
READ_TIMEOUT_SECONDS: Final = 75.0

#: After so long without an answer the log says so: longer than a server is tried that cannot be reached, of which the
#: error says all.
SILENT_SECONDS: Final = 15.0

_RETRY_MIN_SECONDS: Final = 0.05
_RETRY_MAX_SECONDS: Final = 0.5
_NO_ENTRY: Final = 401
_GONE: Final = 404
#: What every Prefect server has, and needs no password.
HEALTH_PATH: Final = "/health"
_BUSY: Final = frozenset({429, 503})
#: What a proxy says when the server behind it went away in the middle of a request.
_GATEWAY: Final = frozenset({502, 504})
#: A server that says that it is busy is reachable, and was seen to be so for half a minute: it gets this many times the
#: patience.
_BUSY_PATIENCE_FACTOR: Final = 6
#: That, of the patience by default: for so long a server is asked that makes none of the items of a bulk request.
BUSY_SECONDS: Final = DEFAULT_PATIENCE_SECONDS * _BUSY_PATIENCE_FACTOR
_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
#: Sent, but the answer was lost. Most of what we write can be sent twice: creations carry an idempotency key or a name.
_LOST = (httpx.ReadTimeout, httpx.ReadError, httpx.WriteError, httpx.WriteTimeout, httpx.RemoteProtocolError)
#: What cannot: records and artifacts carry no key, and the server knows a state's transition id only as long as the
#: item is in that state.
_ONCE: Final = ("/set_state", "/logs/", "/artifacts/")
#: What to do about a server that cannot be reached, and about one that can.
_IF_AWAY: Final = "Start it with 'prefect server start', or set PREFECT_API_URL to the address of the one to use."
_IF_BUSY: Final = "It is overloaded, or its database is locked: ask again. On PostgreSQL it takes more than on SQLite."


class ServerTransport(httpx.AsyncBaseTransport):
    """Sends requests, and retries them while the server is busy or away for a moment.

    Args:
        inner: sends one request once.
        address: of the server, for messages.
        patience_seconds: for how long a server that cannot be reached is tried.
        silent_seconds: after how long without an answer the log says so, once until all requests are answered.
    """

    def __init__(
        self,
        inner: httpx.AsyncBaseTransport,
        *,
        address: str,
        patience_seconds: float,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        self._inner = inner
        self._address = address
        self._patience = patience_seconds
        self._silent_seconds = silent_seconds
        self._overdue: set[int] = set()
        self._writing = anyio.Semaphore(1)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises:
            SpecError: when the server could not send again what it would keep; nothing has left.
            ServerUnavailableError: when no answer came within the patience, or the server stayed busy for longer still.
            OperatorError: when the server wants a password or key, or the address is none of a Prefect server.
            AnswerLostError: when the answer was lost of a request that must not take effect twice.
        """
        check_body(request.content)
        with ExitStack() as silence:
            return await self._send(request, silence)

    @contextmanager
    def _logging_silence(self, request: httpx.Request) -> Iterator[None]:
        """Log that the server leaves requests unanswered, and when it has answered them all."""
        sent, key = time.monotonic(), id(request)

        def note() -> None:
            if not self._overdue:
                log.warning(
                    "server-silent The Prefect server at %s has not answered %s %s for %.0f s, and is still asked."
                    " When its log says 'database is locked', SQLite has too much to write: use PostgreSQL.",
                    self._address,
                    request.method,
                    request.url.path,
                    time.monotonic() - sent,
                )
            self._overdue.add(key)

        timer = asyncio.get_running_loop().call_later(self._silent_seconds, note)
        try:
            yield
            if self._overdue == {key}:
                log.warning("server-answers The Prefect server answers again, after %.0f s.", time.monotonic() - sent)
        finally:
            timer.cancel()
            self._overdue.discard(key)

    async def _send(self, request: httpx.Request, silence: ExitStack) -> httpx.Response:
        failing_since: float | None = None
        is_sent = False
        while True:
            # A write gives up its turn between attempts: none waits out another's patience.
            async with nullcontext() if _is_read(request) else self._writing:
                started = time.monotonic()
                if not is_sent:  # Until now it has waited for its turn, not for the server.
                    silence.enter_context(self._logging_silence(request))
                    is_sent = True
                try:
                    response = await self._inner.handle_async_request(request)
                    if response.status_code not in _BUSY | _GATEWAY:
                        return self._admitted(request, response)
                    await response.aclose()
                    fault, is_away = f"busy: {response.status_code}", False
                    patience = self._patience * _BUSY_PATIENCE_FACTOR
                    lost = response.status_code in _GATEWAY
                except (*_UNREACHED, *_LOST) as error:
                    fault = f"{type(error).__name__}: {str(error) or 'no answer in time'}"
                    patience, is_away = self._patience, isinstance(error, _UNREACHED)
                    lost = isinstance(error, _LOST)
            if lost and request.method == "POST" and request.url.path.endswith(_ONCE):
                raise AnswerLostError(
                    f"The answer of the Prefect server at {self._address} was lost ({fault}); whether it has done what"
                    " was asked is not known. Look, and ask again if it has not."
                )
            failing_since = started if failing_since is None else failing_since
            if time.monotonic() - failing_since >= patience:
                what_to_do = _IF_AWAY if is_away else _IF_BUSY
                raise ServerUnavailableError(
                    f"The Prefect server at {self._address} does not answer ({fault}). {what_to_do}"
                )
            await anyio.sleep(random.uniform(_RETRY_MIN_SECONDS, _RETRY_MAX_SECONDS))

    def _admitted(self, request: httpx.Request, response: httpx.Response) -> httpx.Response:
        """Return an answer, unless it says that no request of this machine would be answered."""
        if response.status_code == _NO_ENTRY:
            raise OperatorError(
                f"The Prefect server at {self._address} does not let this machine in (401). Set"
                " PREFECT_API_AUTH_STRING to its password (or PREFECT_API_KEY to a key)."
            )
        if response.status_code == _GONE and request.url.path.endswith(HEALTH_PATH):
            raise OperatorError(
                f"There is no API of a Prefect server at {self._address}. Set PREFECT_API_URL to its address, which"
                " mostly ends with /api, such as http://127.0.0.1:4200/api."
            )
        return response

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()


def _is_read(request: httpx.Request) -> bool:
    return request.method == "GET" or request.url.path.endswith(("/filter", "/count", "/latest/filter"))


# --- requests ---

_TAKEN = 409
_LISTS: Final = ("/flow_runs/filter", "/flow_runs/paginate")
_UNSENDABLE: Final = (
    ". It fails over every list with a run whose parameters or labels hold an integer beyond 64 bits. The queue's"
    " agent ends and repairs one that waits: start it. Find the id of any other, and delete it ("
    "'prefect flow-run delete ID');"
    " the operations guide says how, under 'A list of runs that the server cannot send'"
)
_REFUSED = frozenset({400, 403, 409, 422})


class Rest:
    """Sends requests through Prefect's own client, which knows about keys, headers and CSRF tokens."""

    def __init__(self, client: PrefectClient) -> None:
        self._client = client

    async def call(
        self, method: str, path: str, *, json: Any = None, params: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """Send a request and return its answer, whatever its status below 500.

        Raises:
            SpecError: when what is sent is nothing that the server can keep.
            ServerUnavailableError: when no answer came (from the transport).
            ServerFailedError: when the server failed.
        """
        try:
            response: httpx.Response = await self._client.request(method, path, json=json, params=params)  # type: ignore[arg-type]
        except httpx.HTTPStatusError as error:
            response = error.response
        except (TypeError, ValueError):  # Of httpx, which writes no NaN, no half of a character, and no set.
            check_server_json(json, "What is sent to the Prefect server")
            raise
        if response.status_code >= 500:
            raise ServerFailedError(
                f"The Prefect server failed with {response.status_code} on {method} {path}: {detail(response)[:500]}"
                f"{_UNSENDABLE if path.endswith(_LISTS) else ''}"
            )
        return response

    async def get(self, method: str, path: str, **kwargs: Any) -> Any:
        """Send a request and return its JSON; `None` when the thing does not exist.

        Raises:
            SpecError: when the server refuses what was sent, with its reason.
            ServerFailedError: when the answer is no JSON.
        """
        response = await self.call(method, path, **kwargs)
        if response.status_code == _GONE:
            return None
        raise_refusal(response)
        try:
            return response.json() if response.content else {}
        except ValueError as error:
            raise ServerFailedError(
                f"The answer to {method} {path} is no JSON ({error}): does something between here and the Prefect"
                f" server answer in its place? It begins with {response.text[:100]!r}."
            ) from None


class Calls:
    """Calls of one kind; `prefect_launch.server.protocol.Server` says what each does."""

    _rest: Rest


def is_taken(response: httpx.Response) -> bool:
    """Whether the server says that a thing of that name exists already."""
    return response.status_code == _TAKEN


def raise_refusal(response: httpx.Response) -> None:
    """Raise `SpecError` with the server's reason when it refused what was sent."""
    if response.status_code in _REFUSED:
        raise SpecError(f"The Prefect server refuses this: {detail(response)}")
    if response.status_code >= 400:
        raise InternalError(f"The Prefect server answered {response.status_code}: {detail(response)[:500]}")


def detail(response: httpx.Response) -> str:
    """Return the reason in the body of a refusal, as text."""
    try:
        body = response.json()
    except ValueError:
        return response.text
    if isinstance(body, dict):
        found = body.get("detail") or body.get("exception_detail") or body.get("exception_message") or body
        if isinstance(found, list):
            return "; ".join(_one_fault(fault) for fault in found)
        return str(found)
    return str(body)


def _one_fault(fault: Any) -> str:
    if isinstance(fault, dict) and "msg" in fault:
        return f"{'.'.join(str(part) for part in fault.get('loc', ()))}: {fault['msg']}"
    return str(fault)
