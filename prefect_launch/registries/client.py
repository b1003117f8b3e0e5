"""Client of a registry's HTTP API, as the OCI distribution specification has it: which digest an image has there.

Every request has a time limit. What fails on the registry's side (no answer, 5xx, too many requests) is asked again
after a pause. TLS is used and checked, except for the loopback and for registries that the operator calls insecure:
there, as Docker does, TLS is tried unchecked, and plain HTTP when there is none. The client does not move layers; the
Docker Engine does.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import random
import ssl
from typing import Any, Final, NamedTuple
from urllib.request import parse_http_list, parse_keqv_list

import httpx

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

#: For one request; a registry with a slow disk takes seconds.
_REQUEST_SECONDS: Final = 15.0
_CONNECT_SECONDS: Final = 5.0
#: Before each further try. A registry that restarts is back within these.
PAUSES_SECONDS: Final = (0.3, 1.0, 3.0)
#: A registry that asks for a longer pause is asked again after this one.
_LONGEST_PAUSE_SECONDS: Final = 10.0
_TOO_MANY: Final = 429
_CLIENT_ID: Final = "prefect-launch"

#: All kinds of manifests. A registry converts an image, to another digest, for a client that does not name its kind.
MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)


class RemoteRegistries(Registry):
    """All registries that can be reached over HTTP, each found by the image's own name."""

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
        return await client.digest_of(image)

    async def credentials_for(self, reference: str) -> Credentials | None:
        return await self._keychain.credentials_for(parse_reference(reference).host)

    def is_insecure(self, host: str) -> bool:
        return super().is_insecure(host) or self._keychain.is_insecure(host)


