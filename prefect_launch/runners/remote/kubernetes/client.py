"""Kubernetes API client: `KubernetesClient`, over kubernetes_asyncio's login and connections.

Bodies are mappings and answers are read as JSON: the package's models refuse objects that a newer or custom API gives.
Every request may be made twice, so one whose answer was lost, that an overloaded server refused, or that has raced with
another's is made again. A token that the API does not know any more is read again from where it came from.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from prefect_launch.errors import AgentConfigError, InfrastructureError, LaunchError, UnreachableError, clause
from prefect_launch.runners.remote.kubernetes.errors import Answer, LoginError, NotThereError, error_of
from prefect_launch.runners.remote.kubernetes.login import Login, load_login

log = logging.getLogger(__name__)

Object = dict[str, Any]
Query = Mapping[str, str | int]

_CONNECT_SECONDS: Final = 10.0
_CALL_SECONDS: Final = 30.0
#: The pauses before a request is made again; an answer with Retry-After has its own, up to the longest.
_RETRY_SECONDS: Final = (0.2, 1.0)
_MOST_RETRY_SECONDS: Final = 30.0
#: How many objects of a list come in one answer.
_PAGE: Final = 500
_MERGE_PATCH: Final = "application/merge-patch+json"


@dataclass(frozen=True)
class _Request:
    """A request to the API.

    Attributes:
        method: of HTTP.
        path: below the server's address.
        what: is asked for, in words that follow "cannot".
        query: to the request.
        body: to send; None: none.
        content_type: of the body.
        total_seconds: what its answer may take as a whole; None: any time.
        silent_seconds: how long its answer may be silent; None: any time.
    """

    method: str
    path: str
    what: str
    query: Query | None = None
    body: Object | None = None
    content_type: str = "application/json"
    total_seconds: float | None = None
    silent_seconds: float | None = None


class KubernetesClient:
    """A connection to one cluster; it is made at the first call.

    Args:
        context: as `load_login` takes it.
    """

    def __init__(self, context: str = "") -> None:
        self._context = context
        self._login: Login | None = None
        self._doubted: Login | None = None
        self._rest: Any = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loading = asyncio.Lock()

    async def context(self) -> str:
        """Return the name of its context, also where that is the current one, as `load_login` takes it."""
        return (await self._connected()).context

    async def namespace(self) -> str:
        """Return the namespace of the login."""
        return (await self._connected()).namespace

    async def version(self) -> tuple[int, int]:
        """Return the version of the server, such as (1, 31)."""
        found = await self.get("/version", what="say its version")
        major, minor = (
            int("".join(c for c in str(found.get(part, "")) if c.isdigit()) or 0) for part in ("major", "minor")
        )
        return major, minor

    async def get(self, path: str, query: Query | None = None, *, what: str) -> Object:
        """Return an object.

        Args:
            path: below the server's address.
            query: to the request.
            what: is asked for, in words that follow "cannot".

        Raises:
            NotThereError: when there is none.
            LaunchError: as `error_of` says.
        """
        return await self._call(_Request("GET", path, what, query))

    async def find(self, path: str, *, what: str) -> Object | None:
        """Return an object if it exists."""
        try:
            return await self.get(path, what=what)
        except NotThereError:
            return None

    async def list(self, path: str, query: Query | None = None, *, what: str) -> Object:
        """Return a whole list, page by page, as one list object."""
        whole = page = await self.get(path, {**(query or {}), "limit": _PAGE}, what=what)
        while more := (page.get("metadata") or {}).get("continue"):
            page = await self.get(path, {**(query or {}), "limit": _PAGE, "continue": more}, what=what)
            whole["items"] = [*(whole.get("items") or ()), *(page.get("items") or ())]
        whole["items"] = whole.get("items") or []
        # In a list, the items do not say of which kind they are.
        kind = {"apiVersion": whole.get("apiVersion"), "kind": str(whole.get("kind") or "").removesuffix("List")}
        whole["items"] = [{**kind, **item} for item in whole["items"]]
        return whole

    async def create(self, path: str, body: Object, query: Query | None = None, *, what: str) -> Object:
        """Create an object; raises `TakenError` when one of its name exists."""
        return await self._call(_Request("POST", path, what, query, body))

    async def patch(self, path: str, body: Object, *, what: str) -> Object:
        """Merge a patch into an object."""
        return await self._call(_Request("PATCH", path, what, body=body, content_type=_MERGE_PATCH))

    async def delete(self, path: str, body: Object | None = None, *, what: str) -> Object | None:
        """Delete an object; None when it is gone already."""
        try:
            return await self._call(_Request("DELETE", path, what, body=body or {}))
        except NotThereError:
            return None

    @asynccontextmanager
    async def stream(
        self, path: str, query: Query, *, idle_seconds: float, what: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open an answer that comes piece by piece, for as long as the context lasts.

        Args:
            path: below the server's address.
            query: to the request.
            idle_seconds: how long it may be silent before it counts as broken.
            what: is asked for.

        Raises:
            UnreachableError: also while it is read, when it breaks; its cause is a `TimeoutError` after a silence.
        """
        response = await self._open(_Request("GET", path, what, query, silent_seconds=idle_seconds))
        try:
            yield self._pieces(response, what)
        finally:
            response.close()

    async def aclose(self) -> None:
        """Close the connections."""
        rest, self._rest = self._rest, None
        if rest is not None and self._loop is asyncio.get_running_loop():
            await rest.close()

    # --- inside ---

    async def _call(self, request: _Request) -> Object:
        request = replace(request, total_seconds=_CALL_SECONDS)
        for pause in (*_RETRY_SECONDS, None):
            try:
                response = await self._open(request, pause)
                found = await response.json(content_type=None)
                break
            except _MayPassError as error:
                await asyncio.sleep(error.pause)
            except AgentConfigError:
                raise  # Where the client is not installed, neither is what `_unread` names.
            except _unread() as error:
                if pause is None or isinstance(error, asyncio.TimeoutError):
                    raise self._away(request.what, error) from error
                await asyncio.sleep(pause)
        if not isinstance(found, dict):
            raise InfrastructureError(
                f"What answers at {self._host} is no Kubernetes API: {str(found)[:100]!r}. Correct the kubeconfig."
            )
        return found

    async def _open(self, request: _Request, pause: float | None = None) -> Any:
        """Make a request; return its answer when it is a success.

        Args:
            request: to make.
            pause: before the request is made again; None: it is not.
        """
        login = await self._connected()
        response = await self._send(login, request, pause)
        if response.status == 401:
            renewed = await self._reconnect(login)
            if renewed.identity != login.identity:
                response.close()
                response = await self._send(renewed, request, pause)
        if response.status < 400:
            return response
        try:
            answer = Answer.read(response.status, await response.read(), response.headers)
        finally:
            response.close()
        if answer.may_pass and pause is not None:
            raise _MayPassError(min(_MOST_RETRY_SECONDS, answer.retry_after or pause))
        raise error_of(answer, request.what, login.host)

    async def _send(self, login: Login, request: _Request, pause: float | None) -> Any:
        import aiohttp

        headers = {"Accept": "application/json", "User-Agent": "prefect-launch"}
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        if login.authorization:
            headers["Authorization"] = login.authorization
        timeout = aiohttp.ClientTimeout(
            total=request.total_seconds, sock_connect=_CONNECT_SECONDS, sock_read=request.silent_seconds
        )
        try:
            return await self._rest.request(
                request.method,
                login.host + request.path,
                query_params=list((request.query or {}).items()),
                headers=headers,
                body=request.body,
                _preload_content=False,
                _request_timeout=timeout,
            )
        except _broken() as error:
            if pause is not None and not isinstance(error, asyncio.TimeoutError) and not _is_distrust(error):
                raise _MayPassError(pause) from error
            # The address or the certificates may have been corrected.
            self._doubted = login
            raise self._away(request.what, error) from error

    async def _pieces(self, response: Any, what: str) -> AsyncIterator[bytes]:
        try:
            async for piece in response.content.iter_any():
                yield piece
        except _broken() as error:
            raise self._away(what, error) from error

    async def _connected(self) -> Login:
        loop = asyncio.get_running_loop()
        is_open = self._login is not None and self._rest is not None and self._loop is loop
        if is_open and self._login is not None and self._login is not self._doubted:
            return self._login
        if self._loop is not loop:
            self._rest, self._loop, self._loading = None, loop, asyncio.Lock()
        return await self._reconnect(self._login)

    async def _reconnect(self, known: Login | None) -> Login:
        """Read the login again, unless somebody else has done so since; connect anew only where that has changed.

        A call that has failed is no reason to break the streams over the other connections.
        """
        async with self._loading:
            if self._login is None or self._login is known or self._rest is None:
                login = await load_login(self._context)
                if self._login is None or self._rest is None or login.connection != self._login.connection:
                    await self._connect(login)
                self._login, self._doubted = login, None
        return self._login

    async def _connect(self, login: Login) -> None:
        from kubernetes_asyncio.client.rest import RESTClientObject

        old = self._rest
        try:
            self._rest = RESTClientObject(login.configuration)
        except OSError as error:
            raise LoginError(
                f"The certificates of the {login.origin} cannot be used: {clause(error)}. Correct the kubeconfig."
            ) from error
        if old is not None:
            # Streams over the old connections are opened anew by those who read them.
            await old.close()

    @property
    def _host(self) -> str:
        return self._login.host if self._login is not None else "the cluster"

    def _away(self, what: str, error: BaseException) -> UnreachableError:
        said = clause(error) or type(error).__name__
        if _is_distrust(error):
            return UnreachableError(
                f"The certificate of the cluster at {self._host} is not trusted: {said}. Put the authority that signed"
                " it into the kubeconfig (certificate-authority-data)."
            )
        return UnreachableError(
            f"The cluster at {self._host} does not answer (to {what}): {said}. Check that this machine reaches it."
        )


