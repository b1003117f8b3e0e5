"""Housekeeping: finished runs, old work folders, environments, built images and copies of git remotes go, so that a
machine does not fill up.

A hook beside the agent's loop, at its start and every few minutes; disks are measured in threads. One process does it
at a time on one home. The job store is not its business: what runs have left there stays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio
from pydantic import BaseModel, ConfigDict

from prefect_launch.agent.housekeeping.caches import EnvironmentCache, GitCache, ImageCache, RunFolderCache
from prefect_launch.agent.housekeeping.finished_runs import SETTLED_SECONDS, remove_finished
from prefect_launch.agent.item.transitions import log
from prefect_launch.core.disk_cache import FRESH_SECONDS, EvictionReport, LRUCache
from prefect_launch.core.file_lock import locked_if_free
from prefect_launch.core.units import format_size
from prefect_launch.errors import LaunchError
from prefect_launch.runners.process.files import environments_in_use
from prefect_launch.settings.agent_config import AgentConfig

if TYPE_CHECKING:
    from prefect_launch.agent.context import AgentContext
    from prefect_launch.client.api import Api

#: Between two looks.
LOOK_SECONDS: Final = 300.0


class Report(BaseModel):
    """What one round of housekeeping has removed, or would remove."""

    model_config = ConfigDict(frozen=True)

    finished: tuple[str, ...] = ()
    caches: tuple[EvictionReport, ...] = ()

    @property
    def is_nothing(self) -> bool:
        """Whether nothing went."""
        return not self.finished and not any(cache.evicted for cache in self.caches)

    def describe(self) -> str:
        """Say what went, in one line."""
        parts = [f"{len(self.finished)} finished runs"] if self.finished else []
        parts += [
            f"{len(one.evicted)} {one.cache} ({format_size(one.evicted_bytes)})" for one in self.caches if one.evicted
        ]
        return ", ".join(parts) or "nothing"


class Housekeeper:
    """Keeps the house of one agent.

    Args:
        context: the agent's.
        held: lists the items that it has in work.
        fresh_seconds: what was used later than that stays.
        settled_seconds: how long ago the item of a finished run must have ended.
    """

    def __init__(
        self,
        context: AgentContext,
        held: Callable[[], Collection[UUID]] = tuple,
        *,
        fresh_seconds: float = FRESH_SECONDS,
        settled_seconds: float = SETTLED_SECONDS,
    ) -> None:
        self._context = context
        self._held = held
        self._settled_seconds = settled_seconds
        config, home = context.config, context.config.home
        in_use = partial(environments_in_use, home / "processes")
        self._runs = RunFolderCache(
            home / "runs", config.keep_runs, context.session.server, fresh_seconds=fresh_seconds
        )
        self._caches: tuple[LRUCache, ...] = (
            self._runs,
            EnvironmentCache(home / "environments", config.keep_environments, in_use, fresh_seconds=fresh_seconds),
            GitCache(home / "git", config.keep_git, fresh_seconds=fresh_seconds),
            ImageCache(home, config.keep_images, lambda: context.images.engine, fresh_seconds=fresh_seconds),
        )

    async def keep(self) -> None:
        """Do it again and again, for ever; what fails is tried the next time."""
        while True:
            try:
                report = await self.once()
                if report is not None and not report.is_nothing:
                    log.info("housekeeping removed %s", report.describe())
            except (LaunchError, OSError) as error:
                log.warning("housekeeping failed: %s", error)
            await anyio.sleep(LOOK_SECONDS)

    async def once(self, *, dry_run: bool = False) -> Report | None:
        """Do it once.

        Args:
            dry_run: only tell what would go.

        Returns:
            What went; `None` when another process does it just now.

        Raises:
            LaunchError: when the server does not answer.
        """
        with locked_if_free(self._context.config.home / "housekeeping.lock") as is_ours:
            return await self._once(dry_run) if is_ours else None

    async def _once(self, dry_run: bool) -> Report:
        survey = await remove_finished(
            self._context, self._held(), dry_run=dry_run, settled_seconds=self._settled_seconds
        )
        self._runs.existing = survey.items | {str(item) for item in self._held()}
        self._runs.is_blind = bool(survey.unseen)
        reports = [await cache.evict(dry_run=dry_run) for cache in self._caches]
        return Report(finished=tuple(survey.removed), caches=tuple(reports))


async def clean(api: Api, config: AgentConfig, *, dry_run: bool = False) -> Report | None:
    """Keep the house of an agent's home once, whether an agent runs or not.

    Args:
        api: the server that its items are on.
        config: the agent's.
        dry_run: only tell what would go.

    Returns:
        What went, or would; `None` when an agent does it just now.
    """
    from prefect_launch.agent.context import AgentContext

    async with api.open() as session:
        context = AgentContext(config, session)
        try:
            return await Housekeeper(context).once(dry_run=dry_run)
        finally:
            await context.aclose()
