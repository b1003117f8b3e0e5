"""Atomic write of a small text file: a reader sees the old content or the new, never a half."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

#: Of a new file; the process's umask applies.
_NEW_FILE_MODE = 0o666


def write_atomically(path: Path, text: str) -> None:
    """Replace a file's content, keeping its mode; the ranks of one training job may all do it at once.

    A file that is a mount point by itself cannot be replaced, and is written in place: so Kubernetes hands over a
    container's last message, and reads it when the container has ended.

    Raises:
        OSError: when it cannot be written; the old file is then untouched.
    """
    # Ours alone: O_EXCL, and a name that no other process or thread of any host makes.
    temporary = path.with_name(f".{path.name[:100]}.{os.urandom(8).hex()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _NEW_FILE_MODE)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
        with contextlib.suppress(FileNotFoundError):
            os.chmod(temporary, path.stat().st_mode)
        _replace(temporary, path, text)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _replace(temporary: Path, path: Path, text: str) -> None:
    try:
        os.replace(temporary, path)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        path.write_text(text, encoding="utf-8")
        os.unlink(temporary)
