"""How a registry asks who is there, and how one gets the token that it wants.

A registry answers 401 with `WWW-Authenticate: Basic …`, or `Bearer realm="…",service="…",scope="…"`: then a token is
asked for at the realm. What is sent there is the user and password of that registry, so a realm without TLS is refused
when the registry has it.
"""

from __future__ import annotations

import base64
from typing import Any, Final
from urllib.request import parse_http_list, parse_keqv_list

import httpx
from pydantic import BaseModel, ConfigDict

from prefect_launch.errors import RegistryError
from prefect_launch.registries.base import TOKEN_USER, Credentials

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
