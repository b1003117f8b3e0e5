"""Google Cloud account: access tokens of the identity that the agent's operator chose.

The identity is that of a `GcpCredentials` block, or what Google's own client finds on the machine (Application Default
Credentials); or a service account that this one impersonates. A token is kept until shortly before it expires. Its
successor is got with the block as it is then.
"""

from __future__ import annotations

import json
import time
from datetime import datetime, timezone
from functools import partial
from typing import Any, Final, NamedTuple

import anyio

from prefect_launch.clouds.settings import GcpSettings
from prefect_launch.errors import AgentConfigError, NoIdentityError, UnreachableError, clause
from prefect_launch.server.blocks import GCP, ReadBlock, read_block

_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"
#: Google's own clients renew a token that much before it expires; its metadata server gives a new one by then.
_RENEW_SECONDS: Final = 225.0
_REQUEST_SECONDS: Final = 15.0
#: Google's client asks again what fails.
_ANSWER_SECONDS: Final = 60.0
_NEXT_STEP: Final = (
    "Correct 'clouds.gcp' in the agent's config, its block, or this machine's login ('gcloud auth application-default"
    " login', GOOGLE_APPLICATION_CREDENTIALS)"
)


class _Token(NamedTuple):
    """An access token, and whose it is. Its text shows no token."""

    token: str
    good_until: float
    identity: str
    project: str | None

    def __repr__(self) -> str:
        return f"_Token(identity={self.identity!r})"


class GcpAccount:
    """The agent's account at Google Cloud.

    Args:
        settings: the operator's.
        read_block: reads a block of the Prefect server.
    """

    def __init__(self, settings: GcpSettings | None = None, *, read_block: ReadBlock = read_block) -> None:
        self.settings = settings or GcpSettings()
        self._read_block = read_block
        self._lock = anyio.Lock()
        self._kept: _Token | None = None

    async def token(self) -> str:
        """Return an access token for Google's APIs, good for some minutes at least.

        Raises:
            NoIdentityError: when this machine is nobody at Google.
            AgentConfigError: when the identity is refused, or its block is wrong.
            UnreachableError: when Google gives no answer.
        """
        return (await self._current()).token

    def forget_token(self) -> None:
        """Let the next token be another one, as after a login: Google takes the kept one no more."""
        self._kept = None

    async def identity(self) -> str:
        """Return who the agent is at Google Cloud.

        Raises:
            LaunchError: as `token` does.
        """
        return (await self._current()).identity

    async def project(self) -> str:
        """Return the id of the account's project.

        Raises:
            LaunchError: as `token` does, or when nothing names a project.
        """
        found = self.settings.project or (await self._current()).project
        if not found:
            raise AgentConfigError(
                "Google Cloud needs a project, and nothing names one. Set clouds.gcp.project in the agent's config."
            )
        return found

    @property
    def region(self) -> str:
        """The account's region.

        Raises:
            AgentConfigError: when the config names none.
        """
        if self.settings.region is None:
            raise AgentConfigError(
                "Google Cloud needs a region, and the agent's config names none. Set clouds.gcp.region, such as"
                " europe-west4."
            )
        return self.settings.region

    async def _current(self) -> _Token:
        async with self._lock:
            if self._kept is None or time.monotonic() >= self._kept.good_until:
                self._kept = await self._get()
            return self._kept

    async def _get(self) -> _Token:
        name = self.settings.credentials
        block = {} if name is None else await self._read_block(GCP, name)
        try:
            with anyio.fail_after(_ANSWER_SECONDS):
                return await anyio.to_thread.run_sync(_token_of, self.settings, block, abandon_on_cancel=True)
        except TimeoutError:
            raise UnreachableError(
                f"Google has given no access token within {_ANSWER_SECONDS:g} s. Look at the network."
            ) from None


def _token_of(settings: GcpSettings, block: dict[str, Any]) -> _Token:
    """Get a token; blocks."""
    try:
        from google.auth import exceptions
        from google.auth.transport.requests import Request
        from google.oauth2.credentials import Credentials as UserLogin
    except ImportError:
        raise AgentConfigError(
            "Google Cloud needs its client google-auth, which is not installed here. Install it with: pip install"
            " 'prefect-launch[vertex]'."
        ) from None
    try:
        source, project = _source(settings, block)
        found = source if settings.service_account is None else _impersonated(source, settings.service_account)
        found.refresh(partial(Request(), timeout=_REQUEST_SECONDS))
    except exceptions.DefaultCredentialsError as error:
        # Only somebody can impersonate: to go on without an identity is not what the config asks for.
        kind = AgentConfigError if settings.service_account else NoIdentityError
        raise kind(
            f"This machine is nobody at Google Cloud ({clause(error)}). Set clouds.gcp in the agent's config (a"
            " GcpCredentials block), or run 'gcloud auth application-default login'."
        ) from error
    except exceptions.GoogleAuthError as error:
        said = clause(error.args[0] if error.args else error)
        if isinstance(error, exceptions.TransportError) or error.retryable:
            raise UnreachableError(
                f"Google gives no access token: {said}. Look at the network, and try later."
            ) from error
        if settings.service_account and "Unable to acquire impersonated" in said:
            raise AgentConfigError(
                f"Google does not let the agent be {settings.service_account!r}: {said}. Give its own identity the role"
                " roles/iam.serviceAccountTokenCreator on that service account."
            ) from error
        if isinstance(error, exceptions.RefreshError) and isinstance(source, UserLogin):
            raise UnreachableError(
                f"The agent's Google login has expired: {said}. Log in again on the agent's machine ('gcloud auth"
                " application-default login')."
            ) from error
        raise AgentConfigError(f"Google refuses the agent's identity: {said}. {_NEXT_STEP}.") from error
    who = settings.service_account or getattr(found, "service_account_email", None) or getattr(found, "account", None)
    return _Token(
        token=str(found.token),
        good_until=time.monotonic() + _seconds_until(found.expiry) - _RENEW_SECONDS,
        identity=str(who or "the user who is logged in"),
        project=block.get("project") or project,
    )


def _seconds_until(expiry: datetime | None) -> float:
    """Return how long a token is good; Google's client gives its end in UTC, without saying so."""
    return 0.0 if expiry is None else (expiry.replace(tzinfo=timezone.utc) - datetime.now(timezone.utc)).total_seconds()


def _source(settings: GcpSettings, block: dict[str, Any]) -> tuple[Any, str | None]:
    """Return the credentials that the settings name, and their project."""
    import google.auth
    from google.oauth2 import service_account

    keys: Any = service_account.Credentials
    info, file = block.get("service_account_info"), block.get("service_account_file")
    if not info and not file:
        found, project = google.auth.default(scopes=[_SCOPE])
        return found, project
    try:
        if info:
            made = keys.from_service_account_info(json.loads(info) if isinstance(info, str) else info)
        else:
            made = keys.from_service_account_file(str(file))
    except (ValueError, OSError) as error:
        # What a library says of a key that it cannot read may quote the key.
        raise AgentConfigError(
            f"The GcpCredentials block {settings.credentials!r} holds no service account's key that can be read"
            f" ({type(error).__name__}). Put the whole JSON of the key into service_account_info."
        ) from None
    return made.with_scopes([_SCOPE]), made.project_id


def _impersonated(source: Any, service_account: str) -> Any:
    from google.auth import impersonated_credentials

    make: Any = impersonated_credentials.Credentials
    return make(source, service_account, [_SCOPE])
