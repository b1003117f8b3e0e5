"""Client of Ray's Jobs REST API, over httpx: no Ray on the agent's machine.

The address and the credentials are the agent's own: `RAY_ADDRESS` (the dashboard's, ``http://head:8265``),
`RAY_JOB_HEADERS` (a JSON object), and a token as Ray itself finds it: `RAY_AUTH_TOKEN`, `RAY_AUTH_TOKEN_PATH`, or
``~/.ray/auth_token``. A certificate of one's own is trusted by `SSL_CERT_FILE`.

An answer of a proxy or a busy head (401, 403, 429, 502 to 504) does not count as Ray's: the cluster counts as not
reachable until Ray answers. A 404 without Ray's own words does not count either: a proxy sends it for a head that is
away, and a dashboard for what it has not loaded yet. A request is sent once; then the client asks whether a job was
made, and never guesses.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import anyio
import httpx

from prefect_launch.core.masking import without_users
from prefect_launch.errors import AgentConfigError, UnreachableError

ADDRESS_VARIABLE: Final = "RAY_ADDRESS"
_HEADERS_VARIABLE: Final = "RAY_JOB_HEADERS"
_TOKEN_VARIABLE: Final = "RAY_AUTH_TOKEN"
_TOKEN_PATH_VARIABLE: Final = "RAY_AUTH_TOKEN_PATH"
_TOKEN_FILE: Final = "~/.ray/auth_token"

_CONNECT_SECONDS: Final = 10.0
#: A job's first submission takes seconds, a large package more.
_READ_SECONDS: Final = 60.0
#: The longest pause that a busy head's Retry-After gets before the call is given up.
_MOST_RETRY_SECONDS: Final = 30.0
_BUSY: Final = 429
_PASSING: Final = frozenset({_BUSY, 502, 503, 504})
#: With these, a proxy may have lost Ray's answer.
_MAYBE_DONE: Final = frozenset({502, 503, 504})
_SHOWN_CHARS: Final = 300
#: What Ray says of a job or package that there is not, and nobody else of anything.
_MISSING: Final = re.compile(r"(Job|Package) \S+ does not exist\s*")
#: The user and password of an address, which may lack its scheme, and whose password may hold anything.
_USER: Final = re.compile(r"^(\w+://)?.*@")
_PIECE_BYTES: Final = 256 * 1024


def ray_address(environment: Mapping[str, str]) -> str:
    """Return the address of the cluster's Jobs API.

    Raises:
        AgentConfigError: when it is not set, or is no address of a dashboard.
    """
    address = environment.get(ADDRESS_VARIABLE, "").strip().rstrip("/")
    if not address.startswith(("http://", "https://")):
        seen = f"{ADDRESS_VARIABLE} is {_shown(address)!r}" if address else f"{ADDRESS_VARIABLE} is not set"
        raise AgentConfigError(
            f"The agent does not know its Ray cluster: {seen}. Set it to the address of the cluster's dashboard, such"
            " as http://ray-head:8265, in the agent's environment."
        )
    return address


def _shown(address: str) -> str:
    """Return an address for messages: with `***` for its user and password."""
    return _USER.sub(r"\1***@", address)


def ray_headers(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the headers that the cluster asks for.

    Raises:
        AgentConfigError: when `RAY_JOB_HEADERS` is no JSON object of texts, or the token's file cannot be read.
    """
    headers: dict[str, str] = {}
    token = _token(environment)
    if token:
        headers["Authorization"] = f"Bearer {token}"
    given = environment.get(_HEADERS_VARIABLE)
    if given:
        try:
            found = json.loads(given)
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
            raise AgentConfigError(  # Its value may be a secret: it is not shown.
                f"{_HEADERS_VARIABLE} must be a JSON object of header names and texts, such as"
                ' {"Authorization": "Bearer …"}. Correct it in the agent\'s environment.'
            )
        headers |= found
    return headers


def _token(environment: Mapping[str, str]) -> str:
    token, path = environment.get(_TOKEN_VARIABLE, "").strip(), environment.get(_TOKEN_PATH_VARIABLE)
    if token:
        return token
    file = Path(path or _TOKEN_FILE).expanduser()
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        if path is None:
            return ""
        raise AgentConfigError(
            f"The token of the Ray cluster cannot be read from {_TOKEN_PATH_VARIABLE} {path!r}: {error}. Correct it."
        ) from None


class NotReachedError(UnreachableError):
    """A request has not come to Ray, so it has no effect: nobody listens there, or a proxy has refused it."""


class RayAnswer:
    """An answer of the Jobs API.

    Attributes:
        status: the HTTP status code.
        text: the body.
    """

    def __init__(self, status: int, text: str) -> None:
        self.status = status
        self.text = text

    @property
    def is_missing(self) -> bool:
        """Whether Ray itself says that it has no such job or package."""
        return self.status == 404 and _MISSING.fullmatch(self.text) is not None

    @property
    def reason(self) -> str:
        """Its last line, which in a traceback is the error."""
        lines = [line.strip() for line in self.text.strip().splitlines() if line.strip(" .")]
        return without_users(lines[-1] if lines else f"HTTP {self.status}")[:_SHOWN_CHARS]

    def json(self) -> Any:
        """Return the body as JSON.

        Raises:
            UnreachableError: when it is none: something else than Ray has answered.
        """
        try:
            return json.loads(self.text)
        except ValueError:
            raise no_dashboard(self.text) from None


def no_dashboard(text: str) -> UnreachableError:
    """Return the error that something else than Ray, such as the page of a proxy, has answered."""
    return UnreachableError(
        f"What answers at {ADDRESS_VARIABLE} is no Ray dashboard: {text[:_SHOWN_CHARS]!r}. Correct it, or look at a"
        " proxy before the cluster's head."
    )


