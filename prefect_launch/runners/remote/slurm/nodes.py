"""Nodes of a Slurm cluster: whether any of them could ever run what a job asks for.

Slurm's own test of a job does not tell what no node has from what the nodes cannot give now, drained or down.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from prefect_launch.core.units import counted
from prefect_launch.runners.remote.slurm import options as slurm_options
from prefect_launch.runners.remote.slurm.commands import run_slurm

_GPUS: Final = re.compile(r"gpu(?::[\w.-]+)?:(\d+)")


class Node(NamedTuple):
    """What a node has, whatever its state.

    Attributes:
        name: of the node.
        cpus: their number.
        memory_mib: in MiB.
        gpus: their number.
    """

    name: str
    cpus: int
    memory_mib: int
    gpus: int


async def shortage(options: Mapping[str, Any]) -> str:
    """Say what no node of the partition has that a job asks for; an empty text when some nodes have all of it.

    Args:
        options: of the job.

    Raises:
        UnreachableError: when Slurm does not answer.
        CommandFailedError: when it refuses.
    """
    partition = options.get("partition")
    where = [f"--partition={partition}"] if partition else []
    printed = await run_slurm("sinfo", "--noheader", "--Node", "--Format=NodeList:|,CPUs:|,Memory:|,Gres:|", *where)
    return shortage_among(parse_nodes(printed), options)


def parse_nodes(printed: str) -> list[Node]:
    """Read the nodes that sinfo printed, each once."""
    found = {}
    for line in printed.splitlines():
        values = line.split("|")
        if len(values) >= 4 and values[1].isdecimal() and values[2].isdecimal():
            gpus = sum(int(count) for count in _GPUS.findall(values[3]))
            found[values[0]] = Node(values[0], int(values[1]), int(values[2]), gpus)
    return list(found.values())


def shortage_among(nodes: list[Node], options: Mapping[str, Any]) -> str:
    """Say what no node has that options ask for, of these nodes."""
    if not nodes:
        return ""
    asked = slurm_options.per_node(options)
    most = Node("", max(n.cpus for n in nodes), max(n.memory_mib for n in nodes), max(n.gpus for n in nodes))
    wanted, _ = slurm_options.tasks_of(options)
    cpus, gpus = counted(asked.cpus, "CPU"), counted(asked.gpus, "GPU")
    shortages = [
        *([f"{cpus} a node, and the largest node has {most.cpus}"] if asked.cpus > most.cpus else []),
        *(
            [f"{asked.memory_mib} MiB of memory a node, and the largest node has {most.memory_mib}"]
            if asked.memory_mib > most.memory_mib
            else []
        ),
        *([f"{gpus} a node, and no node has more than {most.gpus}"] if asked.gpus > most.gpus else []),
        *([f"{counted(wanted, 'node')}, and there are {len(nodes)}"] if wanted > len(nodes) else []),
    ]
    return "; ".join(shortages)
