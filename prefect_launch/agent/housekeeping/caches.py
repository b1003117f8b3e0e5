"""Caches of one machine that housekeeping evicts from: run folders, environments, built images, copies of git remotes.

A run's folder goes only when its item has ended and nothing of it exists any more; its log and outputs are in the job
store by then. An environment goes only under its build lock, and not while a process uses it. Only
built images that this home has recorded go, under its own names, and none that a container uses. An image's parents
(the installed dependencies) go with the last image built on them. A registry's copy stays.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final
from uuid import UUID

import anyio

from prefect_launch.builds.image_records import ImageUsage
from prefect_launch.core.disk_cache import (
    FRESH_SECONDS,
    Entry,
    FolderCache,
    LockedFolderCache,
    LRUCache,
    mark_for_removal,
    marked_for_removal,
)
from prefect_launch.environments.venv import READY
from prefect_launch.errors import UnreachableError
from prefect_launch.planning.plan import load_plan
from prefect_launch.runners.base import PLAN_FILE
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item

if TYPE_CHECKING:
    from prefect_launch.builds.build_engine import BuildEngine, StoredImage


#: An item that the server does not know may be another server's whose agents share this home.
STRANGER_SECONDS: Final = 86_400.0


class RunFolderCache(FolderCache):
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

    def detach(self, entry: Entry) -> Path | None:
        try:
            gone = mark_for_removal(entry.path, self._folder)
        except OSError:
            return None
        self._forget_item(entry.path.parent)
        return gone

    def leftovers(self) -> list[Path]:
        return marked_for_removal(self._folder)

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
        """Remove the folder of an item without attempts left, with the notes in it."""
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


class ImageCache(LRUCache):
    """The built images of one home.

    Args:
        home: the folder of prefect-launch.
        limit_bytes: what they may take together, beyond their base images; `None`: no limit.
        engine: returns the one that has them; called when there is a built image to look for.
        fresh_seconds: what was used later than that stays.
    """

    name: ClassVar[str] = "built images"

    def __init__(
        self,
        home: Path,
        limit_bytes: int | None,
        engine: Callable[[], BuildEngine],
        *,
        fresh_seconds: float = FRESH_SECONDS,
    ) -> None:
        super().__init__(limit_bytes, fresh_seconds=fresh_seconds)
        self._usage = ImageUsage(home)
        self._engine = engine
        self._stored: dict[str, StoredImage] = {}

    async def entries(self, *, dry_run: bool = False) -> list[Entry]:
        self.unreachable = None
        notes = await anyio.to_thread.run_sync(self._usage.records)
        if not notes:
            return []  # A machine that has built nothing may have no engine.
        try:
            stored = await self._engine().stored_images()
        except UnreachableError as error:
            self.unreachable = str(error)  # It is looked at again the next time.
            return []
        return await anyio.to_thread.run_sync(self._measure, notes, stored, dry_run)

    async def needed(self, entries: Sequence[Entry]) -> set[str]:
        used = await self._engine().images_of_containers()
        return {entry.name for entry in entries if self._stored[entry.name].id in used}

    async def remove(self, entry: Entry) -> bool:
        if not await anyio.to_thread.run_sync(_is_unchanged, entry):
            return False
        for name in self._stored[entry.name].names:
            if not await self._engine().untag(name):
                return False
        await anyio.to_thread.run_sync(lambda: entry.path.unlink(missing_ok=True))
        return True

    def _measure(self, notes: Sequence[Path], stored: Sequence[StoredImage], dry_run: bool) -> list[Entry]:
        """Bring notes and images together; a note whose image is gone goes too."""
        by_name = {name: image for image in stored for name in image.names}
        found, self._stored = [], {}
        for note in notes:
            with suppress(FileNotFoundError):  # gone meanwhile
                used_at = note.stat().st_mtime
                names = self._usage.names_of(note)
                image = next((by_name[name] for name in sorted(names) if name in by_name), None)
                if image is None:
                    self._forget(note, used_at, dry_run)
                elif all(_is_ours(name, note.name, names) for name in image.names):
                    self._stored[note.name] = image
                    size = _own_size(image, by_name)
                    found.append(Entry(name=note.name, path=note, size_bytes=size, used_at=used_at))
        return sorted(found, key=lambda entry: entry.used_at)

    def _forget(self, note: Path, used_at: float, dry_run: bool) -> None:
        if not dry_run and self._is_old(used_at):
            note.unlink(missing_ok=True)


def _is_unchanged(entry: Entry) -> bool:
    with suppress(FileNotFoundError):
        return entry.path.stat().st_mtime == entry.used_at
    return False


def _is_ours(name: str, tag: str, names: set[str]) -> bool:
    """Whether a name of an image is one that we have given it: its tag, in a repository that was noted, or a digest."""
    return name in names or name.partition("@")[0] in {_repository(one) for one in names} or name.endswith(f":{tag}")


def _repository(name: str) -> str:
    return name.partition("@")[0] if "@" in name else name.rpartition(":")[0]


def _own_size(image: StoredImage, by_name: Mapping[str, StoredImage]) -> int:
    """Return what an image takes beyond the last of the images that it was built on, where that is still there."""
    from prefect_launch.builds.builder import ImageLabels

    bases = image.labels.get(ImageLabels.BASE, "").split()
    base = by_name.get(bases[-1].partition("@")[0]) if bases else None
    return image.size_bytes - base.size_bytes if base and base.size_bytes < image.size_bytes else image.size_bytes


class EnvironmentCache(LockedFolderCache):
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
        super().__init__(folder, limit_bytes, fresh_seconds=fresh_seconds)
        self._in_use = in_use

    def is_in_use(self, path: Path) -> bool:
        return path in set(self._in_use())

    def used_at(self, path: Path) -> float:
        marker = path / READY
        return (marker if marker.exists() else path).stat().st_mtime


class GitCache(LockedFolderCache):
    """The folder of copies, see `prefect_launch.sources.git_cache`; each use sets its time under its lock."""

    name: ClassVar[str] = "git copies"
