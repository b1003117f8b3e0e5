"""CPU time of other processes, read from the kernel."""

from __future__ import annotations

import os
from pathlib import Path


def cpu_ms(pid: int, *, group: bool = False, children: bool = False) -> float:
    """Return the CPU time that a process has used so far, in milliseconds.

    Args:
        pid: of the process.
        group: with the other processes of its session that live now, such as a server's workers.
        children: with its children that live now, such as a database's connections.
    """
    if not group and not children:
        return _of(_fields(pid))
    total = 0.0
    for folder in Path("/proc").iterdir():
        try:
            fields = _fields(int(folder.name)) if folder.name.isdigit() else []
        except OSError:  # ended meanwhile
            continue
        if fields and (int(fields[3]) == pid if group else pid in (int(folder.name), int(fields[1]))):
            total += _of(fields)
    return total


def _fields(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _of(fields: list[str]) -> float:
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")
