"""The images that were built for code and are kept on this machine's engine: the one last used longest ago first to go.

Only what this home has noted goes, and only under its own names; not an image that a container is made of, nor one that
somebody has given another name. Its parents (the installed dependencies) go with the last image that stands on them.
What a registry has of it stays there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import anyio

from prefect_launch.builds.image_usage import KeptImages
from prefect_launch.core.disk_cache import FRESH_SECONDS, Entry, Shelf
from prefect_launch.errors import UnreachableError

if TYPE_CHECKING:
    from prefect_launch.builds.build_engine import BuildEngine, StoredImage


class ImageShelf(Shelf):
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
        self._kept = KeptImages(home)
        self._engine = engine
        self._stored: dict[str, StoredImage] = {}

    async def entries(self, *, dry_run: bool = False) -> list[Entry]:
        self.unseen = None
        notes = await anyio.to_thread.run_sync(self._kept.notes)
        if not notes:
            return []  # A machine that has built nothing may have no engine.
        try:
            stored = await self._engine().stored_images()
        except UnreachableError as error:
            self.unseen = str(error)  # It is looked at again the next time.
            return []
        return await anyio.to_thread.run_sync(self._measure, notes, stored, dry_run)

    async def needed(self, entries: Sequence[Entry]) -> set[str]:
        used = await self._engine().images_of_containers()
        return {entry.name for entry in entries if self._stored[entry.name].id in used}

    async def remove(self, entry: Entry) -> bool:
        if not await anyio.to_thread.run_sync(_is_unchanged, entry):
            return False
        for name in self._stored[entry.name].names:
            if not await self._engine().drop(name):
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
                names = self._kept.names_of(note)
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
