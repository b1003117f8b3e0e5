"""Git command: runs git without a shell, without prompts, and never on the event loop.

Git may use only the allowed protocols, for submodules too; hooks and prompts are off. A cancelled call ends git and its
children. A fault of the network or the host raises `InfrastructureError`, any other `SourceError`.

A command that asks a remote gets a token or a key from a Prefect `Secret` block, for itself alone. A token reaches git
through git's environment and a credential helper that is bound to the remote's host; a key is a file in memory, which
this user can read while the command runs. Neither is in an address, on a command line, on a disk or in the database.
Without a credential for the remote, git uses what this machine's own git and ssh have.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import TimeoutExpired
from typing import Final

from prefect_launch.core.masking import Mask, without_users
from prefect_launch.core.subprocesses import run_command
from prefect_launch.core.units import format_duration
from prefect_launch.errors import AgentConfigError, InfrastructureError, LaunchError, OperatorError, SourceError
from prefect_launch.server.secrets import ReadSecret, read_secret
from prefect_launch.sources.remote import ALLOWED_PROTOCOLS, GitCredential, GitSettings, split_remote

#: Time limit of a call that asks only for names.
ASK_TIMEOUT_SECONDS: Final = 60.0

_SETTINGS: Final = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.ext.allow=never",
    "advice.detachedHead=false",
    # git gives up a host that sends nothing for this long, also after its parent is gone.
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=120",
    # Nothing goes on in the background.
    "gc.auto=0",
    "maintenance.auto=false",
)
_DISK_FAULT: Final = re.compile(r"no space left|disk quota exceeded|read-only file system", re.IGNORECASE)
_ACCESS_FAULT: Final = re.compile(
    r"could not read (?:username|password)|authentication failed|terminal prompts disabled|returned error: 40[134]"
    r"|permission denied \(|repository .* not found|access denied",
    re.IGNORECASE,
)
_HOST_KEY_FAULT: Final = re.compile(r"host key verification failed", re.IGNORECASE)
_NETWORK_FAULT: Final = re.compile(
    r"could not resolve host|connection (?:refused|reset|timed out)|operation timed out|network is unreachable"
    r"|failed to connect|connection timed out|too slow|returned error: (?:5\d\d|429)|early eof|the remote end hung up",
    re.IGNORECASE,
)
#: Set when git itself started this process (in a hook): they would direct git to that repository. All of
#: `git rev-parse --local-env-vars` but GIT_CONFIG_COUNT: that one no git sets, only an operator, for all repositories.
_FOREIGN: Final = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_CONFIG", "GIT_CONFIG_PARAMETERS", "GIT_DIR",
        "GIT_GRAFT_FILE", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_INTERNAL_SUPER_PREFIX", "GIT_NAMESPACE",
        "GIT_NO_REPLACE_OBJECTS", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX", "GIT_QUARANTINE_PATH", "GIT_REPLACE_REF_BASE",
        "GIT_SHALLOW_FILE", "GIT_WORK_TREE",
    }
)  # fmt: skip
_USER: Final = "LAUNCH_GIT_USERNAME"
_TOKEN: Final = "LAUNCH_GIT_TOKEN"
#: git runs it with `sh`, whose built-in commands put the token on no command line.
_HELPER: Final = (
    '!launch() { if test "$1" = get; then '
    f'printf "username=%s\\npassword=%s\\n" "${_USER}" "${_TOKEN}"; '
    "fi; }; launch"
)
#: No prompts, and a host that does not answer is given up after a minute.
_SSH_OPTIONS: Final = (
    "-oBatchMode=yes",
    "-oConnectTimeout=30",
    "-oServerAliveInterval=15",
    "-oServerAliveCountMax=4",
    "-oControlMaster=no",
)
_HOST_KEYS: Final = {"accept-new": "accept-new", "strict": "yes"}


class Git:
    """Runs git.

    Args:
        settings: the git settings of this machine.
        allowed_protocols: protocols that git may use; tests add `file` for a repository on this disk.
        read_secret: reads a Prefect `Secret` block by its name.
    """

    def __init__(
        self,
        settings: GitSettings | None = None,
        *,
        allowed_protocols: Sequence[str] = ALLOWED_PROTOCOLS,
        read_secret: ReadSecret = read_secret,
    ) -> None:
        self.settings = settings or GitSettings()
        self.protocols = tuple(allowed_protocols)
        self._read_secret = read_secret

    async def run(
        self,
        *arguments: str,
        cwd: Path,
        remote: str | None = None,
        timeout: float | None = None,
        inherited: Sequence[int] = (),
    ) -> str:
        """Run one git command and return what it printed.

        Args:
            arguments: the command and its arguments; the caller has checked remotes.
            cwd: the folder to run in.
            remote: the remote that it asks, whose credential it gets.
            timeout: seconds; by default the time limit of a fetch.
            inherited: file descriptors that git and its children keep open.

        Raises:
            SourceError: when git refuses.
            InfrastructureError: when the network, the host or the disk fails, or the time is over.
            OperatorError: when this machine has no git, or a secret that the settings name cannot be used.
        """
        seconds = self.settings.timeout if timeout is None else timeout
        async with access_to(remote, self.settings, self._read_secret) as access:
            file_rule = () if "file" in self.protocols else ("protocol.file.allow=never",)
            settings = (*_SETTINGS, *file_rule, *access.config)
            command = ["git", *(part for setting in settings for part in ("-c", setting)), *arguments]
            environment = {**self._environment(), **access.environment}
            try:
                ended = await run_command(command, cwd=cwd, env=environment, inherited=inherited, seconds=seconds)
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                raise OperatorError(
                    f"git cannot be run in {cwd}: {error}. Install git on this machine, and let this user run it there."
                ) from None
            except TimeoutExpired as late:
                raise InfrastructureError(
                    f"'git {arguments[0]}'{_of(remote)} took more than {format_duration(late.timeout)}:"
                    f" {_reason(access.shown(late.stderr))}. Look at the network, and at the git host; a repository"
                    " that is that large wants a longer 'timeout' in the git settings."
                ) from None
        if ended.returncode != 0:
            raise _fault(arguments[0], remote, access.shown(ended.stderr))
        return ended.stdout.decode(errors="replace")

    async def init(self, folder: Path, *, bare: bool = True) -> None:
        """Make an empty repository of a folder."""
        await self.run("init", "--quiet", *(("--bare",) if bare else ()), "--template=", ".", cwd=folder)

    async def fetch(
        self,
        *arguments: str,
        into: Path,
        remote: str | None,
        timeout: float | None = None,
        inherited: Sequence[int] = (),
    ) -> None:
        """Run `git fetch` in a repository; arguments and errors as for `run`."""
        await self.run("fetch", "--quiet", *arguments, cwd=into, remote=remote, timeout=timeout, inherited=inherited)

    async def id_of(self, name: str, folder: Path) -> str | None:
        """Return the full id of what a name means in a repository; None when it means nothing there."""
        try:
            return (await self.run("rev-parse", "--verify", "--quiet", name, cwd=folder)).strip()
        except SourceError:
            return None

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
        return {
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
            **kept,
            "GIT_ALLOW_PROTOCOL": ":".join(self.protocols),
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }


def _fault(command: str, remote: str | None, output: str) -> InfrastructureError | SourceError:
    message = f"'git {command}'{_of(remote)} failed: {_reason(output)}."
    if _DISK_FAULT.search(output):
        return InfrastructureError(f"{message} Make room on this machine's disk.")
    if _ACCESS_FAULT.search(output):
        return SourceError(
            f"{message} The remote is not there, or does not let this machine in. Its operator can name a Secret block"
            " for the host under 'credentials' in the git settings (git.yaml)."
        )
    if _HOST_KEY_FAULT.search(output):
        return InfrastructureError(f"{message} Put the host's key into ssh's known hosts on this machine.")
    if _NETWORK_FAULT.search(output):
        return InfrastructureError(f"{message} Look at the network, and at the git host.")
    return SourceError(
        f"{message} Check that the remote and the commit exist and that this machine may read them (git runs without"
        " asking for passwords)."
    )


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return " | ".join(lines[-4:])[:600].rstrip(".") or "it said nothing"


def _of(remote: str | None) -> str:
    return f" of {remote}" if remote else ""


@dataclass(frozen=True)
class Access:
    """What a command needs to get into a remote.

    Attributes:
        config: git's settings, as `key=value`.
        environment: additional environment variables.
        mask: hides the secrets in messages.
    """

    config: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    mask: Mask = field(default_factory=Mask)

    def shown(self, output: bytes | None) -> str:
        """Return what git said, without secrets."""
        return self.mask.text(without_users((output or b"").decode(errors="replace")))


@asynccontextmanager
async def access_to(remote: str | None, settings: GitSettings, read: ReadSecret) -> AsyncIterator[Access]:
    """Yield the access to a remote for as long as one command runs.

    Raises:
        AgentConfigError: when the secret that the settings name does not exist, or cannot be used.
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
            # An empty helper resets the list: git must not ask the machine's own helper, nor tell it the token.
            config=("credential.helper=", f"credential.{scheme}://{host}.helper={_HELPER}"),
            environment={_USER: credential.username, _TOKEN: token},
            mask=Mask([token]),
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
    # ssh refuses a key without its last line break, which a form in a browser removes.
    return text.strip().replace("\r\n", "\n") + "\n"


def _in_memory(key: str) -> int:
    """Put a key into a file in memory, which ends with its descriptor."""
    descriptor = os.memfd_create("launch-git-key", os.MFD_CLOEXEC)
    os.fchmod(descriptor, 0o600)
    os.write(descriptor, key.encode())
    return descriptor


def _ssh_command(settings: GitSettings, key: int | None) -> str:
    # ssh uses the first value of an option, so the operator's own command comes first.
    own = os.environ.get("GIT_SSH_COMMAND") or shlex.quote(os.environ.get("GIT_SSH") or "ssh")
    options = [*_SSH_OPTIONS, f"-oStrictHostKeyChecking={_HOST_KEYS[settings.host_keys]}"]
    if settings.known_hosts is not None:
        options.append(f"-oUserKnownHostsFile={settings.known_hosts.expanduser()}")
    if key is not None:
        # ssh closes inherited descriptors, so it opens the file by this process's one.
        options += ["-oIdentitiesOnly=yes", "-oIdentityAgent=none", "-i", f"/proc/{os.getpid()}/fd/{key}"]
    return f"{own} {shlex.join(options)}"
