"""A registry's own HTTP API, as the OCI distribution specification has it: which digest an image has there.

Every question has a time limit; what fails for the registry's sake (no answer, 5xx, too many requests) is asked again
after a pause. TLS is always used, and checked, except for the loopback and for registries that the operator calls
insecure: there, as Docker does, TLS is tried unchecked, and plain HTTP when there is none. It does not move layers: the
Docker Engine does that.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from types import TracebackType
from typing import Any, Final

import httpx

from prefect_launch.errors import RegistryError
from prefect_launch.registries.base import Credentials
from prefect_launch.registries.challenge import Challenge, authorization
from prefect_launch.registries.reference import ImageReference, is_digest, is_loopback

#: For one question; a registry that is behind a slow disk takes seconds.
_REQUEST_SECONDS: Final = 15.0
_CONNECT_SECONDS: Final = 5.0
#: Before each further try. A registry that restarts is back within these.
PAUSES_SECONDS: Final = (0.3, 1.0, 3.0)
#: A registry that asks for a longer pause than this is told to the caller.
_LONGEST_PAUSE_SECONDS: Final = 10.0
_TOO_MANY: Final = 429

#: All kinds of manifests; a registry gives a converted one, of another digest, to who does not name what it has.
MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class RegistryClient:
    """One registry. Use it as an async context manager.

    Args:
        host: its address as images are named by it, with its port.
        api_host: where its API answers, when that is another address.
        credentials: who to be there.
        is_insecure: whether it may have no TLS, or a certificate that nobody signed.
        advice: how its credentials are made known, as the next step of a message.
        pauses: seconds before each further try of a question that failed for the registry's sake.
    """

    def __init__(
        self,
        host: str,
        *,
        api_host: str | None = None,
        credentials: Credentials | None = None,
        is_insecure: bool = False,
        advice: str = "",
        pauses: tuple[float, ...] = PAUSES_SECONDS,
    ) -> None:
        self._host = host
        self._credentials = credentials
        self._advice = advice
        self._pauses = pauses
        address = api_host or host
        is_lax = is_insecure or is_loopback(host)
        self._bases = [f"https://{address}", *([f"http://{address}"] if is_lax else [])]
        self._authorization: dict[str, str] = {}
        self._http = httpx.AsyncClient(
            verify=not is_lax,
            follow_redirects=True,
            timeout=httpx.Timeout(_REQUEST_SECONDS, connect=_CONNECT_SECONDS),
            headers={"User-Agent": "prefect-launch"},
        )

    async def __aenter__(self) -> RegistryClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def digest_of(self, image: ImageReference) -> str | None:
        """Return the digest that an image has now; None when there is no such image.

        Raises:
            RegistryError: when the registry fails, does not answer, or refuses to say.
        """
        path = f"/v2/{image.repository}/manifests/{image.version}"
        answer = await self._ask("HEAD", path, image)
        if answer.status_code == 200 and is_digest(answer.headers.get("docker-content-digest")):
            return str(answer.headers["docker-content-digest"])
        if answer.status_code in (200, 405):  # The header is only recommended to registries, HEAD is not to all known.
            answer = await self._ask("GET", path, image)
        if answer.status_code == 404:
            return None
        self._check(answer, image)
        return self._digest_in(answer)

    def _digest_in(self, answer: httpx.Response) -> str:
        told = answer.headers.get("docker-content-digest")
        kind = answer.headers.get("content-type", "").partition(";")[0]
        if kind not in MANIFEST_TYPES:
            raise RegistryError(
                f"What answers at {self._host!r} is no registry that prefect-launch knows: where an image's manifest"
                f" was asked for, it gave {kind or 'nothing'!r}. Check the registry's address."
            )
        return str(told) if is_digest(told) else f"sha256:{hashlib.sha256(answer.content).hexdigest()}"

    async def _ask(self, method: str, path: str, image: ImageReference) -> httpx.Response:
        """Ask until there is an answer that another try would not change."""
        answer: httpx.Response | None = None
        fault = ""
        for pause in (*self._pauses, None):
            try:
                answer = await self._authorized(method, path, image)
            except httpx.TransportError as error:
                answer, fault = None, str(error) or type(error).__name__
            else:
                fault = f"HTTP {answer.status_code}"
                if answer.status_code < 500 and answer.status_code != _TOO_MANY:
                    return answer
            if pause is not None:
                await asyncio.sleep(_pause(answer, pause))
        what = "failed" if answer is not None else "does not answer"
        raise RegistryError(
            f"The registry {self._host!r} {what} ({fault}), {len(self._pauses) + 1} times. Check its address, that it"
            " runs and can be reached from here; a registry without TLS must be named 'insecure' under 'registries' in"
            " the config."
        )

    async def _authorized(self, method: str, path: str, image: ImageReference) -> httpx.Response:
        """Ask, and once more with what the registry wants to see."""
        known = self._authorization.get(image.repository)
        answer = await self._send(method, path, known)
        challenge = Challenge.of(answer) if answer.status_code == 401 else None
        if challenge is None:
            return answer
        is_secure = answer.url.scheme == "https"
        shown = await authorization(self._http, challenge, self._credentials, host=self._host, is_secure=is_secure)
        if shown is None or shown == known:
            return answer
        self._authorization[image.repository] = shown
        return await self._send(method, path, shown)

    async def _send(self, method: str, path: str, shown: str | None) -> httpx.Response:
        headers: dict[str, Any] = {"Accept": ", ".join(MANIFEST_TYPES), **({"Authorization": shown} if shown else {})}
        while True:
            try:
                return await self._http.request(method, self._bases[0] + path, headers=headers)
            except (httpx.ConnectError, httpx.RemoteProtocolError) as error:
                if len(self._bases) == 1 or not _has_no_tls(error):
                    raise
                del self._bases[0]

    def _check(self, answer: httpx.Response, image: ImageReference) -> None:
        if answer.status_code in (401, 403):
            raise RegistryError(self._refused(answer.status_code, image))
        if answer.status_code != 200:
            raise RegistryError(
                f"The registry {self._host!r} answered HTTP {answer.status_code} when it was asked for"
                f" {image.repository}:{image.version}. Check that {self._host!r} is a registry."
            )

    def _refused(self, status: int, image: ImageReference) -> str:
        named = f"{image.repository!r} of the registry {self._host!r}"
        if self._credentials is None:
            return (
                f"{named} wants a user and password (HTTP {status}), and none are known here; or there is no such"
                f" repository. {self._advice}"
            )
        if status == 403:
            return (
                f"{named} may not be read by the user that is configured for it (HTTP 403). Ask its owner for access."
            )
        return (
            f"{named} refuses the user and password that are configured for it (HTTP {status}): they are wrong, have"
            f" run out, or may not read it. {self._advice}"
        )


def _pause(answer: httpx.Response | None, pause: float) -> float:
    """Return how long to wait: what the registry asks for, within reason, or else the pause, a little spread."""
    asked = answer.headers.get("retry-after", "") if answer is not None else ""
    if asked.isdigit():
        return min(float(asked), _LONGEST_PAUSE_SECONDS)
    return pause * random.uniform(0.8, 1.2)


def _has_no_tls(error: BaseException | None) -> bool:
    """Whether a connection failed because the other side does not speak TLS."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__
    return False
