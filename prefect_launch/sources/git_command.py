"""The one door to git: its command, run without a shell, without questions, and never on the event loop.

Only the protocols that are allowed can be used, by git itself and for submodules, too; hooks and prompts are off. A
cancelled call ends git and what git has started. A fault of the network or the host is `InfrastructureError`, any other
`SourceError`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.core.subprocesses import run_command
from prefect_launch.errors import InfrastructureError, OperatorError, SourceError
from prefect_launch.server.secrets import ReadSecret, read_secret
from prefect_launch.sources.git_access import access_to
from prefect_launch.sources.git_settings import GitSettings
from prefect_launch.sources.remote import ALLOWED_PROTOCOLS

#: For a call that asks only for names.
ASK_TIMEOUT_SECONDS: Final = 60.0

_SETTINGS: Final = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.ext.allow=never",
    "advice.detachedHead=false",
    # A host that says nothing for so long is given up, also by a git that has lost whoever started it.
    "http.lowSpeedLimit=1",
    "http.lowSpeedTime=120",
    # Nothing that goes on behind our back.
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


class Git:
    """Runs git.

    Args:
        settings: of this machine: secrets by host, time limit, ssh's host keys.
        allowed_protocols: what git may speak to remotes; tests add `file` for a repository on this disk.
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
            arguments: the command and its arguments; remotes have been checked by the caller.
            cwd: the folder to run in.
            remote: the remote that it asks, so that it gets what opens that one.
            timeout: in seconds; by default that of a fetch.
            inherited: descriptors that git and its children keep open.

        Raises:
            SourceError: when git refuses.
            InfrastructureError: when the network, the host, the disk or the time is at fault.
            OperatorError: when there is no git on this machine, or a secret that the settings name is of no use.
        """
        seconds = self.settings.timeout if timeout is None else timeout
        async with access_to(remote, self.settings, self._read_secret) as access:
            settings = (*_SETTINGS, *self._file_rule(), *access.config)
            command = ["git", *(part for setting in settings for part in ("-c", setting)), *arguments]
            environment = {**self._environment(), **access.environment}
            try:
                with anyio.fail_after(seconds):
                    ended = await run_command(command, cwd=cwd, env=environment, inherited=inherited)
            except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
                raise OperatorError(
                    f"git cannot be run in {cwd}: {error}. Install git on this machine, and let this user run it there."
                ) from None
            except TimeoutError:
                raise InfrastructureError(
                    f"'git {arguments[0]}'{_of(remote)} took more than {seconds:.0f} s. Look at the network, and at the"
                    " git host; a repository that is that large wants a longer 'timeout' in the git settings."
                ) from None
        if ended.returncode != 0:
            raise _fault(arguments[0], remote, _masked(ended.stderr.decode(errors="replace"), access.secrets))
        return ended.stdout.decode(errors="replace")

    def _file_rule(self) -> tuple[str, ...]:
        return () if "file" in self.protocols else ("protocol.file.allow=never",)

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
        return {
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
            **kept,
            "GIT_ALLOW_PROTOCOL": ":".join(self.protocols),
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }


#: Set when we ourselves were started by git (in a hook): they would turn our commands to that repository. All of
#: `git rev-parse --local-env-vars` but GIT_CONFIG_COUNT: that one no git sets, only an operator, for all repositories.
_FOREIGN: Final = frozenset(
    {
        "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR", "GIT_CONFIG", "GIT_CONFIG_PARAMETERS", "GIT_DIR",
        "GIT_GRAFT_FILE", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_INTERNAL_SUPER_PREFIX", "GIT_NAMESPACE",
        "GIT_NO_REPLACE_OBJECTS", "GIT_OBJECT_DIRECTORY", "GIT_PREFIX", "GIT_QUARANTINE_PATH", "GIT_REPLACE_REF_BASE",
        "GIT_SHALLOW_FILE", "GIT_WORK_TREE",
    }
)  # fmt: skip


def _fault(command: str, remote: str | None, said: str) -> InfrastructureError | SourceError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = " | ".join(lines[-4:])[:600].rstrip(".") or "it said nothing"
    told = f"'git {command}'{_of(remote)} failed: {reason}."
    if _DISK_FAULT.search(said):
        return InfrastructureError(f"{told} Make room on this machine's disk.")
    if _ACCESS_FAULT.search(said):
        return SourceError(
            f"{told} The remote is not there, or does not let this machine in. Its operator can name a Secret block for"
            " the host under 'credentials' in the git settings (git.yaml)."
        )
    if _HOST_KEY_FAULT.search(said):
        return InfrastructureError(f"{told} Put the host's key into ssh's known hosts on this machine.")
    if _NETWORK_FAULT.search(said):
        return InfrastructureError(f"{told} Look at the network, and at the git host.")
    return SourceError(
        f"{told} Check that the remote and the commit exist and that this machine may read them (git runs without"
        " asking for passwords)."
    )


def _of(remote: str | None) -> str:
    return f" of {remote}" if remote else ""


def _masked(said: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        said = said.replace(secret, "***")
    return re.sub(r"(?<=://)[^@/\s]*@", "***@", said)
