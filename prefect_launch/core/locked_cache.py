"""A shelf of folders that all agents of one home share: a folder goes only under the lock that those who use it take.

Whoever took it in the moment before has left a newer time on it, and it stays, or is put back.
"""

from __future__ import annotations

from pathlib import Path

from prefect_launch.core.disk_cache import FRESH_SECONDS, Entry, FolderShelf, being_removed, renamed
from prefect_launch.core.file_lock import locked_if_free


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
