"""The environments that a machine keeps: shared by all agents of one home, so one goes only under its build lock."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import ClassVar

from prefect_launch.core.disk_cache import FRESH_SECONDS, LockedShelf
from prefect_launch.environments.venv import READY


class EnvironmentShelf(LockedShelf):
    """The folder of environments.

    Args:
        folder: where they are.
        limit_bytes: what they may take together; `None`: no limit.
        in_use: lists the environments that running processes use; blocks.
        fresh_seconds: what was used later than that stays.
    """

    name: ClassVar[str] = "environments"

    def __init__(
        self,
        folder: Path,
        limit_bytes: int | None,
        in_use: Callable[[], Collection[Path]],
        *,
        fresh_seconds: float = FRESH_SECONDS,
    ) -> None:
        super().__init__(folder, limit_bytes, fresh_seconds=fresh_seconds)
        self._in_use = in_use

    def is_in_use(self, path: Path) -> bool:
        return path in set(self._in_use())

    def used_at(self, path: Path) -> float:
        marker = path / READY
        return (marker if marker.exists() else path).stat().st_mtime
