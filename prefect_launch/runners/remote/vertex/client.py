"""Client of Google Cloud's REST APIs, over httpx: Vertex AI, Cloud Logging and Cloud Storage, by the agent's account.

The addresses are Google's. gcloud's own variables name others, such as a private endpoint:
`CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM`, `…_LOGGING` and `…_STORAGE`, in the agent's environment. One client keeps
its connections. What Google throttles (429, and 503 to what can be asked again) is asked again, later and later and not
at the same moment as others ask. A job is created by one request: whether it took effect is found out by its labels.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from enum import Enum
from typing import Any, Final

import anyio
import httpx

from prefect_launch.clouds.gcp import GcpAccount
from prefect_launch.core.backoff import Backoff
from prefect_launch.errors import InfrastructureError, UnreachableError, clause

_CONNECT_SECONDS: Final = 10.0
_READ_SECONDS: Final = 60.0
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 30.0
#: How long a call that is throttled is made again.
_PATIENCE_SECONDS: Final = 60.0
_BUSY: Final = 429
_FAILING: Final = frozenset({500, 502, 503, 504})
_SHOWN_CHARS: Final = 600
#: How Google says that too many calls were made, and not that too much was asked for.
_RATE: Final = "RATE_LIMIT_EXCEEDED"


class Service(str, Enum):
    """A service of Google Cloud, by the name that gcloud has for it."""

    VERTEX = "aiplatform"
    LOGGING = "logging"
    STORAGE = "storage"


_OVERRIDES: Final = {
    Service.VERTEX: "CLOUDSDK_API_ENDPOINT_OVERRIDES_AIPLATFORM",
    Service.LOGGING: "CLOUDSDK_API_ENDPOINT_OVERRIDES_LOGGING",
    Service.STORAGE: "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE",
}
_RIGHTS: Final = {
    Service.VERTEX: "the role Vertex AI User (roles/aiplatform.user)",
    Service.LOGGING: "the role Logs Viewer (roles/logging.viewer)",
    Service.STORAGE: "the role Storage Object User (roles/storage.objectUser) on the bucket",
}


class Answer:
    """An answer of Google's.

    Attributes:
        code: the HTTP status code.
        body: what it holds; empty where that is no JSON object.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.code = response.status_code
        try:
            found = response.json() if response.content else {}
        except ValueError:
            found = None
        self.is_google = isinstance(found, dict)
        self.body: dict[str, Any] = found if isinstance(found, dict) else {}
        self._text = response.text

    @property
    def is_good(self) -> bool:
        """Whether Google did what it was asked for."""
        return 200 <= self.code < 300

    @property
    def is_missing(self) -> bool:
        """Whether Google says that there is no such thing."""
        return self.code == 404 and self._error.get("status", "NOT_FOUND") == "NOT_FOUND" and self.is_google

    @property
    def is_rate(self) -> bool:
        """Whether too many calls were made."""
        reasons = {one.get("reason") for one in self._error.get("details") or () if isinstance(one, dict)}
        return self.code == _BUSY and _RATE in reasons

    @property
    def reason(self) -> str:
        """Google's words."""
        return clause(self._error.get("message") or self._text or f"HTTP {self.code}")[:_SHOWN_CHARS]

    @property
    def _error(self) -> dict[str, Any]:
        error = self.body.get("error")
        return error if isinstance(error, dict) else {}


