"""The environments that a machine keeps: shared by all agents of one home, so one goes only under its build lock.

Nobody builds it then. Whoever took it in the moment before has left a newer time on its marker, and it is put back.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import ClassVar

from prefect_launch.environments.venv import READY
from prefect_launch.shelf import FRESH_SECONDS, Entry, Shelf, being_removed, renamed


class EnvironmentShelf(Shelf):
    """The folder of environments.

    Args:
        folder: where they are.
        limit_bytes: what they may take together; `None`: no limit.
        in_use: lists the environments that running processes use; blocks.
        fresh_seconds: what was used later than that stays.
    """

    name: ClassVar[str] = "environments"

    def __init__(
        self,
        folder: Path,
        limit_bytes: int | None,
        in_use: Callable[[], Collection[Path]],
        *,
        fresh_seconds: float = FRESH_SECONDS,
    ) -> None:
        super().__init__(limit_bytes, fresh_seconds=fresh_seconds)
        self._folder = folder
        self._in_use = in_use

    def folders(self) -> list[tuple[str, Path]]:
        if not self._folder.is_dir():
            return []
        return [(path.name, path) for path in self._folder.iterdir() if path.is_dir() and path.name[0] != "."]

    def used_at(self, path: Path) -> float:
        return _used_at(path)

    async def needed(self, entries: Sequence[Entry]) -> set[str]:
        return set()  # What is in use is seen under the lock.

    def take_off(self, entry: Entry) -> Path | None:
        descriptor = os.open(self._folder / f"{entry.name}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _used_at(entry.path) != entry.used_at or entry.path in set(self._in_use()):
                return None
            gone = renamed(entry.path, self._folder)
            if _used_at(gone) != entry.used_at:
                gone.rename(entry.path)
                return None
            return gone
        except OSError:  # It is being built, or somebody else was faster.
            return None
        finally:
            os.close(descriptor)

    def remains(self) -> list[Path]:
        return being_removed(self._folder)


def _used_at(path: Path) -> float:
    marker = path / READY
    return (marker if marker.exists() else path).stat().st_mtime
