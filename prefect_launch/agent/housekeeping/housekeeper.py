"""Housekeeping of one machine: removes finished runs, old run folders, environments, built images and git copies.

It runs in parallel with the agent's loop, at its start and every few minutes; threads measure the disks. One process of
a home does it at a time. It leaves the job store alone.

A finished run is left over when its agent was killed at the end of its item, or never came back. A run is ours when its
labels say so and its plan is in this home under the same claim. Its log is copied to the end before it is removed. It
keeps active runs, runs of items that have not ended, and runs of a direct `launch`, which are the caller's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio
from pydantic import BaseModel, ConfigDict

from prefect_launch.agent.context import AgentContext
from prefect_launch.agent.housekeeping.caches import EnvironmentCache, GitCache, ImageCache, RunFolderCache
from prefect_launch.agent.item.ownership import identity_of, plan_of
from prefect_launch.core.cancellation import finished
from prefect_launch.core.disk_cache import FRESH_SECONDS, EvictionReport, LRUCache
from prefect_launch.core.file_lock import locked_if_free
from prefect_launch.core.units import counted, format_size
from prefect_launch.errors import LaunchError
from prefect_launch.runners.base import Found, Labels, Runner, RunPlan, RunState
from prefect_launch.runners.process.process_index import ProcessIndex
from prefect_launch.runners.registry import used_resources
from prefect_launch.server.values import PAGE
from prefect_launch.settings.agent_config import AgentConfig

if TYPE_CHECKING:
    from prefect_launch.client.api import Api

log = logging.getLogger(__name__)


#: Its own agent removes it within seconds of its item's end.
SETTLED_SECONDS: Final = 60.0
#: A log that is not whole by then is left for the next time.
_LOG_SECONDS: Final = 120.0


@dataclass(frozen=True)
class _Leftover:
    item: UUID
    runner: Runner
    found: Found
    plan: RunPlan


@dataclass(frozen=True)
class Survey:
    """What exists on this machine.

    Attributes:
        items: ids of the items of which something exists, after the clean-up.
        removed: what was removed, or would be: the names of the runs.
        unseen: resources that could not be looked at.
    """

    items: set[str] = field(default_factory=set)
    removed: list[str] = field(default_factory=list)
    unseen: set[str] = field(default_factory=set)


async def remove_finished(
    context: AgentContext, held: Collection[UUID], *, dry_run: bool = False, settled_seconds: float = SETTLED_SECONDS
) -> Survey:
    """Remove the finished runs of items that have ended.

    Args:
        context: the agent's.
        held: the agent's active items.
        dry_run: only report what would be removed.
        settled_seconds: how long ago an item must have ended.

    Raises:
        LaunchError: when the server does not answer.
    """
    survey = Survey()
    leftovers: list[_Leftover] = []
    used = await anyio.to_thread.run_sync(used_resources, context.config.home)
    for resource in sorted(used.union(context.runners)):
        try:
            runner = context.runner(resource)
            found = await runner.find({})
        except LaunchError as error:
            log.debug("cannot look for finished runs on %s: %s", resource, error)
            survey.unseen.add(resource)
            continue
        survey.items.update(one.labels[Labels.ITEM] for one in found if Labels.ITEM in one.labels)
        ours = [await anyio.to_thread.run_sync(_leftover, context, runner, one) for one in found]
        leftovers += [one for one in ours if one is not None and one.item not in held]
    ended = await _ended(context, {one.item for one in leftovers}, settled_seconds)
    for one in leftovers:
        if one.item in ended and (dry_run or await _remove(one)):
            survey.removed.append(one.plan.name)
            survey.items.discard(str(one.item))
    return survey


def _leftover(context: AgentContext, runner: Runner, found: Found) -> _Leftover | None:
    """Return a run that has ended, when it is certainly one that an agent of this home made."""
    if found.state in (RunState.SUBMITTED, RunState.RUNNING) or Labels.AGENT not in found.labels:
        return None
    identity = identity_of(found)
    plan = plan_of(context.config.machine, identity) if identity is not None else None
    return None if identity is None or plan is None else _Leftover(identity.item_id, runner, found, plan)


async def _ended(context: AgentContext, ids: Collection[UUID], settled_seconds: float) -> set[UUID]:
    """Return which of these items have ended, and not just now."""
    ended = set()
    wanted = sorted(ids)
    for start in range(0, len(wanted), PAGE):
        for item in await context.session.server.list_items(ids=wanted[start : start + PAGE]):
            at = item.state.timestamp if item.state is not None else None
            if item.is_terminal and (at is None or time.time() - at.timestamp() >= settled_seconds):
                ended.add(item.id)
    return ended


async def _remove(one: _Leftover) -> bool:
    """Copy the rest of its log, then remove it."""
    try:
        if one.found.state is RunState.EXITED:
            with anyio.fail_after(_LOG_SECONDS):
                end = await one.runner.watch(one.found.handle, one.plan)
            if not end.log_complete:
                log.warning("%s not-removed %s: %s", one.item, one.found.handle, " ".join(end.warnings))
                return False
        await one.runner.remove(one.found.handle)
    except (LaunchError, OSError, TimeoutError) as error:
        log.warning("%s not-removed %s: %s", one.item, one.found.handle, error)
        return False
    return True


#: Between two rounds.
CHECK_SECONDS: Final = 300.0


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
        parts = [counted(len(self.finished), "finished run")] if self.finished else []
        parts += [
            f"{len(one.evicted)} {one.cache} ({format_size(one.evicted_bytes)})" for one in self.caches if one.evicted
        ]
        return ", ".join(parts) or "nothing"


class Housekeeper:
    """Does the housekeeping of one agent's home.

    Args:
        context: the agent's.
        held: lists its active items.
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
        in_use = ProcessIndex(home).environments_in_use
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
        """Do it again and again, and never return; a step that fails is tried again the next time."""
        while True:
            try:
                report = await self.once()
                if report is not None and not report.is_nothing:
                    log.info("housekeeping removed %s", report.describe())
            except (LaunchError, OSError) as error:
                log.warning("housekeeping failed: %s", error)
            await anyio.sleep(CHECK_SECONDS)

    async def once(self, *, dry_run: bool = False) -> Report | None:
        """Do it once.

        Args:
            dry_run: only report what would be removed.

        Returns:
            What went; `None` when another process does it just now.

        Raises:
            LaunchError: when the server does not answer.
        """
        with ExitStack() as held:
            file = self._context.config.home / "housekeeping.lock"
            is_ours = await finished(anyio.to_thread.run_sync(held.enter_context, locked_if_free(file)))
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
    """Do the housekeeping of an agent's home once, whether an agent runs or not.

    Args:
        api: the server that its items are on.
        config: the agent's.
        dry_run: only report what would be removed.

    Returns:
        What went, or would; `None` when an agent does it just now.
    """

    async with api.open() as session:
        context = AgentContext(config, session)
        try:
            return await Housekeeper(context).once(dry_run=dry_run)
        finally:
            await context.aclose()
