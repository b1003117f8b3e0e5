"""Image usage record: which built images this home has used, and when last. An engine does not record that.

Each image has a file `<home>/images/<tag>` with its names; the file's time is the time of the last use. An image
without a file belongs to somebody else, and is never removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from prefect.logging import get_logger

from prefect_launch.inputs.atomic import write_atomically

#: The folder of records in a home.
FOLDER: Final = "images"

_logger = get_logger("launch.build")


class ImageUsage:
    """The records of one home; all methods block.

    Args:
        home: the folder of prefect-launch.
    """

    def __init__(self, home: Path) -> None:
        self.folder = home / FOLDER

    def record(self, tag: str, names: Iterable[str]) -> None:
        """Record that an image is used now. A record that cannot be written does not fail the job.

        Args:
            tag: the image's tag, which is a digest of its input.
            names: the image's names, on an engine or by its digest in a registry.
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
        """List the files of records."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_file() and path.name.isalnum())

    def names_of(self, note: Path) -> set[str]:
        """Return the names in a record; none when the file does not exist."""
        with suppress(FileNotFoundError):
            return set(note.read_text().split())
        return set()
