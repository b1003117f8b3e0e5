"""Which process a build belongs to, told by a container's name: so that what a killed one left can be known.

A name holds where the process runs (this boot of this machine, and its space of process ids), its id and when it was
started; the id alone may be another's by now.
"""

from __future__ import annotations

import hashlib
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Final
from uuid import uuid4

BUILD_PREFIX: Final = "launch-build-"
_NAME: Final = re.compile(rf"{BUILD_PREFIX}(?P<place>[0-9a-f]{{12}})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]+")


#: A process that nobody has waited for is still listed.
_ENDED: Final = ("Z", "X")


def container_name() -> str:
    """Return a new name for a container of a build of this process."""
    pid = os.getpid()
    return f"{BUILD_PREFIX}{this_place()}-{pid}-{started_at(pid)}-{uuid4().hex[:8]}"


def is_left_behind(name: str) -> bool:
    """Whether a container is of a build whose process ran here and is gone."""
    match = _NAME.fullmatch(name)
    return match is not None and is_gone(match["place"], int(match["pid"]), int(match["start"]))


def is_gone(place: str, pid: int, start: int) -> bool:
    """Whether a process of this place has ended; one of another place may be there."""
    return place == this_place() and started_at(pid) != start


@lru_cache(maxsize=1)
def this_place() -> str:
    """Return what tells this machine's present boot, and its space of process ids, from all others."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    return hashlib.sha256(f"{boot}{os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:12]


def started_at(pid: int) -> int:
    """Return when a process was started, in the kernel's ticks; -1 when it has ended."""
    try:
        about = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    state, *rest = about.rpartition(")")[2].split()
    return -1 if state in _ENDED else int(rest[18])