class GoogleClient:
    """The REST APIs, by one account.

    Args:
        account: whose identity, project and region it is.
        transport: of the requests; None: the network.
    """

    def __init__(self, account: GcpAccount, transport: Any = None) -> None:
        self.account = account
        self._transport = transport
        self._http: httpx.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def call(
        self,
        service: Service,
        method: str,
        path: str,
        *,
        once: bool = False,
        may_be_forbidden: bool = False,
        **options: Any,
    ) -> Answer:
        """Make a request, and return the answer, whatever Google says.

        Args:
            service: that is asked.
            method: of HTTP.
            path: below the service's address.
            once: whether it is sent again only where it certainly had no effect.
            may_be_forbidden: whether a refusal (403) is of what is asked for, and not of the agent.
            options: of httpx.

        Raises:
            AgentConfigError: when the account is not set, or refused.
            UnreachableError: when Google does not answer, lets this agent not in, or is busy for too long.
        """
        pauses, due = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE), time.monotonic() + _PATIENCE_SECONDS
        while True:
            async with self._asked(service, method, path, **options) as response:
                await response.aread()
                answer = Answer(response)
            is_busy = (answer.is_rate if once else answer.code == _BUSY) or (answer.code in _FAILING and not once)
            if not is_busy or time.monotonic() >= due:
                is_forbidden = answer.code == 403 and may_be_forbidden
                return answer if is_forbidden else self._checked(service, answer, is_busy=is_busy)
            await asyncio.sleep(max(pauses.next(), _retry_after(response)))

    @asynccontextmanager
    async def stream(self, service: Service, path: str, **params: Any) -> AsyncIterator[httpx.Response]:
        """Open an answer whose body is read in pieces.

        Raises:
            LaunchError: as `call` does.
            InfrastructureError: when there is no such thing.
        """
        async with self._asked(service, "GET", path, params=params) as response:
            if not response.is_success:
                await response.aread()
                answer = self._checked(service, Answer(response), is_busy=response.status_code == _BUSY)
                raise InfrastructureError(f"Google gives no {path.rpartition('/')[2]!r}: {answer.reason}.")
            yield response

    async def pages(self, service: Service, path: str, key: str, params: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the items of all pages of a list.

        Raises:
            LaunchError: as `call` does, and when Google refuses.
        """
        found, token = list[dict[str, Any]](), ""
        while True:
            answer = self.good(
                await self.call(service, "GET", path, params={**params, **({"pageToken": token} if token else {})}),
                "a list",
            )
            found += answer.body.get(key) or ()
            token = answer.body.get("nextPageToken") or ""
            if not token:
                return found

    @staticmethod
    def good(answer: Answer, what: str) -> Answer:
        """Return an answer to something that Google has done.

        Args:
            answer: to be looked at.
            what: Google was asked for.

        Raises:
            InfrastructureError: when it has not.
        """
        if not answer.is_good:
            raise InfrastructureError(f"Google refuses {what} (HTTP {answer.code}): {answer.reason}.")
        return answer

    async def jobs_path(self) -> str:
        """Return the path of the custom jobs of the account's project and region.

        Raises:
            LaunchError: when the account has none.
        """
        return f"/v1/projects/{await self.account.project()}/locations/{self.account.region}/customJobs"

    def address(self, service: Service) -> str:
        """Return the address of a service.

        Raises:
            AgentConfigError: when the account has no region.
        """
        given = os.environ.get(_OVERRIDES[service], "").strip().rstrip("/").removesuffix("/storage/v1")
        place = f"{self.account.region}-" if service is Service.VERTEX else ""
        return given or f"https://{place}{service.value}.googleapis.com"

    async def aclose(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None and self._loop is asyncio.get_running_loop():
            await http.aclose()

    def _checked(self, service: Service, answer: Answer, *, is_busy: bool) -> Answer:
        where = self.address(service)
        if answer.code == 401:
            self.account.forget_token()
            raise UnreachableError(
                f"Google does not take the agent's login at {where} (HTTP 401): {answer.reason}. Log in again on the"
                " agent's machine ('gcloud auth application-default login'), or correct what clouds.gcp in its config"
                " names."
            )
        if answer.code == 403:
            raise UnreachableError(
                f"Google does not let this agent in at {where} (HTTP 403): {answer.reason}. Its account"
                f" needs {_RIGHTS[service]}: clouds.gcp in the agent's config says who it is."
            )
        if is_busy or answer.code in _FAILING:
            raise UnreachableError(f"Google is busy or fails at {where} (HTTP {answer.code}): {answer.reason}. Wait.")
        if not answer.is_google or 300 <= answer.code < 400:
            raise UnreachableError(
                f"What answers at {where} is not Google (HTTP {answer.code}): {answer.reason!r}. Look at a proxy before"
                f" it, and at {_OVERRIDES[service]}."
            )
        return answer

    @asynccontextmanager
    async def _asked(self, service: Service, method: str, path: str, **options: Any) -> AsyncIterator[httpx.Response]:
        http, address = await self._connected(), self.address(service)
        headers = {"Authorization": f"Bearer {await self.account.token()}", **options.pop("headers", {})}
        try:
            async with http.stream(method, f"{address}{path}", headers=headers, **options) as response:
                yield response
        except httpx.TransportError as error:
            why = clause(error) or type(error).__name__
            raise UnreachableError(
                f"Google does not answer at {address}: {why}. Look at the network, and at {_OVERRIDES[service]}."
            ) from error

    async def _connected(self) -> httpx.AsyncClient:
        """Return the client of this event loop."""
        loop = asyncio.get_running_loop()
        if self._http is None or self._loop is not loop:
            # Loading the machine's certificates takes 20 ms.
            verify = await anyio.to_thread.run_sync(ssl.create_default_context)
            self._loop, self._http = (
                loop,
                httpx.AsyncClient(
                    headers={"User-Agent": "prefect-launch"},
                    timeout=httpx.Timeout(_READ_SECONDS, connect=_CONNECT_SECONDS),
                    transport=self._transport,
                    verify=verify,
                ),
            )
        return self._http


def _retry_after(response: httpx.Response) -> float:
    given = response.headers.get("retry-after", "")
    return min(float(given), _LONGEST_PAUSE) if given.isdecimal() else 0.0
