"""Which built images this home has had made or has used, and when last: an engine does not know that by itself.

Each has a file `<home>/images/<tag>` with its names, whose time is that of the last use. An image without one is
somebody else's, and is never removed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from prefect.logging import get_logger

from prefect_launch.inputs.atomic import write_atomically

#: In a home.
FOLDER: Final = "images"

_logger = get_logger("launch.build")


class ImageUsage:
    """The notes of one home; all of it blocks.

    Args:
        home: the folder of prefect-launch.
    """

    def __init__(self, home: Path) -> None:
        self.folder = home / FOLDER

    def record(self, tag: str, names: Iterable[str]) -> None:
        """Note that an image is used now. A note that cannot be written keeps no job from running.

        Args:
            tag: the image's, which is a hash of what went in.
            names: its names, on an engine or by its digest in a registry.
        """
        path = self.folder / tag
        try:
            known = self.names_of(path)
            wanted = {*known, *names}
            if wanted == known:
                os.utime(path)
                return
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, "".join(f"{name}\n" for name in sorted(wanted)))
        except OSError as error:
            _logger.warning("Not noted that the image %s was used: %s. It is not removed when it is old.", tag, error)

    def records(self) -> list[Path]:
        """List the notes."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_file() and path.name.isalnum())

    def names_of(self, note: Path) -> set[str]:
        """Return the names in a note; none when it is not there."""
        with suppress(FileNotFoundError):
            return set(note.read_text().split())
        return set()
