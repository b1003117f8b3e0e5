"""The id of an agent's home: it tells one home from another, whatever the machine is called."""

from __future__ import annotations

import hashlib
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final
from uuid import uuid4

_FILE: Final = "home-id"


def home_id(home: Path) -> str:
    """Return the id of a home; it is made at the first call, and stays.

    Args:
        home: the folder of prefect-launch on this machine. When nothing can be written there, the id is made of the
            machine's name and the folder's path.
    """
    file = home / _FILE
    try:
        if not file.exists():
            home.mkdir(parents=True, exist_ok=True)
            new = home / f".{_FILE}-{uuid4().hex}"
            new.write_text(uuid4().hex)
            with suppress(FileExistsError):  # Another agent of the home was faster.
                os.link(new, file)
            new.unlink()
        return file.read_text().strip()
    except OSError:
        return hashlib.sha256(f"{socket.gethostname()} {home}".encode()).hexdigest()[:32]
