"""Credentials for registries: the operator's settings, and a keychain that reads them from three places.

The places are the block that the operator names, the cloud that the registry belongs to, and the login of this
machine's Docker. In a config file:

    registries:
      "registry.example:5000": {credentials: my-registry, insecure: true}

`credentials` is the name of a `DockerRegistryCredentials` block on the Prefect server. It is read by its type and name,
which every server knows, so an agent needs no prefect-docker. The `docker` package reads `~/.docker/config.json` as
Docker does (`DOCKER_CONFIG`, `auths`, `credHelpers`, `credsStore`). Credentials are kept for a minute, in memory.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import anyio
from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_launch.clouds.accounts import Clouds
from prefect_launch.errors import AgentConfigError, RegistryError, unknown_name
from prefect_launch.registries.base import TOKEN_USER, Credentials, normal_host
from prefect_launch.registries.clouds import cloud_of
from prefect_launch.server.blocks import DOCKER_REGISTRY, read_block

_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9.\-]*[a-z0-9])?(:[0-9]{1,5})?\Z")


class RegistrySettings(BaseModel):
    """The settings of one registry."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    credentials: str | None = None
    insecure: bool = False


def read_registries(given: object) -> dict[str, RegistrySettings]:
    """Read the setting `registries`.

    Returns:
        The settings of each, by its address as image names have it.

    Raises:
        AgentConfigError: naming the registry, the value and the rule.
    """
    if not isinstance(given, Mapping):
        raise AgentConfigError(
            f"'registries' must map a registry's address to its settings, not {given!r}. Write"
            ' {"registry.example:5000": {credentials: BLOCK}}.'
        )
    return {_host(address): _settings(address, settings) for address, settings in given.items()}


def _host(address: object) -> str:
    host = normal_host(address) if isinstance(address, str) else ""
    if not _HOST.match(host) or not ("." in host or ":" in host or host == "localhost"):
        raise AgentConfigError(
            f"The registry {address!r} in 'registries' is no address. Write its host and port, such as"
            " 'registry.example:5000'."
        )
    return host


def _settings(address: object, given: Any) -> RegistrySettings:
    if isinstance(given, RegistrySettings):
        return given
    if not isinstance(given, Mapping):
        raise AgentConfigError(f"The settings of the registry {address!r} must be a mapping, not {given!r}.")
    for key in given:
        if key not in RegistrySettings.model_fields:
            known = unknown_name("registry setting", key, RegistrySettings.model_fields, where=f" of {address!r}")
            raise AgentConfigError(str(known))
    try:
        return RegistrySettings.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        raise AgentConfigError(
            f"The setting {first['loc'][0]!r} of the registry {address!r} is wrong ({first['input']!r}):"
            f" {first['msg']}."
        ) from None


#: A changed password is read after it. Far shorter than what is left of any cloud's token.
_KEEP_SECONDS: Final = 60.0
#: A credential helper that waits for input never ends.
_HELPER_SECONDS: Final = 20.0

ReadCredentials = Callable[[str, str], Awaitable[Credentials]]


async def read_credentials(name: str, host: str) -> Credentials:
    """Read the credentials for one registry from a block.

    Args:
        name: name of the block; `docker-registry-credentials/NAME` is accepted too.
        host: the registry's address. A block for another registry is refused: its password must not go there.

    Raises:
        AgentConfigError: when there is no such block, it is incomplete, or it is for another registry.
    """
    data = await read_block(DOCKER_REGISTRY, name)
    user, password = (str(data.get(key) or "") for key in ("username", "password"))
    if not user or not password:
        raise AgentConfigError(f"The DockerRegistryCredentials block {name!r} has no username or no password.")
    meant = normal_host(str(data.get("registry_url") or ""))
    if meant and meant != host:
        raise AgentConfigError(
            f"The DockerRegistryCredentials block {name!r} is for the registry {meant!r}, but the config names it for"
            f" {host!r}. Correct its registry_url, or name another block."
        )
    return Credentials(user, password)


async def read_docker_config(host: str) -> Credentials | None:
    """Return the credentials that `docker login` has left on this machine for a registry; None when there are none.

    Raises:
        AgentConfigError: when the file is broken, or a helper is missing, fails or hangs.
    """
    # It takes a tenth of a second to load, which an agent of processes need not spend.
    import docker.credentials
    import docker.errors

    try:
        with anyio.fail_after(_HELPER_SECONDS):
            found = await anyio.to_thread.run_sync(_resolve, host, abandon_on_cancel=True)
    except TimeoutError:
        raise AgentConfigError(
            f"The credential helper of this machine's Docker gave no answer for {host!r} within {_HELPER_SECONDS:g} s."
            f" Try 'docker login {host}', or name a block under 'registries' in the config."
        ) from None
    except (docker.errors.DockerException, docker.credentials.StoreError, ValueError) as error:
        raise AgentConfigError(
            f"This machine's Docker has no readable credentials for {host!r} ({error}). Correct ~/.docker/config.json,"
            f" or run 'docker login {host}'."
        ) from error
    values = {key.lower(): value for key, value in found.items()}
    if values.get("identitytoken"):
        return Credentials(TOKEN_USER, values["identitytoken"])
    if values.get("username") and values.get("password"):
        return Credentials(values["username"], values["password"])
    return None


def _resolve(host: str) -> dict[str, Any]:
    import docker.auth

    return docker.auth.resolve_authconfig(docker.auth.load_config(), host) or {}


class Keychain:
    """Credentials for registries.

    Args:
        settings: the operator's, by a registry's address.
        clouds: who the agent is in the clouds.
        read_block: reads the credentials for a registry from a block.
    """

    def __init__(
        self,
        settings: Mapping[str, RegistrySettings] | None = None,
        clouds: Clouds | None = None,
        *,
        read_block: ReadCredentials = read_credentials,
    ) -> None:
        self._settings = dict(settings or {})
        self._clouds = clouds or Clouds()
        self._read_block = read_block
        self._kept: dict[str, tuple[float, Credentials | None]] = {}

    async def credentials_for(self, host: str) -> Credentials | None:
        """Return the credentials for a registry; None: anonymous access.

        Raises:
            AgentConfigError: when the configured credentials cannot be read.
            RegistryError: when its cloud refuses to give credentials.
        """
        read_at, kept = self._kept.get(host, (-_KEEP_SECONDS, None))
        if time.monotonic() - read_at < _KEEP_SECONDS:
            return kept
        found = await self._find(host)
        self._kept[host] = (time.monotonic(), found)
        return found

    def is_insecure(self, host: str) -> bool:
        """Whether the operator lets a registry do without TLS."""
        return self._settings.get(host, RegistrySettings()).insecure

    def advice(self, host: str) -> str:
        """Return how to configure credentials for a registry, as the next step of a message."""
        cloud = cloud_of(host)
        own = ""
        if cloud is not None:
            extra = "" if cloud.is_installed else f" and pip install 'prefect-launch[{cloud.extra}]'"
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
        if cloud is None or not cloud.is_installed:
            return await read_docker_config(host)
        try:
            return await cloud.credentials_for(host, self._clouds) or await read_docker_config(host)
        except RegistryError:
            logged_in = await read_docker_config(host)
            if logged_in is None:
                raise
            return logged_in
