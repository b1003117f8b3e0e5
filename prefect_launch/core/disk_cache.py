"""Disk caches: least-recently-used eviction of what a machine keeps for later use, down to a size limit.

A subclass lists the entries, and says which are still needed. Most caches hold folders: a folder is renamed before it
is removed, so that nobody finds half of one, and what a killed clean-up has left under such a name the next one
removes.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

import anyio
from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.core.file_lock import locked_if_free
from prefect_launch.core.filesystem import remove_tree, walk

#: What was used this recently may be in use by a process that has just looked it up.
FRESH_SECONDS: Final = 600.0
_GONE: Final = ".gone-"
_BLOCK_BYTES: Final = 512
#: Entries checked at a time: each check may ask the server.
_BATCH: Final = 50


class Entry(BaseModel):
    """One entry of a cache."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: Path = Field(description="The folder itself, or the file that records the entry.")
    size_bytes: int
    used_at: float = Field(description="When it was last used, seconds since 1970.")


class EvictionReport(BaseModel):
    """What a cache has evicted."""

    model_config = ConfigDict(frozen=True)

    cache: str
    limit_bytes: int | None
    kept_bytes: int
    evicted: tuple[Entry, ...] = ()
    unreachable: str | None = Field(
        default=None, description="Why the entries could not be listed; nothing was evicted then."
    )

    @property
    def evicted_bytes(self) -> int:
        """Size of what was evicted, in bytes."""
        return sum(entry.size_bytes for entry in self.evicted)


class LRUCache(ABC):
    """A cache of entries of one kind.

    Args:
        limit_bytes: what they may take together; `None`: no limit.
        fresh_seconds: what was used later than that stays.

    Attributes:
        unreachable: why the entries could not be listed the last time; `None` when they could.
    """

    name: ClassVar[str]

    def __init__(self, limit_bytes: int | None, *, fresh_seconds: float = FRESH_SECONDS) -> None:
        self.limit_bytes = limit_bytes
        self.unreachable: str | None = None
        self._fresh_seconds = fresh_seconds

    @abstractmethod
    async def entries(self, *, dry_run: bool = False) -> list[Entry]:
        """List and measure the entries, the least recently used first; with `dry_run`, change nothing."""

    @abstractmethod
    async def needed(self, entries: Sequence[Entry]) -> set[str]:
        """Return the names of the entries that must stay."""

    @abstractmethod
    async def remove(self, entry: Entry) -> bool:
        """Remove an entry; false when it is in use after all."""

    async def evict(self, *, dry_run: bool = False) -> EvictionReport:
        """Evict what is over the limit; with `dry_run`, only report it."""
        entries = await self.entries(dry_run=dry_run)
        total = sum(entry.size_bytes for entry in entries)
        evicted: list[Entry] = []
        old = [entry for entry in entries if self._is_old(entry.used_at)]
        for start in range(0, len(old), _BATCH):
            if self.limit_bytes is None or total <= self.limit_bytes:
                break
            batch = old[start : start + _BATCH]
            needed = await self.needed(batch)
            for entry in batch:
                if total <= self.limit_bytes or entry.name in needed:
                    continue
                if dry_run or await self.remove(entry):
                    evicted.append(entry)
                    total -= entry.size_bytes
        return EvictionReport(
            cache=self.name,
            limit_bytes=self.limit_bytes,
            kept_bytes=total,
            evicted=tuple(evicted),
            unreachable=self.unreachable,
        )

    def _is_old(self, used_at: float) -> bool:
        """Whether an entry last used then is old enough to be evicted."""
        return time.time() - used_at >= self._fresh_seconds


class FolderCache(LRUCache):
    """A cache of folders of one kind."""

    def __init__(self, limit_bytes: int | None, *, fresh_seconds: float = FRESH_SECONDS) -> None:
        super().__init__(limit_bytes, fresh_seconds=fresh_seconds)
        self._measured: dict[Path, tuple[float, int]] = {}

    @abstractmethod
    def folders(self) -> list[tuple[str, Path]]:
        """List the folders, each with its name in this cache; blocks."""

    @abstractmethod
    def used_at(self, path: Path) -> float:
        """Return when a folder was last used; blocks."""

    @abstractmethod
    def detach(self, entry: Entry) -> Path | None:
        """Rename a folder for removal; `None` when it is in use after all. Blocks."""

    @abstractmethod
    def leftovers(self) -> list[Path]:
        """List what a killed clean-up has renamed and not removed; blocks."""

    async def needed(self, entries: Sequence[Entry]) -> set[str]:
        return set()  # `detach` sees what is in use.

    async def entries(self, *, dry_run: bool = False) -> list[Entry]:
        return await anyio.to_thread.run_sync(self._entries, dry_run)

    async def remove(self, entry: Entry) -> bool:
        return await anyio.to_thread.run_sync(self._remove_now, entry)

    def _entries(self, dry_run: bool) -> list[Entry]:
        """Measure the folders, the one last used longest ago first. One that was not used since is not measured
        again."""
        for path in () if dry_run else self.leftovers():
            remove_tree(path)
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

    def _remove_now(self, entry: Entry) -> bool:
        gone = self.detach(entry)
        if gone is None:
            return False
        remove_tree(gone)
        return True


def mark_for_removal(path: Path, parent: Path) -> Path:
    """Rename a folder to one that is being removed.

    Raises:
        OSError: when it cannot be renamed; it is there as before.
    """
    return path.rename(parent / f"{_GONE}{path.parent.name}-{path.name}-{os.getpid()}-{time.monotonic_ns()}")


def marked_for_removal(parent: Path) -> list[Path]:
    """List the folders with such a name."""
    return sorted(parent.glob(f"{_GONE}*")) if parent.is_dir() else []


def size_of(folder: Path) -> int:
    """Return what a folder takes on its disk, in bytes; a file with two names in it counts once."""
    total = 0
    seen: set[tuple[int, int]] = set()
    for parent, folders, names in walk(folder):
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


# --- folders that all agents of one data folder share ---


class LockedFolderCache(FolderCache):
    """Cache of folders that all agents of a data folder share, each locked by the file `<name>.lock` next to it."""

    def __init__(self, folder: Path, limit_bytes: int | None, *, fresh_seconds: float = FRESH_SECONDS) -> None:
        super().__init__(limit_bytes, fresh_seconds=fresh_seconds)
        self._folder = folder

    def is_in_use(self, path: Path) -> bool:
        """Whether somebody uses a folder who does not hold its lock; blocks."""
        return False

    def folders(self) -> list[tuple[str, Path]]:
        if not self._folder.is_dir():
            return []
        return [(path.name, path) for path in self._folder.iterdir() if path.is_dir() and path.name[0] != "."]

    def used_at(self, path: Path) -> float:
        return path.stat().st_mtime

    def detach(self, entry: Entry) -> Path | None:
        try:
            with locked_if_free(self._folder / f"{entry.name}.lock") as is_ours:
                if not is_ours or self.used_at(entry.path) != entry.used_at or self.is_in_use(entry.path):
                    return None
                gone = mark_for_removal(entry.path, self._folder)
                if self.used_at(gone) != entry.used_at:
                    gone.rename(entry.path)
                    return None
                return gone
        except OSError:  # Somebody else was faster.
            return None

    def leftovers(self) -> list[Path]:
        return marked_for_removal(self._folder)
