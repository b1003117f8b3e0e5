"""A full disk: how it is known, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_SAID: Final = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
#: A disk with less left keeps no small file for certain.
_LEAST_BYTES: Final = 64 * 1024

NEXT_STEP: Final = (
    "Free space on the agent's machine ('prefect-launch agent clean' removes what its agents need not keep), then put"
    " the item back."
)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says that a disk is full."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if _SAID.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def says_disk_full(text: str | None) -> bool:
    """Whether a text tells of a full disk."""
    return bool(text and _SAID.search(text))


def has_room(folder: Path) -> bool:
    """Whether the disk of a folder has room for a small file."""
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize >= _LEAST_BYTES
