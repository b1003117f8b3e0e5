"""Credentials for Azure Container Registry, by this machine's Azure identity. Needs azure-identity:
`prefect-launch[acr]`.

Azure's own token is changed at the registry into one that the registry takes as a password.
"""

from __future__ import annotations

from typing import Final

import anyio
import httpx
from azure.core.exceptions import ClientAuthenticationError
from azure.identity import DefaultAzureCredential
from prefect.logging import get_logger

from prefect_launch.errors import RegistryError
from prefect_launch.registries.base import Credentials

_logger = get_logger("launch.registries")

#: The user that Azure's registries expect beside a token.
_USER: Final = "00000000-0000-0000-0000-000000000000"
_SCOPE: Final = "https://management.azure.com/.default"
_SECONDS: Final = 15.0


async def credentials_of(host: str) -> Credentials | None:
    """Return credentials for a registry, good for about three hours; None when this machine is nobody in Azure.

    Raises:
        RegistryError: when the registry does not take that identity.
    """
    try:
        token = await anyio.to_thread.run_sync(_token, abandon_on_cancel=True)
    except ClientAuthenticationError as error:
        # The client says it in the same way whether there is no identity or a wrong one; anybody may still read some
        # registries.
        _logger.warning("This machine has no Azure identity for the registry %s: %s", host, error.message)
        return None
    return await exchange(host, token)


async def exchange(host: str, token: str) -> Credentials:
    """Change Azure's own token for one that a registry takes as a password.

    Raises:
        RegistryError: when the registry does not take it.
    """
    form = {"grant_type": "access_token", "service": host, "access_token": token}
    try:
        async with httpx.AsyncClient(timeout=_SECONDS) as http:
            answer = await http.post(f"https://{host}/oauth2/exchange", data=form)
        answer.raise_for_status()
        return Credentials(_USER, str(answer.json()["refresh_token"]))
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise RegistryError(
            f"The registry {host!r} does not take this machine's Azure identity ({error}). It needs the role AcrPull,"
            " and AcrPush to push."
        ) from error


def _token() -> str:
    return str(DefaultAzureCredential().get_token(_SCOPE).token)
