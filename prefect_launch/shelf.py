"""A shelf: folders of one kind that a machine keeps for later use, up to a size, the one last used longest ago first
to go.

A folder goes by being renamed first, so nobody finds half of one; what a killed clean-up has left under such a name is
removed by the next. What is needed is for each kind of shelf to say.
"""

from __future__ import annotations

import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import anyio
from pydantic import BaseModel, ConfigDict, Field

#: What was used this lately may be in the hands of somebody who has only just looked for it.
FRESH_SECONDS: Final = 600.0
_GONE: Final = ".gone-"
_BLOCK_BYTES: Final = 512
#: How many of the oldest are looked at together: each look may ask the server.
_BATCH: Final = 50


class Entry(BaseModel):
    """One folder on a shelf."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: Path
    size_bytes: int
    used_at: float = Field(description="When it was last used, seconds since 1970.")


class Tidied(BaseModel):
    """What a shelf let go of."""

    model_config = ConfigDict(frozen=True)

    shelf: str
    limit_bytes: int | None
    kept_bytes: int
    gone: tuple[Entry, ...] = ()

    @property
    def gone_bytes(self) -> int:
        """How much went."""
        return sum(entry.size_bytes for entry in self.gone)


class Shelf(ABC):
    """Folders of one kind.

    Args:
        limit_bytes: what they may take together; `None`: no limit.
        fresh_seconds: what was used later than that stays.
    """

    name: ClassVar[str]

    def __init__(self, limit_bytes: int | None, *, fresh_seconds: float = FRESH_SECONDS) -> None:
        self.limit_bytes = limit_bytes
        self._fresh_seconds = fresh_seconds
        self._measured: dict[Path, tuple[float, int]] = {}

    @abstractmethod
    def folders(self) -> list[tuple[str, Path]]:
        """List the folders, each with its name on this shelf; blocks."""

    @abstractmethod
    def used_at(self, path: Path) -> float:
        """Return when a folder was last used; blocks."""

    @abstractmethod
    async def needed(self, entries: Sequence[Entry]) -> set[str]:
        """Return the names of those that must stay."""

    @abstractmethod
    def take_off(self, entry: Entry) -> Path | None:
        """Rename a folder away; `None` when it is in use after all. Blocks."""

    @abstractmethod
    def remains(self) -> list[Path]:
        """List what a clean-up that was killed has renamed and not removed; blocks."""

    async def tidy(self, *, dry_run: bool = False) -> Tidied:
        """Let go of what is over the limit.

        Args:
            dry_run: only tell what would go.
        """
        entries = await anyio.to_thread.run_sync(self._entries, dry_run)
        total = sum(entry.size_bytes for entry in entries)
        gone: list[Entry] = []
        old = [entry for entry in entries if time.time() - entry.used_at >= self._fresh_seconds]
        for start in range(0, len(old), _BATCH):
            if self.limit_bytes is None or total <= self.limit_bytes:
                break
            batch = old[start : start + _BATCH]
            needed = await self.needed(batch)
            for entry in batch:
                if total > self.limit_bytes and entry.name not in needed and await self._remove(entry, dry_run):
                    gone.append(entry)
                    total -= entry.size_bytes
        return Tidied(shelf=self.name, limit_bytes=self.limit_bytes, kept_bytes=total, gone=tuple(gone))

    def _entries(self, dry_run: bool) -> list[Entry]:
        """Measure the folders, the one last used longest ago first. One that was not used since is not measured
        again."""
        for path in () if dry_run else self.remains():
            shutil.rmtree(path, ignore_errors=True)
        found, measured = [], {}
        for name, path in self.folders():
            try:
                used_at = self.used_at(path)
            except OSError:  # gone meanwhile
                continue
            known = self._measured.get(path)
            size = known[1] if known is not None and known[0] == used_at else size_of(path)
            measured[path] = used_at, size
            found.append(Entry(name=name, path=path, size_bytes=size, used_at=used_at))
        self._measured = measured
        return sorted(found, key=lambda entry: entry.used_at)

    async def _remove(self, entry: Entry, dry_run: bool) -> bool:
        if dry_run:
            return True
        return await anyio.to_thread.run_sync(self._remove_now, entry)

    def _remove_now(self, entry: Entry) -> bool:
        gone = self.take_off(entry)
        if gone is None:
            return False
        shutil.rmtree(gone, ignore_errors=True)
        return True


def renamed(path: Path, parent: Path) -> Path:
    """Give a folder the name of one that is being removed.

    Raises:
        OSError: when it cannot be renamed; it is there as before.
    """
    return path.rename(parent / f"{_GONE}{path.parent.name}-{path.name}-{os.getpid()}-{time.monotonic_ns()}")


def being_removed(parent: Path) -> list[Path]:
    """List the folders with such a name."""
    return sorted(parent.glob(f"{_GONE}*")) if parent.is_dir() else []


def size_of(folder: Path) -> int:
    """Return what a folder takes on its disk, in bytes; a file with two names in it counts once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            try:
                about = os.lstat(os.path.join(parent, name))
            except OSError:  # gone meanwhile
                continue
            if about.st_nlink > 1 and (about.st_dev, about.st_ino) in seen:
                continue
            seen.add((about.st_dev, about.st_ino))
            total += about.st_blocks * _BLOCK_BYTES
    return total
