"""Registry settings: the operator's credentials for each registry, and which may do without TLS.

In a config file:

    registries:
      "registry.example:5000": {credentials: my-registry, insecure: true}

`credentials` is the name of a `DockerRegistryCredentials` block on the Prefect server.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_launch.errors import AgentConfigError, unknown_name
from prefect_launch.registries.base import normal_host

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
