"""Symbolic links in the binds of a container: resolved on the host, and refused below what the queue's owner wrote.

A job with a writable bind can leave a link in it, which the engine would follow as root, to any folder of the host.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from prefect_launch.errors import QueueError, UnsafeSpecError
from prefect_launch.runners.base import HostFolder


def resolve_binds(host_config: Mapping[str, Any], folders: Iterable[HostFolder], *, is_local: bool) -> dict[str, Any]:
    """Return a `HostConfig` whose binds name the real paths of these folders. Blocks: call it in a thread.

    Args:
        host_config: of the Engine API's "create a container"; it is not changed.
        folders: of the host, that its binds name.
        is_local: whether the engine sees this machine's folders. Of another one, nothing can be looked at.

    Raises:
        UnsafeSpecError: when a part of a path is a link which the queue's owner did not write, or cannot be looked at
            though the owner has set no pattern and no enum.
        QueueError: when a folder is not there.
    """
    real = {}
    for folder in folders:
        if is_local:
            real[folder.path] = _real_path(folder)
        elif not folder.is_bounded:
            raise UnsafeSpecError(
                f"The folder {folder.path!r} is named by the item, and the Docker Engine is on another host, where no"
                " agent can see whether it is a link to another folder. The queue's owner can say by a pattern or an"
                " enum of the template variables which values there may be."
            )
    mounts = [
        {**mount, "Source": real.get(mount["Source"], mount["Source"])} if mount["Type"] == "bind" else mount
        for mount in host_config.get("Mounts", ())
    ]
    return {**host_config, **({"Mounts": mounts} if mounts else {})}


def _real_path(folder: HostFolder) -> str:
    below = os.path.realpath(folder.below)
    expected = os.path.normpath(os.path.join(below, os.path.relpath(folder.path, folder.below)))
    found = os.path.realpath(folder.path)
    if found != expected:
        raise UnsafeSpecError(
            f"The folder {folder.path!r} is not bound into the container: below {folder.below!r}, which the queue's"
            " owner wrote, a part of its path is a symbolic link, and a job may have made it. Name another folder; the"
            " queue's owner can bind the link's own folder by the queue's config."
        )
    if not os.path.lexists(found):
        raise QueueError(
            f"The queue's config mounts {folder.path!r}, which is not on the machine of the Docker Engine, or this"
            " agent cannot look at it. Make it there, or correct the queue's volume or mount: no folder of the host is"
            " made for it. An agent in a container needs the folder under the same path."
        )
    return found
