"""How one git command gets into one remote: a token or a key from a Prefect `Secret` block, for that command alone.

A token reaches git through git's own environment and a credential helper that is bound to the remote's host; a key
is a file in memory, readable by this user while the command runs. Neither stands in an address, on a command line, on
a disk or in the database. Without a credential for the remote, what the machine's own git and ssh have is used.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from prefect_launch.errors import AgentConfigError, LaunchError
from prefect_launch.server.secrets import ReadSecret
from prefect_launch.sources.git_settings import GitCredential, GitSettings
from prefect_launch.sources.remote import split_remote

_USER: Final = "LAUNCH_GIT_USERNAME"
_TOKEN: Final = "LAUNCH_GIT_TOKEN"
#: Run by git with `sh`: the words are the shell's own, so the token is on no command line.
_HELPER: Final = (
    '!launch() { if test "$1" = get; then '
    f'printf "username=%s\\npassword=%s\\n" "${_USER}" "${_TOKEN}"; '
    "fi; }; launch"
)
#: No question, and no silence for ever: a host that does not answer is given up after a minute.
_SSH_OPTIONS: Final = (
    "-oBatchMode=yes",
    "-oConnectTimeout=30",
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=4",
    "-oControlMaster=no",
)
_HOST_KEYS: Final = {"accept-new": "accept-new", "strict": "yes"}


@dataclass(frozen=True)
class Access:
    """What a command gets besides.

    Attributes:
        config: git's settings, as `key=value`.
        environment: further variables.
        secrets: what must not be told when git says it.
    """

    config: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    secrets: tuple[str, ...] = field(default=(), repr=False)


@asynccontextmanager
async def access_to(remote: str | None, settings: GitSettings, read: ReadSecret) -> AsyncIterator[Access]:
    """Open the way to a remote for as long as one command runs.

    Args:
        remote: it was checked; `None` for a command that asks none.
        settings: of this machine.
        read: reads a Secret block.

    Raises:
        AgentConfigError: when the secret that the settings name is not there, or is of no use.
    """
    if remote is None:
        yield Access()
        return
    scheme, host, _ = split_remote(remote)
    credential = settings.credential(remote)
    if scheme == "ssh":
        key = await _secret(credential.ssh_key, host, read) if credential and credential.ssh_key else None
        descriptor = _in_memory(_checked_key(key, credential)) if key and credential else None
        try:
            yield Access(environment={"GIT_SSH_COMMAND": _ssh_command(settings, descriptor)})
        finally:
            if descriptor is not None:
                os.close(descriptor)
    elif credential and credential.token:
        token = _checked_token(await _secret(credential.token, host, read), credential)
        yield Access(
            # An empty helper makes git forget those before it: the machine's own must not be asked, nor told the token.
            config=("credential.helper=", f"credential.{scheme}://{host}.helper={_HELPER}"),
            environment={_USER: credential.username, _TOKEN: token},
            secrets=(token,),
        )
    else:
        yield Access()


async def _secret(name: str, host: str, read: ReadSecret) -> str:
    try:
        return await read(name)
    except LaunchError as error:
        raise AgentConfigError(
            f"The git settings of this machine name the secret {name!r} for {host}. {error}"
        ) from None


def _checked_token(text: str, credential: GitCredential) -> str:
    token = text.strip()
    if not token or not token.isprintable():
        raise AgentConfigError(
            f"The Secret block {credential.token!r} holds no token that git could send: it must be one line. If it is"
            " a private key, name it as ssh_key in the git settings, and an ssh remote in the job."
        )
    return token


def _checked_key(text: str, credential: GitCredential) -> str:
    if not text.lstrip().startswith("-----BEGIN"):
        raise AgentConfigError(
            f"The Secret block {credential.ssh_key!r} holds no private key: it must be the whole file, from"
            " '-----BEGIN' on. If it is a token, name it as token in the git settings, and an https remote in the job."
        )
    # ssh refuses a key without its last line's end, which a form in a browser takes away.
    return text.strip().replace("\r\n", "\n") + "\n"


def _in_memory(key: str) -> int:
    """Put a key into a file that no folder has; it goes with the descriptor."""
    descriptor = os.memfd_create("launch-git-key", os.MFD_CLOEXEC)
    os.fchmod(descriptor, 0o600)
    os.write(descriptor, key.encode())
    return descriptor


def _ssh_command(settings: GitSettings, key: int | None) -> str:
    # ssh takes the first value that it is given: what the operator's own command says comes first.
    own = os.environ.get("GIT_SSH_COMMAND") or shlex.quote(os.environ.get("GIT_SSH") or "ssh")
    options = [*_SSH_OPTIONS, f"-oStrictHostKeyChecking={_HOST_KEYS[settings.host_keys]}"]
    if settings.known_hosts is not None:
        options.append(f"-oUserKnownHostsFile={settings.known_hosts.expanduser()}")
    if key is not None:
        # ssh closes what it inherits, so it opens the file as this process has it.
        options += ["-oIdentitiesOnly=yes", "-oIdentityAgent=none", "-i", f"/proc/{os.getpid()}/fd/{key}"]
    return f"{own} {shlex.join(options)}"
