"""Diagnosis of a Slurm cluster for `prefect-launch agent check`: commands, controller, clock, partition, shared home.

No job is started for it. Whether each node sees the agent's home is judged by the kind of its file system; a job that
finds no folder of its run says so at its first line.
"""

from __future__ import annotations

import re
import shutil
import socket
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import anyio

from prefect_launch.errors import LaunchError
from prefect_launch.runners.base import Finding
from prefect_launch.runners.remote.slurm.commands import run_slurm

_PROGRAMS: Final = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
#: A difference of clocks by which times in logs mislead.
_CLOCK_SECONDS: Final = 5.0
#: File systems of one machine alone.
_LOCAL: Final = frozenset({"btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "ramfs", "tmpfs", "xfs", "zfs"})
_AS_OF: Final = re.compile(r"as of (\S+)")
_HERE: Final = frozenset({"localhost", "127.0.0.1", "::1"})


async def diagnose(home: Path, options: Mapping[str, Any]) -> list[Finding]:
    """Look at what a job on Slurm needs.

    Args:
        home: of the agent.
        options: of the queue, as its owner wrote them.

    Returns:
        What was found. Where Slurm does not answer, what needs its answer is left out.
    """
    missing = [program for program in _PROGRAMS if shutil.which(program) is None]
    if missing:
        step = "Run the agent on a login node, or install Slurm's client programs (Debian: slurm-client)."
        return [Finding(name="commands", is_ok=False, detail=f"not on the PATH: {', '.join(missing)}. {step}")]
    found = [Finding(name="commands", is_ok=True, detail=", ".join(_PROGRAMS))]
    try:
        await run_slurm("scontrol", "ping")
        version = (await run_slurm("sinfo", "--version")).strip()
        found.append(Finding(name="controller", is_ok=True, detail=f"{version} answers"))
        found.append(_clock(await run_slurm("scontrol", "show", "config"), datetime.now()))
        found += await _partition(options.get("partition"))
        addresses = set((await run_slurm("sinfo", "--noheader", "--Node", "--format=%o")).split())
    except LaunchError as error:
        return [*found, Finding(name="controller", is_ok=False, detail=str(error))]
    mounts = await anyio.Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace")
    return [*found, shared_home(home, mounts, addresses - _HERE - {socket.gethostname(), socket.getfqdn()})]


def _clock(config: str, now: datetime) -> Finding:
    match = _AS_OF.search(config)
    try:
        told = datetime.fromisoformat(match[1]) if match else None
    except ValueError:
        told = None
    if told is None:
        return Finding(name="clock", is_ok=True, detail="Slurm does not say its time")
    apart = abs((now - told).total_seconds())
    if apart > _CLOCK_SECONDS:
        step = "Set both by the same time server."
        return Finding(name="clock", is_ok=False, detail=f"{apart:.0f} s from the controller's. {step}")
    return Finding(name="clock", is_ok=True, detail="as the controller's")


async def _partition(partition: object) -> list[Finding]:
    if not isinstance(partition, str) or "{{" in partition:
        return []
    shown = (await run_slurm("sinfo", "--noheader", f"--partition={partition}", "--format=%R")).split()
    lacking = sorted(set(partition.split(",")) - set(shown))
    if lacking:
        there = " ".join(sorted(set((await run_slurm("sinfo", "--noheader", "--format=%R")).split())))
        return [Finding(name="partition", is_ok=False, detail=f"no {', '.join(lacking)}; there is: {there}")]
    return [Finding(name="partition", is_ok=True, detail=partition)]


def shared_home(home: Path, mounts: str, elsewhere: set[str]) -> Finding:
    """Say whether the nodes can see an agent's home.

    Args:
        home: the agent's.
        mounts: as /proc/self/mounts has them.
        elsewhere: the addresses of the nodes that are other machines.
    """
    lines = [line.split() for line in mounts.splitlines() if len(line.split()) > 2]
    above = [(fields[1], fields[2]) for fields in lines if home.absolute().is_relative_to(fields[1])]
    place, kind = max(above, key=lambda mount: len(mount[0]), default=("/", "?"))
    if kind in _LOCAL and elsewhere:
        return Finding(
            name="shared home",
            is_ok=False,
            detail=f"{home} is on {place}, which is {kind} of this machine alone, and there are other nodes"
            f" ({len(elsewhere)}). Set PREFECT_LAUNCH_HOME to a folder that all nodes share.",
        )
    return Finding(name="shared home", is_ok=True, detail=f"{home} is on {place} ({kind})")
