"""What one running job adds to the memory of its agent, beside what the engine itself keeps for its container.

An agent at rest is measured, then the same agent with 20 silent containers. Memory is PSS: pages that several
processes share are counted in parts. The floor is the engine's shim, one process for each container.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure, Goal
from benchmarks.place import Place
from benchmarks.sleepers import agent_at_rest, containers, queue_of_containers, run_sleepers

_CONTAINERS = 20
#: Until what a start or an end has used is given back.
_SETTLE_SECONDS = 5.0
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def measure(place: Place) -> list[Figure]:
    """Measure the agent at rest and at work."""
    count = place.few(_CONTAINERS)
    with queue_of_containers(place, "memory") as queue, agent_at_rest(place, queue, max_jobs=count) as agent:
        time.sleep(_SETTLE_SECONDS)
        at_rest = pss_mib(agent.pid)
        run_sleepers(place, queue, count)
        time.sleep(_SETTLE_SECONDS)
        at_work = pss_mib(agent.pid)
        ids = [one["Id"] for one in containers(place, queue)]
        shims = [pss_mib(pid) for one in ids if (pid := _shim(one)) is not None]
    each = (at_work - at_rest) / count
    name = f"agent's memory per running job, of {count}"
    return [
        Figure(name, each, "MiB", median(shims) if shims else None, "the container's shim", Goal("≤ 1 MiB", 1.0)),
        Figure("agent's memory at rest", at_rest, "MiB", None, "–"),
    ]


def pss_mib(pid: int) -> float:
    """Return how much memory a process has for itself."""
    found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    if found is None:
        raise RuntimeError(f"the kernel does not tell the memory of process {pid}")
    return int(found[1]) / 1024


def _shim(container_id: str) -> int | None:
    """Return the process id of a container's shim; `None` when it cannot be seen from here."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"shim" in command[0] and container_id.encode() in command:
                return int(folder.name)
    return None
