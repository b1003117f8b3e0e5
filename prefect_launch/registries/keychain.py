"""Who to be at which registry, from three places: what the operator named, the cloud that the registry belongs to, and
what this machine's Docker is logged in to.

What was read is kept for some minutes, in memory only. Nothing is asked of a registry here.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from prefect_launch.errors import RegistryError
from prefect_launch.registries.base import Credentials
from prefect_launch.registries.block import read_block
from prefect_launch.registries.clouds import cloud_of
from prefect_launch.registries.settings import RegistrySettings

#: Shorter than any cloud's token lives; a password that was changed is read anew after it.
_KEEP_SECONDS: Final = 300.0

ReadBlock = Callable[[str, str], Awaitable[Credentials]]


class Keychain:
    """Credentials for registries.

    Args:
        settings: what the operator says, by the registry's address.
        read_block: reads the block of that name for a registry.
    """

    def __init__(
        self, settings: Mapping[str, RegistrySettings] | None = None, *, read_block: ReadBlock = read_block
    ) -> None:
        self._settings = dict(settings or {})
        self._read_block = read_block
        self._kept: dict[str, tuple[float, Credentials | None]] = {}

    async def credentials_for(self, host: str) -> Credentials | None:
        """Return who to be at a registry; None: nobody in particular.

        Args:
            host: the registry's address as images are named by it.

        Raises:
            AgentConfigError: when what is configured for it cannot be had.
            RegistryError: when its cloud refuses to give credentials.
        """
        read_at, kept = self._kept.get(host, (-_KEEP_SECONDS, None))
        if time.monotonic() - read_at < _KEEP_SECONDS:
            return kept
        found = await self._find(host)
        self._kept[host] = (time.monotonic(), found)
        return found

    def is_insecure(self, host: str) -> bool:
        """Whether the operator says that a registry may do without TLS."""
        return self._settings.get(host, RegistrySettings()).insecure

    def advice(self, host: str) -> str:
        """Return how credentials for a registry are made known, as the next step of a message."""
        cloud = cloud_of(host)
        own = ""
        if cloud is not None:
            extra = "" if cloud.getter() else f" and 'pip install prefect-launch[{cloud.extra}]'"
            own = f" Or let this machine have an identity that {cloud.title} knows{extra}."
        return (
            f"Name a DockerRegistryCredentials block under 'registries' in the config"
            f" ({host!r}: {{credentials: BLOCK}}), or run 'docker login {host}' as this user.{own}"
        )

    async def _find(self, host: str) -> Credentials | None:
        block = self._settings.get(host, RegistrySettings()).credentials
        if block is not None:
            return await self._read_block(block, host)
        cloud = cloud_of(host)
        getter = cloud.getter() if cloud else None
        if getter is None:
            return await _logged_in(host)
        try:
            return await getter(host) or await _logged_in(host)
        except RegistryError:
            logged_in = await _logged_in(host)
            if logged_in is None:
                raise
            return logged_in


async def _logged_in(host: str) -> Credentials | None:
    # The package behind it takes a tenth of a second to load, which an agent of processes need not spend.
    from prefect_launch.registries.docker_config import read_docker_config

    return await read_docker_config(host)
