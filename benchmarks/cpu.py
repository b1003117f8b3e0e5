"""CPU time of other processes, read from the kernel."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_ms(pid: int, *, group: bool = False, children: bool = False) -> float:
    """Return the CPU time that a process has used so far, in milliseconds.

    Args:
        pid: of the process.
        group: with the other processes of its session that live now, such as a server's workers.
        children: with its children, such as PostgreSQL's, which have sessions of their own.
    """
    if not (group or children):
        return _of(_fields(pid))
    total = _of(_fields(pid), ended=True) if children else 0.0
    for folder in Path("/proc").iterdir():
        try:
            fields = _fields(int(folder.name)) if folder.name.isdigit() else []
        except OSError:  # ended meanwhile
            continue
        if fields and int(fields[1 if children else 3]) == pid:
            total += _of(fields)
    return total


def machine_cpu_ms() -> float:
    """Return the CPU time that all processes of this machine have used so far, in milliseconds."""
    user, nice, system = Path("/proc/stat").read_text().split()[1:4]
    return (int(user) + int(nice) + int(system)) * 1000 / os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _of(fields: list[str], *, ended: bool = False) -> float:
    """Return the time of a process; with that of its children that have ended."""
    return sum(map(int, fields[11 : 15 if ended else 13])) * 1000 / os.sysconf("SC_CLK_TCK")
