"""Usage of a local process and all that descends from it, read from `/proc`.

The kernel names the children of each thread, so only the run's own processes are read: with 300 processes on a machine,
a tenth of the time that a look through all of them takes.

Forked processes share pages with their parent, as the workers of a data loader do. Where several processes hold much
memory, the kernel counts the shares of each, which takes it 9 ms for a GiB; else their sizes are added up.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import Final

from prefect_launch.runners.process import supervisor
from prefect_launch.runners.usage import Usage

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
#: From the state of a process on, in `/proc/PID/stat`: its own time, and that of its children that have ended.
_OWN_TICKS, _ENDED_TICKS = slice(11, 13), slice(13, 15)
#: Smaller processes share too little to look closer.
_MUCH_BYTES: Final = 16 * 1024**2
_SHARE: Final = re.compile(rb"^Pss_Anon:\s+(\d+) kB", re.MULTILINE)


def usage_below(root: int) -> Usage | None:
    """Return what the descendants of a run's supervisor use, of CPU time also those that have ended.

    None when there is none any more, and where the kernel does not name children.
    """
    began = time.thread_time()
    fields, pids = supervisor.stat_fields(root), list(_descendants(root))
    if fields is None or not pids:
        return None
    ticks = sum(map(int, fields[_ENDED_TICKS]))
    own: dict[int, int] = {}
    of_files = 0
    for pid in pids:
        if (fields := supervisor.stat_fields(pid)) is None:
            continue  # It has ended just now.
        ticks += sum(map(int, fields[_OWN_TICKS])) + sum(map(int, fields[_ENDED_TICKS]))
        own[pid], shared = _memory_of(pid)
        of_files = max(of_files, shared)  # Processes of one run mostly share the same libraries and arrays.
    large = [pid for pid, size in own.items() if size > _MUCH_BYTES]
    if len(large) > 1:
        own |= {pid: _share_of(pid) for pid in large}
    return Usage(ticks / _TICKS, sum(own.values()) + of_files, time.thread_time() - began)


def _memory_of(pid: int) -> tuple[int, int]:
    """Return a process's memory that is of no file, and that which is; nothing of one that has ended."""
    pages = _read(f"/proc/{pid}/statm").split()
    resident, shared = (int(number) * _PAGE_BYTES for number in pages[1:3] or (0, 0))
    return resident - shared, shared


def _share_of(pid: int) -> int:
    """Return a process's share of the memory that is of no file; all that it has where the kernel does not tell."""
    found = _SHARE.search(_read(f"/proc/{pid}/smaps_rollup"))
    # One that has ended meanwhile has none: what it shared is in the shares of the others.
    return _memory_of(pid)[0] if found is None else int(found[1]) * 1024


def _descendants(root: int) -> Iterator[int]:
    left = _children(root)
    while left:
        pid = left.pop()
        yield pid
        left += _children(pid)


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for thread in threads for child in _read(f"/proc/{pid}/task/{thread}/children").split()]


def _read(path: str) -> bytes:
    """Read a file of `/proc`; nothing of a process that has ended, or is another user's."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return b""
    try:
        return os.read(descriptor, 65_536)
    except (ProcessLookupError, PermissionError):
        return b""
    finally:
        os.close(descriptor)
