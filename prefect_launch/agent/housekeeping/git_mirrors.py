"""The copies of git remotes that a machine keeps: one goes only under its lock, and the next fetch makes it anew."""

from __future__ import annotations

from typing import ClassVar

from prefect_launch.core.disk_cache import LockedShelf


class GitShelf(LockedShelf):
    """The folder of copies, see `prefect_launch.sources.git_cache`; each use sets its time under its lock."""

    name: ClassVar[str] = "git copies"
