"""A registry's own HTTP API, as the OCI distribution specification has it: which digest an image has there.

Every question has a time limit; what fails for the registry's sake (no answer, 5xx, too many requests) is asked again
after a pause. TLS is always used, and checked, except for the loopback and for registries that the operator calls
insecure: there, as Docker does, TLS is tried unchecked, and plain HTTP when there is none. It does not move layers: the
Docker Engine does that.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import ssl
from types import TracebackType
from typing import Any, Final
from urllib.request import parse_http_list, parse_keqv_list

import httpx
from pydantic import BaseModel, ConfigDict

from prefect_launch.errors import RegistryError
from prefect_launch.registries.base import (
    TOKEN_USER,
    Credentials,
    ImageReference,
    Registry,
    is_digest,
    is_loopback,
    parse_reference,
)
from prefect_launch.registries.keychain import Keychain

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


# How a registry asks who is there, and how one gets the token that it wants.

_CLIENT_ID: Final = "prefect-launch"


class Challenge(BaseModel):
    """What a registry wants to see."""

    model_config = ConfigDict(frozen=True)

    scheme: str
    realm: str = ""
    service: str | None = None
    scope: str | None = None

    @classmethod
    def of(cls, answer: httpx.Response) -> Challenge | None:
        """Read it from an answer; None when it has none that can be met. `Bearer` goes before `Basic`."""
        found = [cls._read(header) for header in answer.headers.get_list("www-authenticate")]
        known = {one.scheme: one for one in reversed(found)}
        return known.get("bearer") or known.get("basic")

    @classmethod
    def _read(cls, header: str) -> Challenge:
        scheme, _, rest = header.strip().partition(" ")
        parts = [part for part in parse_http_list(rest) if "=" in part]
        values: dict[str, Any] = {key.lower(): value for key, value in parse_keqv_list(parts).items()}
        return cls(
            scheme=scheme.lower(), **{key: values[key] for key in ("realm", "service", "scope") if key in values}
        )


async def authorization(
    http: httpx.AsyncClient, challenge: Challenge, credentials: Credentials | None, *, host: str, is_secure: bool
) -> str | None:
    """Return what the `Authorization` header must hold; None when there is nothing to show.

    Args:
        http: what the realm is asked with.
        challenge: the registry's.
        credentials: who to be; without them a token for anybody is asked for.
        host: the registry's address, for messages.
        is_secure: whether the registry speaks TLS.

    Raises:
        RegistryError: when the realm gives no token.
        httpx.TransportError: when it does not answer.
    """
    if challenge.scheme == "basic":
        return _basic(credentials) if credentials else None
    if not httpx.URL(challenge.realm).is_absolute_url or (is_secure and not challenge.realm.startswith("https://")):
        raise RegistryError(
            f"The registry {host!r} sends clients to {challenge.realm!r} for a token, which has no TLS: no password is"
            " sent there. Correct the registry's settings."
        )
    answer = await _ask_for_token(http, challenge, credentials)
    if answer.status_code in (401, 403):
        return None
    if answer.status_code >= 500:
        raise httpx.RemoteProtocolError(f"{challenge.realm} answered HTTP {answer.status_code}")
    token = _token_in(answer)
    if token is None:
        raise RegistryError(
            f"{challenge.realm!r}, where the registry {host!r} sends clients for a token, answered HTTP"
            f" {answer.status_code} without one. Check that {host!r} is a registry."
        )
    return f"Bearer {token}"


async def _ask_for_token(
    http: httpx.AsyncClient, challenge: Challenge, credentials: Credentials | None
) -> httpx.Response:
    asked = {"service": challenge.service, "scope": challenge.scope}
    query = {key: value for key, value in asked.items() if value}
    if credentials and credentials.user == TOKEN_USER:
        form = {"grant_type": "refresh_token", "client_id": _CLIENT_ID, "refresh_token": credentials.password}
        return await http.post(challenge.realm, data={**form, **query})
    headers = {"Authorization": _basic(credentials)} if credentials else {}
    return await http.get(challenge.realm, params=query, headers=headers)


def _token_in(answer: httpx.Response) -> str | None:
    try:
        found = answer.json()
    except ValueError:
        return None
    token = (found.get("token") or found.get("access_token")) if isinstance(found, dict) else None
    return token if isinstance(token, str) else None


def _basic(credentials: Credentials) -> str:
    return f"Basic {base64.b64encode(':'.join(credentials).encode()).decode()}"


# All registries that can be reached over HTTP, as one `Registry`: each is found by the image's own name.


class RemoteRegistries(Registry):
    """The registries of the images' names.

    Args:
        keychain: who to be at each, and which may do without TLS.
        pauses: seconds before each further try of a question that failed for the registry's sake.
    """

    def __init__(self, keychain: Keychain | None = None, *, pauses: tuple[float, ...] = PAUSES_SECONDS) -> None:
        self._keychain = keychain or Keychain()
        self._pauses = pauses

    async def digest_of(self, reference: str) -> str | None:
        image = parse_reference(reference)
        client = RegistryClient(
            image.host,
            api_host=image.api_host,
            credentials=await self._keychain.credentials_for(image.host),
            is_insecure=self._keychain.is_insecure(image.host),
            advice=self._keychain.advice(image.host),
            pauses=self._pauses,
        )
        async with client:
            return await client.digest_of(image)

    async def credentials_for(self, reference: str) -> Credentials | None:
        return await self._keychain.credentials_for(parse_reference(reference).host)
