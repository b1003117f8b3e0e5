"""Git remotes: which ones git may use, and this machine's settings for them (credentials, time limit, trusted hosts).

Only https, ssh and `git@host:path` remotes are used, without passwords; the rule and its words are the reference's. All
else that git understands runs programs (`ext::`), reads the machine's own files (`file://`, a path) or is an option in
disguise (a leading `-`).

The machine's operator decides the settings, by host, and no submitter: anyone who may name the secret of a remote could
have any secret sent to a host of their own. They are in `~/.config/prefect-launch/git.yaml`, which both the submitter's
machine and the agents read; an agent's own configuration may have them, too, under `git`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from prefect_launch.core.masking import without_users
from prefect_launch.core.units import parse_duration
from prefect_launch.errors import SourceError, SpecError
from prefect_launch.sources.machine_settings import read_machine_settings

#: git gets them too, so that a redirect or a submodule cannot bypass the rule.
ALLOWED_PROTOCOLS: Final = ("https", "ssh")

_HOST: Final = r"[A-Za-z0-9\[](?:[A-Za-z0-9.:\-_\]]*)"
_SCP: Final = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.\-]*@{_HOST}:[^:\s-][^\s]*\Z")
_URL: Final = re.compile(rf"(?:https|ssh)://(?:[^@/\s-][^@/\s]*@)?{_HOST}/[^\s]+\Z")
_FILE: Final = re.compile(r"file:///[^\s]+\Z")
#: The pages of a repository on git hosts, after its path.
_PAGE: Final = re.compile(
    r"(?P<repository>/[^/]+(?:/[^/]+)*?/[^/]+)(?:/-)?/"
    r"(?P<kind>tree|blob|raw|blame|commits?|src/(?:branch|tag|commit)|src|pull|pulls|merge_requests|issues|releases/tag)"
    r"/(?P<rest>[^?#]+)"
)
_WITH_REF: Final = ("tree", "blob", "raw", "blame", "commit", "commits", "src")
_WANDB_HOST: Final = re.compile(r"(?:[a-z0-9-]+\.)*wandb\.ai\Z")
_WANDB_RUN: Final = re.compile(r"/[^/]+/[^/]+/(?:runs|sweeps|jobs|artifacts)(?:/|\Z)")


def check_remote(remote: object, protocols: Collection[str] = ALLOWED_PROTOCOLS) -> str:
    """Return a remote if git may use it.

    Raises:
        SourceError: when it is of another kind, or holds credentials.
    """
    text = remote if isinstance(remote, str) else repr(remote)
    known = _URL.match(text) or _SCP.match(text) or ("file" in protocols and _FILE.match(text))
    allowed, shown = bool(known) and text.isprintable(), without_users(text)
    if not allowed:
        raise SourceError(
            f"Refusing to fetch git remote {shown[:200]!r}: only https://, ssh://, and git@host:path remotes"
            " are allowed."
        )
    if _has_credentials(text):
        raise SourceError(
            f"The git remote {shown!r} holds credentials, which would be stored with the job. Leave them out,"
            " and let git find them where it runs: a credential helper, or an ssh key."
        )
    return text


def without_credentials(remote: str) -> str:
    """Return a remote without the credentials of an https remote, as it may be recorded."""
    if "://" not in remote:
        return remote
    parts = urlsplit(remote)
    host = parts.netloc.rpartition("@")[2]
    user = parts.username or ""
    return parts._replace(netloc=f"{user}@{host}" if user and parts.scheme == "ssh" else host).geturl()


def split_remote(remote: str) -> tuple[str, str, str]:
    """Return a remote's scheme (`ssh` for `git@host:path`), its host in lower case with its port if any, its path."""
    if "://" in remote:
        parts = urlsplit(remote)
        return parts.scheme, parts.netloc.rpartition("@")[2].lower(), parts.path.strip("/")
    host, _, path = remote.partition(":")
    return "ssh", host.rpartition("@")[2].lower(), path.strip("/")


def name_of(remote: str) -> str:
    """Return the name of a remote's repository: `git@host:team/Digits.git` gives `team-Digits`."""
    return "-".join(PurePosixPath(split_remote(remote)[2].removesuffix(".git")).parts)


def _has_credentials(remote: str) -> bool:
    if "://" not in remote:
        return False
    parts = urlsplit(remote)
    return bool(parts.password) or (parts.scheme == "https" and "@" in parts.netloc)


def reject_web_pages(uri: str) -> None:
    """Refuse an address of a web page that people copy from a browser, and name the remote that it belongs to.

    Raises:
        SourceError: for a page of a git host, and for anything of W&B.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    if _WANDB_HOST.match(parts.hostname or "") or _WANDB_RUN.match(parts.path):
        raise SourceError(
            f"The URI {_plain(uri)!r} is a page of a W&B server, and no git repository. A run can be queued by its"
            " address, as uri='https://HOST/ENTITY/PROJECT/runs/ID', and a job by its name, as"
            " job='ENTITY/PROJECT/NAME:ALIAS'. Or give the git repository that it was made from, with its commit."
        )
    page = _PAGE.match(parts.path)
    if page is None or parts.path.endswith(".git"):
        return
    remote = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{page['repository']}"
    hint = f" and {page['rest'].split('/')[0]!r} as the version" if page["kind"].split("/")[0] in _WITH_REF else ""
    raise SourceError(
        f"{_plain(uri)!r} is a page of a repository, not the repository. Give {remote!r} as the URI{hint}."
    )


def _plain(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()[:200]


# Git settings of one machine: the secret for each host, the time limit of a fetch, the hosts that ssh trusts.

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
    def _read_token(cls, data: Any) -> Any:
        return {"token": data} if isinstance(data, str) else data

    @field_validator("username")
    @classmethod
    def _validate_username(cls, value: str) -> str:
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
    def _validate_hosts(cls, value: dict[str, GitCredential]) -> dict[str, GitCredential]:
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
    return read_machine_settings(GitSettings, GIT_CONFIG_FILE, GIT_CONFIG_VARIABLE, "git settings")