class _MayPassError(LaunchError):
    """A request failed, and is to be made again after a pause."""

    def __init__(self, pause: float) -> None:
        super().__init__(f"again in {pause:g} s")
        self.pause = pause


def _broken() -> tuple[type[BaseException], ...]:
    """Return the errors of a connection that could not be made, broke, or is silent."""
    import aiohttp

    return (aiohttp.ClientError, asyncio.TimeoutError, OSError)


def _unread() -> tuple[type[BaseException], ...]:
    """Return the errors of an answer that was cut off, or is no JSON."""
    return (*_broken(), ValueError)


def _is_distrust(error: BaseException) -> bool:
    import aiohttp

    return isinstance(error, (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError))


async def lines(pieces: AsyncIterator[bytes], most_bytes: int | None = None) -> AsyncIterator[Sequence[bytes]]:
    """Yield the lines of a stream as they come, all that came at once together; the last one may have no end.

    Args:
        pieces: of the stream.
        most_bytes: a longer line comes in parts, of about so many bytes each: what follows a part without an end goes
            on with it. None: each line comes whole.
    """
    rest: list[bytes] = []  # Joined once: a line may come in thousands of pieces.
    size = 0
    async for piece in pieces:
        *whole, last = piece.split(b"\n")
        found = [line + b"\n" for line in whole]
        if whole:
            found[0] = b"".join([*rest, found[0]])
            rest, size = [], 0
        if last:
            rest.append(last)
            size += len(last)
        if most_bytes is not None and size >= most_bytes:
            found.append(b"".join(rest))
            rest, size = [], 0
        if found:
            yield found
    if rest:
        yield [b"".join(rest)]


def as_json(line: bytes) -> Object:
    """Return the object of a line of a watch.

    Raises:
        UnreachableError: when it is cut off.
    """
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UnreachableError("The cluster's answer was cut off in the middle of a line.") from error
    return dict(found)
