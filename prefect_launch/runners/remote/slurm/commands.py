"""Commands of Slurm: sbatch, squeue, scontrol, scancel and sacct as subprocesses, each with a time limit.

The cluster is that of the agent's own environment (`SLURM_CONF`, or the machine's default). Other variables for
these programs (`SBATCH_*`, the `SLURM_*` of a job that the agent may run in) are removed: only the queue and the plan
decide what is submitted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from subprocess import TimeoutExpired
from typing import Final

from anyio import to_thread

from prefect_launch.core.subprocesses import run_command
from prefect_launch.core.units import format_duration
from prefect_launch.errors import InfrastructureError, NoRoomError, UnreachableError

#: While the controller is away a command of Slurm waits for it; longer than any answer of a busy one takes.
COMMAND_SECONDS: Final = 30.0
#: Variables of Slurm in the agent's environment by which the cluster is found.
_OF_CLUSTER: Final = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
_OF_SLURM: Final = re.compile(r"(SLURM|SBATCH|SALLOC|SQUEUE|SCANCEL|SINFO|SACCT|SCONTROL)_")
#: What the commands say when the controller, and not the request, is at fault.
_AWAY: Final = re.compile(
    r"slurmctld\(\w+\) at \S+ is down|unable to contact slurm controller"
    r"|connect failure|connection (refused|timed out|reset)|socket timed out"
    r"|zero bytes were transmitted|backup controller|communication (connection )?failure|protocol authentication error"
    r"|munge (encode|decode) failed|could not establish a configuration source|in standby mode|unable to establish"
    r"|communication shutdown failure|authentication (agent|credential)|insane message length|slurmdbd"
    r"|unable to connect to database|problem talking to the database",
    re.IGNORECASE,
)
#: What they say when Slurm would take the same request at another time: its limits of jobs a user, an account or a
#: cluster may have at once, a partition that is closed for a while, a full disk or too little memory of its own.
_LATER: Final = re.compile(
    r"(Grp|Max)SubmitJobs?\w*Limit|try again|temporarily unable|temporarily unavailable|presently disabled"
    r"|inactive or drain|not usable now|not available now|down, drained or reserved"
    r"|slurm internal error|I/O error writing script|memory management error|cannot allocate memory|no space left"
    r"|error generating job credential|too many open files",
    re.IGNORECASE,
)


class CommandFailedError(InfrastructureError):
    """A command of Slurm refused or failed; its own words are in the message."""


async def run_slurm(program: str, *arguments: str, env: Mapping[str, str] | None = None, check: bool = True) -> str:
    """Run a command of Slurm to its end.

    Args:
        program: such as "squeue".
        arguments: of it.
        env: its environment, without what names the cluster; by default this process's.
        check: whether another exit code than 0 is an error.

    Returns:
        What it printed.

    Raises:
        UnreachableError: when it or the cluster's configuration is not there, the controller is away, or no answer
            came in time. What was asked for may have been done.
        NoRoomError: when Slurm would take the same request at another time.
        CommandFailedError: when it refused, with its own words.
    """
    environment = environment_of(os.environ if env is None else env)
    await _check_config(environment.get("SLURM_CONF"))
    try:
        done = await run_command([program, *arguments], env=environment, seconds=COMMAND_SECONDS)
    except FileNotFoundError:
        raise UnreachableError(
            f"The program {program!r} of Slurm is not on this machine's PATH. Run the agent on a login node, or install"
            " Slurm's client programs (Debian: slurm-client)."
        ) from None
    except TimeoutExpired as late:
        said = _words(late.stderr or b"") or "it said nothing"
        raise UnreachableError(
            f"Slurm did not answer {program!r} within {format_duration(late.timeout)}: {said}. Look at its controller"
            " (scontrol ping)."
        ) from None
    except OSError as error:  # Too many processes or open files, say.
        raise UnreachableError(
            f"This machine cannot start {program!r} of Slurm now: {error}. It is tried again."
        ) from None
    if done.returncode == 0 or not check:
        return done.stdout.decode(errors="replace")
    said = _words(done.stderr) or _words(done.stdout) or f"exit code {done.returncode}"
    if _AWAY.search(said):
        raise UnreachableError(f"Slurm does not answer {program!r}: {said}. Look at its controller (scontrol ping).")
    if _LATER.search(said):
        raise NoRoomError(f"Slurm does not do what {program!r} asks for now: {said}. It is tried again.")
    raise CommandFailedError(said)


def environment_of(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command of Slurm, with what names the cluster of this process.

    Args:
        variables: that it has else.
    """
    cluster = {name: value for name, value in os.environ.items() if name in _OF_CLUSTER}
    return {**{name: value for name, value in variables.items() if not _OF_SLURM.match(name)}, **cluster}


async def _check_config(path: str | None) -> None:
    """Look for the configuration first: without it, Slurm's commands look for a minute."""
    if path and not await to_thread.run_sync(os.access, path, os.R_OK):
        raise UnreachableError(
            f"The configuration of Slurm {path!r}, which the agent's environment names in SLURM_CONF, cannot be read."
            " Correct SLURM_CONF, or leave it out on a machine of the cluster; then start the agent again."
        )


def _words(output: bytes) -> str:
    """Return what a program complained of in one line, without its name before each line and without stars."""
    lines = [re.sub(r"^\w+: (error: )?", "", line.strip(" *")) for line in output.decode(errors="replace").splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line)).rstrip(".")
