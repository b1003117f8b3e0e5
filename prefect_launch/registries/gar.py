"""Credentials for Google Artifact Registry, by this machine's Google identity. Needs google-auth:
`prefect-launch[gar]`."""

from __future__ import annotations

from typing import Any, Final

import anyio
import google.auth
import google.auth.transport.requests
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError

from prefect_launch.errors import RegistryError, clause
from prefect_launch.registries.base import Credentials

_USER: Final = "oauth2accesstoken"
_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"


async def credentials_of(host: str) -> Credentials | None:
    """Return credentials for a registry, good for about an hour; None when this machine is nobody at Google.

    Raises:
        RegistryError: when Google refuses to give them.
    """
    return await anyio.to_thread.run_sync(_credentials_of, host, abandon_on_cancel=True)


def _credentials_of(host: str) -> Credentials | None:
    try:
        identity: Any = google.auth.default(scopes=[_SCOPE])[0]
        request: Any = google.auth.transport.requests.Request
        identity.refresh(request())
    except DefaultCredentialsError:
        return None
    except GoogleAuthError as error:
        raise RegistryError(
            f"Google gives no credentials for the registry {host!r}: {clause(error)}. Run 'gcloud auth"
            " application-default login', or set GOOGLE_APPLICATION_CREDENTIALS."
        ) from error
    return Credentials(_USER, str(identity.token))
