"""Who calls: the person at this machine, as far as it knows."""

from __future__ import annotations

import getpass
import os
import socket

from prefect_launch.core.names import safe_name

#: W&B's own variable for it.
_NAME_VARIABLE = "WANDB_USERNAME"


def caller() -> str:
    """Return who calls: the user and the machine; a container may have no name for its user."""
    return f"{_login() or 'somebody'} on {socket.gethostname()}"


def author_here() -> str | None:
    """Return who submits an item that names no author: `$WANDB_USERNAME`, else the login name; `None` without one."""
    name = os.environ.get(_NAME_VARIABLE) or _login()
    return safe_name(name) if name else None


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
