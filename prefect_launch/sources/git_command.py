"""The one door to git: its command, run without a shell, without questions, and never on the event loop.

Only the protocols that are allowed can be used, by git itself and for submodules, too; hooks and prompts are off. A
cancelled call ends the process. A fault of the network or the host is `InfrastructureError`, any other `SourceError`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.errors import InfrastructureError, OperatorError, SourceError
from prefect_launch.sources.remote import ALLOWED_PROTOCOLS

#: A large repository over a slow line; a call that asks only for names has less.
FETCH_TIMEOUT_SECONDS: Final = 900.0
ASK_TIMEOUT_SECONDS: Final = 60.0

_SETTINGS: Final = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "protocol.ext.allow=never",
    "advice.detachedHead=false",
)
_NETWORK_FAULT: Final = re.compile(
    r"could not resolve host|connection (?:refused|reset|timed out)|operation timed out|network is unreachable"
    r"|failed to connect|returned error: (?:5\d\d|429)|early eof|the remote end hung up",
    re.IGNORECASE,
)


class Git:
    """Runs git.

    Args:
        allowed_protocols: what git may speak to remotes; tests add `file` for a repository on this disk.
    """

    def __init__(self, *, allowed_protocols: Sequence[str] = ALLOWED_PROTOCOLS) -> None:
        self._protocols = tuple(allowed_protocols)

    async def run(self, *arguments: str, cwd: Path, timeout: float = FETCH_TIMEOUT_SECONDS) -> str:
        """Run one git command and return what it printed.

        Args:
            arguments: the command and its arguments; remotes have been checked by the caller.
            cwd: the folder to run in.
            timeout: in seconds.

        Raises:
            SourceError: when git refuses.
            InfrastructureError: when the network, the host or the time is at fault.
            OperatorError: when there is no git on this machine.
        """
        settings = [part for setting in (*_SETTINGS, *self._file_rule()) for part in ("-c", setting)]
        try:
            with anyio.fail_after(timeout):
                ended = await anyio.run_process(
                    ["git", *settings, *arguments], cwd=cwd, env=self._environment(), check=False
                )
        except FileNotFoundError as error:
            raise OperatorError(f"git cannot be run in {cwd}: {error}. Install git on this machine.") from None
        except TimeoutError:
            raise InfrastructureError(
                f"'git {arguments[0]}' took more than {timeout:.0f} s. Look at the network, and at the git host."
            ) from None
        if ended.returncode != 0:
            raise _fault(arguments[0], ended.stderr.decode(errors="replace"))
        return ended.stdout.decode(errors="replace")

    def _file_rule(self) -> tuple[str, ...]:
        return () if "file" in self._protocols else ("protocol.file.allow=never",)

    def _environment(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if key not in _FOREIGN}
        return {
            "GIT_SSH_COMMAND": "ssh -oBatchMode=yes",
            **kept,
            "GIT_ALLOW_PROTOCOL": ":".join(self._protocols),
            "GIT_TERMINAL_PROMPT": "0",
            "LC_ALL": "C",
        }


#: Set when we ourselves were started by git (in a hook): they would turn our commands to that repository.
_FOREIGN: Final = frozenset({"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE"})


def _fault(command: str, said: str) -> InfrastructureError | SourceError:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    reason = re.sub(r"(?<=://)[^@/\s]*@", "***@", " | ".join(lines[-4:]))[:600].rstrip(".") or "it said nothing"
    if _NETWORK_FAULT.search(said):
        return InfrastructureError(f"'git {command}' failed: {reason}. Look at the network, and at the git host.")
    return SourceError(
        f"'git {command}' failed: {reason}. Check that the remote and the commit exist and that this machine may read"
        " them (git runs without asking for passwords)."
    )
