"""Credentials that stand in a `DockerRegistryCredentials` block of the Prefect server.

The block's type is prefect-docker's, and every Prefect server knows it from the start; it is read by its type and name,
so that an agent needs no package of its own for two texts. It is read when it is needed, and never kept on disk.
"""

from __future__ import annotations

from typing import Any, Final

from prefect_launch.errors import AgentConfigError
from prefect_launch.registries.base import Credentials
from prefect_launch.registries.reference import normal_host

BLOCK_TYPE: Final = "docker-registry-credentials"


async def read_block(name: str, host: str) -> Credentials:
    """Read the credentials for one registry.

    Args:
        name: of the block; `docker-registry-credentials/NAME` is taken too.
        host: the registry's address. A block for another registry is refused: its password is not to go there.

    Raises:
        AgentConfigError: when there is no such block, it is not complete, or it is for another registry.
    """
    short = name.removeprefix(f"{BLOCK_TYPE}/")
    data = await _load(short)
    user, password = (_plain(data.get(key)) for key in ("username", "password"))
    if not user or not password:
        raise AgentConfigError(f"The DockerRegistryCredentials block {short!r} has no username or no password.")
    meant = normal_host(str(data.get("registry_url") or ""))
    if meant and meant != host:
        raise AgentConfigError(
            f"The DockerRegistryCredentials block {short!r} is for the registry {meant!r}, but the config names it for"
            f" {host!r}. Correct its registry_url, or name another block."
        )
    return Credentials(user, password)


async def _load(name: str) -> dict[str, Any]:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    try:
        async with get_client() as client:
            found = await client.read_block_document_by_name(name, BLOCK_TYPE, include_secrets=True)
    except ObjectNotFound:
        raise AgentConfigError(
            f"There is no DockerRegistryCredentials block {name!r} on the Prefect server. Make it in the UI (Blocks,"
            " Docker Registry Credentials), or correct the config."
        ) from None
    return dict(found.data)


def _plain(value: Any) -> str:
    return str(value.get_secret_value() if hasattr(value, "get_secret_value") else value or "")