class RegistryClient:
    """Asks one registry about one image.

    Args:
        host: its address as image names have it, with its port.
        api_host: where its API answers, when that is another address.
        credentials: the credentials for it; None: anonymous access.
        is_insecure: whether it may have no TLS, or a self-signed certificate.
        advice: how to configure credentials for it, as the next step of a message.
        pauses: seconds before each further try of a request that failed on the registry's side.
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
        self._authorization: str | None = None
        self._http = httpx.AsyncClient(
            verify=not is_lax,
            follow_redirects=True,
            timeout=httpx.Timeout(_REQUEST_SECONDS, connect=_CONNECT_SECONDS),
            headers={"User-Agent": "prefect-launch"},
        )

    async def digest_of(self, image: ImageReference) -> str | None:
        """Return the digest that an image has now; None when there is no such image.

        Raises:
            RegistryError: when the registry fails, does not answer, or refuses to tell.
        """
        async with self._http:
            return await self._digest_of(image)

    async def _digest_of(self, image: ImageReference) -> str | None:
        answer = await self._ask("HEAD", image)
        if answer.status_code == 200 and is_digest(answer.headers.get("docker-content-digest")):
            return str(answer.headers["docker-content-digest"])
        if answer.status_code in (200, 405):  # The header is only recommended to registries, and some do not know HEAD.
            answer = await self._ask("GET", image)
        if answer.status_code == 404:
            return None
        if answer.status_code in (401, 403):
            raise RegistryError(self._refusal(answer.status_code, image))
        if answer.status_code != 200:
            raise RegistryError(
                f"The registry {self._host!r} answered HTTP {answer.status_code} when it was asked for"
                f" {image.repository}:{image.version}. Check that {self._host!r} is a registry."
            )
        kind = answer.headers.get("content-type", "").partition(";")[0]
        if kind not in MANIFEST_TYPES:
            raise RegistryError(
                f"What answers at {self._host!r} is no registry that prefect-launch knows: where an image's manifest"
                f" was asked for, it gave {kind or 'nothing'!r}. Check the registry's address."
            )
        named = answer.headers.get("docker-content-digest")
        return str(named) if is_digest(named) else f"sha256:{hashlib.sha256(answer.content).hexdigest()}"

    async def _ask(self, method: str, image: ImageReference) -> httpx.Response:
        """Ask for a manifest until there is an answer that another try would not change."""
        answer: httpx.Response | None = None
        fault = ""
        for pause in (*self._pauses, None):
            try:
                answer = await self._authorized(method, image)
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

    async def _authorized(self, method: str, image: ImageReference) -> httpx.Response:
        """Ask, and once more with the authorization that the registry demands."""
        path = f"/v2/{image.repository}/manifests/{image.version}"
        answer = await self._send(method, path)
        challenge = _challenge_in(answer) if answer.status_code == 401 else None
        if challenge is None:
            return answer
        authorization = await self._authorization_for(challenge, is_secure=answer.url.scheme == "https")
        if authorization is None or authorization == self._authorization:
            return answer
        self._authorization = authorization
        return await self._send(method, path)

    async def _send(self, method: str, path: str) -> httpx.Response:
        headers = {"Accept": ", ".join(MANIFEST_TYPES)}
        if self._authorization is not None:
            headers["Authorization"] = self._authorization
        while True:
            try:
                return await self._http.request(method, self._bases[0] + path, headers=headers)
            except (httpx.ConnectError, httpx.RemoteProtocolError) as error:
                if len(self._bases) == 1 or not _has_no_tls(error):
                    raise
                del self._bases[0]

    async def _authorization_for(self, challenge: _Challenge, *, is_secure: bool) -> str | None:
        """Return the value of the `Authorization` header; None when there is nothing to show.

        The user and password of the registry are sent to the realm that it names, so a realm without TLS is refused
        when the registry itself has TLS.
        """
        realm = challenge.realm
        if challenge.scheme == "basic":
            return _basic(self._credentials) if self._credentials else None
        if not httpx.URL(realm).is_absolute_url or (is_secure and not realm.startswith("https://")):
            raise RegistryError(
                f"The registry {self._host!r} sends clients to {realm!r} for a token, which has no TLS: no password is"
                " sent there. Correct the registry's settings."
            )
        answer = await self._ask_for_token(challenge)
        if answer.status_code in (401, 403):
            return None
        if answer.status_code >= 500:
            raise httpx.RemoteProtocolError(f"{realm} answered HTTP {answer.status_code}")
        token = _token_in(answer)
        if token is None:
            raise RegistryError(
                f"{realm!r}, where the registry {self._host!r} sends clients for a token, answered HTTP"
                f" {answer.status_code} without one. Check that {self._host!r} is a registry."
            )
        return f"Bearer {token}"

    async def _ask_for_token(self, challenge: _Challenge) -> httpx.Response:
        credentials = self._credentials
        if credentials and credentials.user == TOKEN_USER:
            form = {"grant_type": "refresh_token", "client_id": _CLIENT_ID, "refresh_token": credentials.password}
            return await self._http.post(challenge.realm, data={**form, **challenge.query})
        headers = {"Authorization": _basic(credentials)} if credentials else {}
        return await self._http.get(challenge.realm, params=challenge.query, headers=headers)

    def _refusal(self, status: int, image: ImageReference) -> str:
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


class _Challenge(NamedTuple):
    """A `WWW-Authenticate` header: `Basic …`, or `Bearer` with the realm that gives tokens, and what to ask it with."""

    scheme: str
    realm: str
    query: dict[str, str]


def _challenge_in(answer: httpx.Response) -> _Challenge | None:
    """Return the challenge of an answer, `Bearer` before `Basic`; None when it has none of them."""
    found: dict[str, _Challenge] = {}
    for header in answer.headers.get_list("www-authenticate"):
        scheme, _, rest = header.strip().partition(" ")
        parts: dict[str, Any] = parse_keqv_list([part for part in parse_http_list(rest) if "=" in part])
        values = {key.lower(): str(value) for key, value in parts.items()}
        query = {key: values[key] for key in ("service", "scope") if values.get(key)}
        found.setdefault(scheme.lower(), _Challenge(scheme.lower(), values.get("realm", ""), query))
    return found.get("bearer") or found.get("basic")


def _token_in(answer: httpx.Response) -> str | None:
    try:
        found = answer.json()
    except ValueError:
        return None
    token = (found.get("token") or found.get("access_token")) if isinstance(found, dict) else None
    return token if isinstance(token, str) else None


def _basic(credentials: Credentials) -> str:
    return f"Basic {base64.b64encode(':'.join(credentials).encode()).decode()}"


def _pause(answer: httpx.Response | None, pause: float) -> float:
    """Return how long to wait: what the registry asks for, within reason, or else the pause, with some jitter."""
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
