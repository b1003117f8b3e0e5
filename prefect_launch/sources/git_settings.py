"""Git settings of one machine: the secret for each host, the time limit of a fetch, the hosts that ssh trusts.

The machine's operator decides them, by host, and no submitter: whoever may name the secret of a remote could have any
secret sent to a host of their own. They are in `~/.config/prefect-launch/git.yaml`, which both the submitter's machine
and the agents read; an agent's own configuration may have them, too, under `git`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from prefect_launch.core.units import parse_duration
from prefect_launch.core.validation import reason
from prefect_launch.errors import AgentConfigError, SpecError
from prefect_launch.sources.remote import split_remote

GIT_CONFIG_FILE: Final = Path("~/.config/prefect-launch/git.yaml")
GIT_CONFIG_VARIABLE: Final = "PREFECT_LAUNCH_GIT_CONFIG"
#: Enough for a large repository over a slow connection.
FETCH_TIMEOUT_SECONDS: Final = 900.0


class GitCredential(BaseModel):
    """The credential for a host: names of Prefect `Secret` blocks, never the secrets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    token: str | None = Field(default=None, description="Secret block with a token or password, for https remotes.")
    username: str = Field(default="x-access-token", description="The user that goes with the token.")
    ssh_key: str | None = Field(default=None, description="Secret block with a private key, for ssh remotes.")

    @model_validator(mode="before")
    @classmethod
    def _name_alone_is_a_token(cls, data: Any) -> Any:
        return {"token": data} if isinstance(data, str) else data

    @field_validator("username")
    @classmethod
    def _is_one_line(cls, value: str) -> str:
        if not value or not value.isprintable():
            raise ValueError("must be printable text")
        return value


class GitSettings(BaseModel):
    """How git works on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    credentials: dict[str, GitCredential] = Field(
        default_factory=dict, description="By host, host:port or host/path; the longest that fits a remote counts."
    )
    timeout: float = Field(default=FETCH_TIMEOUT_SECONDS, gt=0, description="For one fetch: seconds, or '20min'.")
    host_keys: Literal["accept-new", "strict"] = Field(
        default="accept-new", description="Whether ssh trusts a host that it sees for the first time."
    )
    known_hosts: Path | None = Field(default=None, description="The file of ssh's known hosts; by default ssh's own.")

    @field_validator("timeout", mode="before")
    @classmethod
    def _read_timeout(cls, value: Any) -> Any:
        try:
            return parse_duration(value) if isinstance(value, str) else value
        except SpecError as error:
            raise ValueError(str(error)) from None

    @field_validator("credentials")
    @classmethod
    def _hosts_are_plain(cls, value: dict[str, GitCredential]) -> dict[str, GitCredential]:
        for key in value:
            if "://" in key or "@" in key or not key.strip("/"):
                raise ValueError(f"{key!r} must be a host, host:port or host/path, such as 'github.com/team'")
        return {key.strip("/"): credential for key, credential in value.items()}

    def credential(self, remote: str) -> GitCredential | None:
        """Return the credential for a remote; the longest host or path that matches counts."""
        _, host, path = split_remote(remote)
        places = [f"{host}/{path}", f"{host.partition(':')[0]}/{path}"]
        fitting = [key for key in self.credentials if any(_within(place, key) for place in places)]
        return self.credentials[max(fitting, key=len)] if fitting else None


def _within(place: str, key: str) -> bool:
    host, slash, path = key.partition("/")
    wanted = f"{host.lower()}{slash}{path}"
    return place == wanted or place.removesuffix(".git") == wanted or place.startswith(f"{wanted}/")


def machine_git_settings() -> GitSettings:
    """Return the settings of this machine: of `git.yaml`, or the file that `PREFECT_LAUNCH_GIT_CONFIG` names.

    Raises:
        AgentConfigError: when the file cannot be read, or says something that it must not.
    """
    named = os.environ.get(GIT_CONFIG_VARIABLE)
    path = Path(named or GIT_CONFIG_FILE).expanduser()
    if not named and not path.is_file():
        return GitSettings()
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise AgentConfigError(f"The git settings {str(path)!r} cannot be read: {error}. Correct the file.") from None
    try:
        return GitSettings.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise AgentConfigError(f"The git settings {str(path)!r} are wrong at {where}: {reason(first)}.") from None
