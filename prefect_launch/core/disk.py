"""Room on a disk in words, and a full disk: how it is known, and what to do about it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
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
    return is_own_disk_full(error) or any(_SAID.search(str(one)) for one in _chain(error))


def is_own_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, is this process's own attempt to write to a full disk."""
    return any(isinstance(one, OSError) and one.errno in _FULL for one in _chain(error))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def says_disk_full(text: str | None) -> bool:
    """Whether a text tells of a full disk."""
    return bool(text and _SAID.search(text))


def has_room(folder: Path) -> bool:
    """Whether the disk of a folder has room for a small file."""
    about = os.statvfs(folder)
    return about.f_bavail * about.f_frsize >= _LEAST_BYTES
