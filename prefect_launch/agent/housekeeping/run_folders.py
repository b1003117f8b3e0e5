"""The folders of runs on one machine: a run's goes only when its item has ended and nothing of it exists any more.

Logs and outputs are in the job store by then; what stays here is for people who look at the machine, and lets a retry
find its last outputs without fetching them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final
from uuid import UUID

import anyio

from prefect_launch.core.disk_cache import FRESH_SECONDS, Entry, FolderShelf, being_removed, renamed
from prefect_launch.planning.plan import load_plan
from prefect_launch.runners.run_folder import PLAN_FILE
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item

#: An item that the server does not know may be another server's whose agents share this home.
STRANGER_SECONDS: Final = 86_400.0


class RunShelf(FolderShelf):
    """The folder of runs, `<home>/runs/<item>/<attempt>`.

    Args:
        folder: where they are.
        limit_bytes: what they may take together; `None`: no limit.
        server: knows which items have ended.
        existing: ids of the items of which something exists: a container, a process, work in an agent's hands.
        fresh_seconds: what was used later than that stays.

    Attributes:
        is_blind: whether an engine could not be looked at: then folders of runs with an image stay.
    """

    name: ClassVar[str] = "work folders"

    def __init__(
        self,
        folder: Path,
        limit_bytes: int | None,
        server: Server,
        existing: Collection[str] = (),
        *,
        fresh_seconds: float = FRESH_SECONDS,
    ) -> None:
        super().__init__(limit_bytes, fresh_seconds=fresh_seconds)
        self._folder = folder
        self._server = server
        self.existing = existing
        self.is_blind = False

    def folders(self) -> list[tuple[str, Path]]:
        return [(f"{path.parent.name}/{path.name}", path) for path in self._attempts()]

    def used_at(self, path: Path) -> float:
        # What is written deep inside of it is followed by a line of its log, or by its end.
        return max(os.lstat(one).st_mtime for one in (path, *path.iterdir()))

    async def needed(self, entries: Sequence[Entry]) -> set[str]:
        ids = {UUID(_item_of(entry)) for entry in entries}
        known = {str(item.id): item for item in await self._server.list_items(ids=ids)}
        images = await anyio.to_thread.run_sync(_with_image, entries) if self.is_blind else set()
        return images | {entry.name for entry in entries if self._is_needed(entry, known.get(_item_of(entry)))}

    def take_off(self, entry: Entry) -> Path | None:
        try:
            gone = renamed(entry.path, self._folder)
        except OSError:
            return None
        self._forget_item(entry.path.parent)
        return gone

    def remains(self) -> list[Path]:
        return being_removed(self._folder)

    def _is_needed(self, entry: Entry, item: Item | None) -> bool:
        if _item_of(entry) in self.existing:
            return True
        if item is None:
            return time.time() - entry.used_at < STRANGER_SECONDS
        return not item.is_terminal

    def _attempts(self) -> Iterator[Path]:
        for item in self._folder.iterdir() if self._folder.is_dir() else ():
            if _is_id(item.name) and item.is_dir():
                yield from (path for path in item.iterdir() if _is_attempt(path.name) and path.is_dir())

    def _forget_item(self, folder: Path) -> None:
        """Remove the folder of an item of which no attempt is left, with what was noted beside them."""
        with suppress(OSError):
            notes = list(folder.iterdir())
            if all(note.is_file() and time.time() - note.lstat().st_mtime >= self._fresh_seconds for note in notes):
                for note in notes:
                    note.unlink()
                folder.rmdir()


def _with_image(entries: Sequence[Entry]) -> set[str]:
    found = set()
    for entry in entries:
        plan = load_plan(entry.path)
        damaged = plan is None and (entry.path / PLAN_FILE).exists()  # It may be anything.
        if damaged or (plan is not None and plan.image):
            found.add(entry.name)
    return found


def _is_attempt(name: str) -> bool:
    return name.partition("-")[0].isdigit()


def _item_of(entry: Entry) -> str:
    return entry.name.partition("/")[0]


def _is_id(name: str) -> bool:
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False
