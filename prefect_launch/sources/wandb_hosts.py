"""W&B servers that this machine's operator lets it ask, with their keys, and the addresses of runs on them.

The operator lists them in `~/.config/prefect-launch/wandb.yaml`, and no submitter does: a key is sent to a listed host
alone.

    hosts:
      wandb.ai: wandb-key                # a Secret block with an API key
      wandb.example.com:                 # the key is in the variable WANDB_API_KEY
      http://localhost:8080: local-key   # no TLS, because the list says so
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from prefect_launch.errors import AgentConfigError, LaunchError
from prefect_launch.server.secrets import ReadSecret
from prefect_launch.sources.machine_settings import read_machine_settings

WANDB_CONFIG_FILE: Final = Path("~/.config/prefect-launch/wandb.yaml")
WANDB_CONFIG_VARIABLE: Final = "PREFECT_LAUNCH_WANDB_CONFIG"
KEY_VARIABLE: Final = "WANDB_API_KEY"

_HOST: Final = re.compile(r"(?:http://)?[a-z0-9](?:[a-z0-9.\-]*[a-z0-9])?(?::[0-9]{1,5})?\Z")
_RUN: Final = re.compile(r"/(?P<entity>[^/]+)/(?P<project>[^/]+)/runs/(?P<run_id>[^/]+)(?:/|\Z)")
#: W&B's own service has its pages and its API at two hosts.
_PAGES: Final = "wandb.ai"
_API: Final = "api.wandb.ai"


class WandbSettings(BaseModel):
    """The W&B servers that this machine may ask."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hosts: dict[str, str | None] = Field(
        default_factory=dict, description="By host or host:port, the Secret block with its key; None: WANDB_API_KEY."
    )

    @field_validator("hosts")
    @classmethod
    def _validate_hosts(cls, value: dict[str, str | None]) -> dict[str, str | None]:
        for host in value:
            if not _HOST.match(host.lower()):
                raise ValueError(f"{host!r} must be a host or host:port, such as 'wandb.ai', or http://host:port")
        return {_normal(host.lower()): block for host, block in value.items()}

    def check(self, host: str) -> None:
        """Refuse a host that is not listed.

        Raises:
            AgentConfigError: with the next step.
        """
        if host not in self.hosts:
            listed = f"lists {', '.join(self.hosts)}" if self.hosts else "lists none"
            raise AgentConfigError(
                f"The W&B server {host!r} is not one that this machine may ask: {WANDB_CONFIG_FILE} {listed}. If you"
                f" trust it with your key, add it there: 'hosts: {{{host}: SECRET-BLOCK}}', or without a block to use"
                f" {KEY_VARIABLE}."
            )

    async def key_of(self, host: str, read: ReadSecret) -> SecretStr:
        """Return the key of a listed host.

        Raises:
            AgentConfigError: when there is none, or it is no key.
        """
        self.check(host)
        block = self.hosts[host]
        where = f"the Secret block {block!r}" if block else f"the variable {KEY_VARIABLE}"
        try:
            key = (await read(block) if block else os.environ.get(KEY_VARIABLE, "")).strip()
        except LaunchError as error:
            raise AgentConfigError(f"{WANDB_CONFIG_FILE} names the secret {block!r} for {host}. {error}") from None
        if not key.isascii() or not key.isprintable() or not key:
            raise AgentConfigError(
                f"There is no API key of the W&B server {host!r} in {where}. Put it there; the server's page"
                " /authorize shows it."
            )
        return SecretStr(key)


def machine_wandb_settings() -> WandbSettings:
    """Return the settings of this machine: of `wandb.yaml`, or the file that `PREFECT_LAUNCH_WANDB_CONFIG` names.

    Raises:
        AgentConfigError: when the file cannot be read, or says something that it must not.
    """
    return read_machine_settings(WandbSettings, WANDB_CONFIG_FILE, WANDB_CONFIG_VARIABLE, "W&B settings")


def api_of(host: str) -> str:
    """Return the address that a host's API has, without a slash at its end."""
    return host if host.startswith("http://") else f"https://{_API if host == _PAGES else host}"


@dataclass(frozen=True)
class RunAddress:
    """A run of a W&B server.

    Attributes:
        host: as the operator lists it.
    """

    host: str
    entity: str
    project: str
    run_id: str

    def __str__(self) -> str:
        base = self.host if self.host.startswith("http://") else f"https://{self.host}"
        return f"{base}/{self.entity}/{self.project}/runs/{self.run_id}"


def run_address(uri: str) -> RunAddress | None:
    """Return the run that an address of a W&B page names, such as `https://host/entity/project/runs/id/overview`."""
    parts = urlsplit(uri)
    found = _RUN.match(parts.path)
    if parts.scheme not in ("http", "https") or found is None:
        return None
    host = parts.netloc.rpartition("@")[2].lower()
    return RunAddress(
        _normal(host if parts.scheme == "https" else f"http://{host}"),
        **{name: unquote(text) for name, text in found.groupdict().items()},
    )


def _normal(host: str) -> str:
    bare = host.removesuffix(":80") if host.startswith("http://") else host.removesuffix(":443")
    return _PAGES if bare in (_API, f"www.{_PAGES}") else bare
