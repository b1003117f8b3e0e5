"""A shelf: things of one kind that a machine keeps for later use, up to a size, the one last used longest ago first to
go. What is needed is for each kind of shelf to say.

Most hold folders. A folder goes by being renamed first, so nobody finds half of one; what a killed clean-up has left
under such a name is removed by the next.
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

#: What was used this lately may be in the hands of somebody who has only just looked for it.
FRESH_SECONDS: Final = 600.0
_GONE: Final = ".gone-"
_BLOCK_BYTES: Final = 512
#: How many of the oldest are looked at together: each look may ask the server.
_BATCH: Final = 50


class Entry(BaseModel):
    """One thing on a shelf."""

    model_config = ConfigDict(frozen=True)

    name: str
    path: Path = Field(description="The folder itself, or the file that notes the thing.")
    size_bytes: int
    used_at: float = Field(description="When it was last used, seconds since 1970.")


class Tidied(BaseModel):
    """What a shelf let go of."""

    model_config = ConfigDict(frozen=True)

    shelf: str
    limit_bytes: int | None
    kept_bytes: int
    gone: tuple[Entry, ...] = ()
    unseen: str | None = Field(default=None, description="Why it could not be seen what is there; nothing went then.")

    @property
    def gone_bytes(self) -> int:
        """How much went."""
        return sum(entry.size_bytes for entry in self.gone)


class Shelf(ABC):
    """Things of one kind.

    Args:
        limit_bytes: what they may take together; `None`: no limit.
        fresh_seconds: what was used later than that stays.

    Attributes:
        unseen: why it could not be seen at the last look what is there; `None` when it could.
    """

    name: ClassVar[str]

    def __init__(self, limit_bytes: int | None, *, fresh_seconds: float = FRESH_SECONDS) -> None:
        self.limit_bytes = limit_bytes
        self.unseen: str | None = None
        self._fresh_seconds = fresh_seconds

    @abstractmethod
    async def entries(self, *, dry_run: bool = False) -> list[Entry]:
        """Measure what is there, the one last used longest ago first.

        Args:
            dry_run: change nothing.
        """

    @abstractmethod
    async def needed(self, entries: Sequence[Entry]) -> set[str]:
        """Return the names of those that must stay."""

    @abstractmethod
    async def remove(self, entry: Entry) -> bool:
        """Let go of one; false when it is in use after all."""

    async def tidy(self, *, dry_run: bool = False) -> Tidied:
        """Let go of what is over the limit.

        Args:
            dry_run: only tell what would go.
        """
        entries = await self.entries(dry_run=dry_run)
        total = sum(entry.size_bytes for entry in entries)
        gone: list[Entry] = []
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
                    gone.append(entry)
                    total -= entry.size_bytes
        return Tidied(
            shelf=self.name,
            limit_bytes=self.limit_bytes,
            kept_bytes=total,
            gone=tuple(gone),
            unseen=self.unseen,
        )

    def _is_old(self, used_at: float) -> bool:
        """Whether nobody can have something in hand that was last used then."""
        return time.time() - used_at >= self._fresh_seconds


class FolderShelf(Shelf):
    """Folders of one kind."""

    def __init__(self, limit_bytes: int | None, *, fresh_seconds: float = FRESH_SECONDS) -> None:
        super().__init__(limit_bytes, fresh_seconds=fresh_seconds)
        self._measured: dict[Path, tuple[float, int]] = {}

    @abstractmethod
    def folders(self) -> list[tuple[str, Path]]:
        """List the folders, each with its name on this shelf; blocks."""

    @abstractmethod
    def used_at(self, path: Path) -> float:
        """Return when a folder was last used; blocks."""

    @abstractmethod
    def take_off(self, entry: Entry) -> Path | None:
        """Rename a folder away; `None` when it is in use after all. Blocks."""

    @abstractmethod
    def remains(self) -> list[Path]:
        """List what a clean-up that was killed has renamed and not removed; blocks."""

    async def needed(self, entries: Sequence[Entry]) -> set[str]:
        return set()  # What is in use is seen when it is taken off.

    async def entries(self, *, dry_run: bool = False) -> list[Entry]:
        return await anyio.to_thread.run_sync(self._entries, dry_run)

    async def remove(self, entry: Entry) -> bool:
        return await anyio.to_thread.run_sync(self._remove_now, entry)

    def _entries(self, dry_run: bool) -> list[Entry]:
        """Measure the folders, the one last used longest ago first. One that was not used since is not measured
        again."""
        for path in () if dry_run else self.remains():
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
        gone = self.take_off(entry)
        if gone is None:
            return False
        remove_tree(gone)
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


class LockedShelf(FolderShelf):
    """The folders in one folder, each with its lock file `<name>.lock` beside it.

    Args:
        folder: where they are.
        limit_bytes: what they may take together; `None`: no limit.
        fresh_seconds: what was used later than that stays.
    """

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

    def take_off(self, entry: Entry) -> Path | None:
        try:
            with locked_if_free(self._folder / f"{entry.name}.lock") as is_ours:
                if not is_ours or self.used_at(entry.path) != entry.used_at or self.is_in_use(entry.path):
                    return None
                gone = renamed(entry.path, self._folder)
                if self.used_at(gone) != entry.used_at:
                    gone.rename(entry.path)
                    return None
                return gone
        except OSError:  # Somebody else was faster.
            return None

    def remains(self) -> list[Path]:
        return being_removed(self._folder)
