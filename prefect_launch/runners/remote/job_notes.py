"""Notes of an agent's jobs on a cluster: one small JSON file each, which outlives the agent.

For what the cluster does not keep of a job, or not for long enough. A note is written whole or not at all. All of this
blocks for a moment: call it in a thread.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Generic, TypeVar
from uuid import uuid4

from pydantic import BaseModel, ValidationError

Note = TypeVar("Note", bound=BaseModel)

log = logging.getLogger(__name__)


class JobNotes(Generic[Note]):
    """The notes in one folder, which several agents may share.

    Args:
        folder: made with the first note.
        kind: of the notes.
    """

    def __init__(self, folder: Path, kind: type[Note]) -> None:
        self._folder = folder
        self._kind = kind

    def write(self, key: str, note: Note) -> None:
        """Keep a note under a key, which must do as the name of a file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        part = self._folder / f".{uuid4().hex}.part"  # Several may write one note at once, in one process too.
        part.write_text(note.model_dump_json(), encoding="utf-8")
        part.replace(self._path(key))

    def read(self, key: str) -> Note | None:
        """Return the note of a key; None when there is none that can be read."""
        try:
            return self._kind.model_validate_json(self._path(key).read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            log.warning("cannot read %s: %s", self._path(key), error)
            return None

    def names(self) -> list[str]:
        """Return the keys of all notes, in no order; it reads none of them."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return [name[: -len(".json")] for name in names if name.endswith(".json") and not name.startswith(".")]

    def written_at(self, key: str) -> float:
        """Return when a note was written, in seconds since the epoch; 0 when there is none."""
        try:
            return self._path(key).stat().st_mtime
        except OSError:
            return 0.0

    def remove(self, key: str) -> None:
        """Remove the note of a key, if there is one."""
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.json"
