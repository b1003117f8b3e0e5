"""Which image a container is made of, and how it comes to its engine.

A plan may name an image twice: by the digest that its tag meant when its item was queued, and by its name. The former
is run where the engine has it or can pull it. Where it cannot (a registry out of the engine's sight, an image that was
loaded by hand), what has the name will do, as if no digest were known.
"""

from __future__ import annotations

import logging
import time
from typing import NamedTuple

from prefect_launch.errors import LaunchError, UnreachableError
from prefect_launch.registries.base import Registry
from prefect_launch.runners.base import RunPlan
from prefect_launch.runners.docker.engine import Engine, Image
from prefect_launch.runners.docker.options import apply_options

#: To give up on a registry out of its sight takes an engine a quarter of a minute; not every start is to wait for it.
PEACE_SECONDS = 300.0

log = logging.getLogger("prefect_launch.agent")


class NamedImage(NamedTuple):
    """An image that the engine has, and the name that it was found by."""

    name: str
    image: Image


class ContainerImages:
    """The images of one engine, for the plans of containers.

    Args:
        engine: that has them and pulls them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._not_had: dict[str, float] = {}

    async def find(self, plan: RunPlan) -> NamedImage | None:
        """Return the image that a container of a plan is made of; None when the engine has none."""
        for name in filter(None, (plan.image_at_enqueue, plan.image)):
            image = await self._engine.image(name)
            if image is not None:
                return NamedImage(name, image)
        return None

    async def is_missing(self, plan: RunPlan) -> bool:
        """Whether something is to be pulled for a plan."""
        found = await self.find(plan)
        if found is None:
            return True
        wanted = plan.image_at_enqueue
        return wanted is not None and found.name != wanted and not self._is_left_alone(wanted)

    async def bring(self, plan: RunPlan, registry: Registry | None) -> None:
        """Pull what is missing.

        Args:
            plan: names the image.
            registry: who knows the credentials; None: as the engine's machine is logged in.

        Raises:
            LaunchError: when the engine can pull it by none of its names.
        """
        if not await self.is_missing(plan):
            return
        wanted = plan.image_at_enqueue
        if wanted is not None and not self._is_left_alone(wanted):
            try:
                await self._pull(wanted, plan, registry)
            except UnreachableError:
                raise
            except LaunchError as error:
                log.info("%s not-pulled-by-digest %s", plan.item_id, error)
                self._leave_alone(wanted)
        if await self.find(plan) is None:
            await self._pull(str(plan.image), plan, registry)

    async def _pull(self, name: str, plan: RunPlan, registry: Registry | None) -> None:
        credentials = await registry.credentials_for(name) if registry is not None else None
        await self._engine.pull(name, apply_options({}, plan.options).get("platform"), credentials)

    def _is_left_alone(self, name: str) -> bool:
        return time.monotonic() < self._not_had.get(name, 0.0)

    def _leave_alone(self, name: str) -> None:
        now = time.monotonic()
        self._not_had = {known: until for known, until in self._not_had.items() if now < until}
        self._not_had[name] = now + PEACE_SECONDS