class RayClient:
    """The Jobs API of one cluster.

    Args:
        environment: names the address and the credentials.
        transport: of the requests; None: the network.
    """

    def __init__(
        self, environment: Callable[[], Mapping[str, str]] = lambda: os.environ, transport: Any = None
    ) -> None:
        self._environment = environment
        self._transport = transport
        self._http: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def call(self, method: str, path: str, **options: Any) -> RayAnswer:
        """Make a request, and return its answer, whatever its status.

        Args:
            method: of HTTP.
            path: below the address.
            options: of httpx; and `file`, a file to send as the body, in pieces.

        Raises:
            AgentConfigError: when the address or the credentials are not set as they must be.
            NotReachedError: when it has not come to Ray.
            UnreachableError: when there is no answer, or one that is not Ray's own.
        """
        async with self._asked(method, path, **options) as answer:
            return RayAnswer(answer.status_code, (await answer.aread()).decode("utf-8", "replace"))

    async def get(self, path: str, **params: Any) -> Any:
        """Return what is read at a path as JSON; None when Ray says that it does not exist.

        Raises:
            UnreachableError: when the cluster does not answer, or fails.
        """
        answer = await self.call("GET", path, params=params)
        if answer.is_missing:
            return None
        return self.checked(answer).json()

    def checked(self, answer: RayAnswer) -> RayAnswer:
        """Return an answer that is good (200).

        Raises:
            UnreachableError: when it is not.
        """
        if answer.status != 200:
            raise UnreachableError(
                f"The Ray cluster at {self.address} fails (HTTP {answer.status}): {answer.reason}. Look at its head,"
                " and at a proxy before it."
            )
        return answer

    async def stream(self, path: str, **params: Any) -> AsyncIterator[bytes]:
        """Yield the bytes of a file.

        Raises:
            UnreachableError: when the cluster does not answer, or fails.
        """
        async with self._asked("GET", path, params=params) as answer:
            if answer.status_code != 200:
                reason = RayAnswer(answer.status_code, (await answer.aread()).decode("utf-8", "replace")).reason
                raise UnreachableError(f"The Ray cluster at {self.address} cannot read a log: {reason}.")
            async for piece in answer.aiter_bytes():
                yield piece

    async def aclose(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None and self._loop is asyncio.get_running_loop():
            await http.aclose()

    @property
    def address(self) -> str:
        """Where the cluster is, for messages: without the user and password that its address may have."""
        return _shown(ray_address(self._environment()))

    @asynccontextmanager
    async def _asked(self, method: str, path: str, **options: Any) -> AsyncIterator[httpx.Response]:
        http, is_again = await self._connected(), False
        file: Path | None = options.pop("file", None)
        try:
            while True:
                # A token's file may be written anew while the agent lives.
                headers = await asyncio.to_thread(ray_headers, self._environment())
                if file is not None:
                    options["content"] = _pieces(file)
                    headers["Content-Length"] = str((await asyncio.to_thread(file.stat)).st_size)
                async with http.stream(method, path, headers=headers, **options) as answer:
                    pause = None if is_again else _retry_after(answer)
                    if pause is None:
                        self._check(answer)
                        yield answer
                        return
                is_again = True
                await asyncio.sleep(pause)
        except httpx.TransportError as error:
            why = str(error).rstrip(".") or type(error).__name__
            advice = "Start it, or correct the address."
            if isinstance(error, httpx.ConnectError) and "CERTIFICATE_VERIFY_FAILED" in why:
                advice = "Name its certificate authority by SSL_CERT_FILE in the agent's environment."
            kind = (
                NotReachedError if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)) else UnreachableError
            )
            raise kind(
                f"The Ray cluster at {self.address} ({ADDRESS_VARIABLE}) does not answer: {why}. {advice}"
            ) from error

    def _check(self, answer: httpx.Response) -> None:
        code = answer.status_code
        if code in (401, 403):
            raise NotReachedError(
                f"The Ray cluster at {self.address} does not let this agent in (HTTP {code}). Set {_TOKEN_VARIABLE},"
                f" {_TOKEN_PATH_VARIABLE} or {_HEADERS_VARIABLE} in the agent's environment."
            )
        if code in _PASSING or code in range(300, 400):
            kind = UnreachableError if code in _MAYBE_DONE else NotReachedError
            raise kind(
                f"The Ray cluster at {self.address} cannot be reached now: HTTP {code}. Look at its head, and at a"
                " proxy before it."
            )

    async def _connected(self) -> httpx.AsyncClient:
        """Return the client of this event loop."""
        loop = asyncio.get_running_loop()
        if self._http is None or self._loop is not loop:
            address = ray_address(self._environment())
            # Loading the machine's certificates takes 20 ms.
            verify = await asyncio.to_thread(ssl.create_default_context) if address.startswith("https") else False
            self._loop, self._http = (
                loop,
                httpx.AsyncClient(
                    base_url=address,
                    headers={"User-Agent": "prefect-launch"},
                    timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS),
                    transport=self._transport,
                    verify=verify,
                ),
            )
        return self._http


def _retry_after(answer: httpx.Response) -> float | None:
    """Return the pause that a busy head asks for; None when it asks for none, or for a long one."""
    given = answer.headers.get("retry-after", "")
    if answer.status_code != _BUSY or not given.isdecimal() or int(given) > _MOST_RETRY_SECONDS:
        return None
    return float(given)


async def _pieces(file: Path) -> AsyncIterator[bytes]:
    async with await anyio.open_file(file, "rb") as opened:
        while piece := await opened.read(_PIECE_BYTES):
            yield piece


def job_path(handle: str, rest: str = "") -> str:
    """Return the path of a job in the API."""
    return f"/api/jobs/{quote(handle, safe='')}{rest}"
