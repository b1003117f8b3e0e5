"""A build's log, in a file that grows while the build runs; whoever shows it follows the file."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

from prefect_launch.errors import InfrastructureError


class BuildLog:
    """Writes pieces of output, from any thread.

    Args:
        path: the file; what is there already stays.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        """Add a piece of output; a build that was given up writes nothing more.

        Raises:
            InfrastructureError: when the disk does not take it.
        """
        with self._lock:
            if self._file.closed:
                return
            try:
                self._file.write(text.encode("utf-8", "replace"))
                self._file.flush()
            except OSError as error:
                raise InfrastructureError(
                    f"The build's log {str(self._path)!r} cannot be written: {error}. Look at this machine's disk."
                ) from error

    def close(self) -> None:
        """Let go of the file; what could not be written is tried once more, and was told by `write` already."""
        with self._lock, suppress(OSError):
            self._file.close()
