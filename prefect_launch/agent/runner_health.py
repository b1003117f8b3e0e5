"""Runner health: whether an agent's resources (the Docker Engine) can be reached; none gets items while it cannot.

A ping that was answered counts for a few seconds, so an item costs none of its own. What went away is asked again and
again, and is taken for back only when the agent has seen what its last life had left there. Without this, an agent
whose engine is down would empty the queue in seconds, and crash every item.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

import anyio

from prefect_launch.errors import LaunchError, UnreachableError
from prefect_launch.runners.base import Runner

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

log = logging.getLogger(__name__)

T = TypeVar("T")

#: For how long an answer counts.
ANSWER_SECONDS: Final = 5.0
#: A busy engine answers a ping within a second; one that takes longer than this hangs.
_PING_SECONDS: Final = 10.0
#: Between two pings of what is away: at first, and at most when it comes and goes.
_PAUSE_SECONDS: Final = 1.0
_PAUSE_MAX_SECONDS: Final = 60.0
_CHECK_SECONDS: Final = 0.2


class RunnerHealth:
    """What one agent can reach.

    Args:
        session: its connection.
        runner: returns its runner of a resource.
    """

    def __init__(self, session: Session, runner: Callable[[str], Runner]) -> None:
        self._session = session
        self._runner = runner
        self._answered: dict[str, float] = {}
        self._unreachable: dict[str, str] = {}
        self._due: dict[str, float] = {}
        self._losses: dict[str, int] = {}

    @property
    def unreachable(self) -> dict[str, str]:
        """Why, by the name of each resource that cannot be reached."""
        return dict(self._unreachable)

    def describe(self) -> str:
        """Say what cannot be reached, for people; an empty text when all can."""
        return "; ".join(f"takes no items of {name}: {why}" for name, why in sorted(self._unreachable.items()))

    async def is_open(self, queue: str) -> bool:
        """Whether items of a queue may be claimed."""
        resource = (await self._session.queue(queue)).config.resource
        if resource in self._unreachable:
            return False
        if time.monotonic() - self._answered.get(resource, float("-inf")) < ANSWER_SECONDS:
            return True
        why = await self._ping(resource)
        if why is not None:
            self.mark_down(resource, why)
        return why is None

    def mark_down(self, resource: str, why: str) -> None:
        """Note that a resource cannot be reached; one that comes and goes is asked more and more seldom."""
        self._answered.pop(resource, None)
        if resource not in self._unreachable:
            log.warning("away %s: its items stay in the queue. %s", resource, why)
            losses = self._losses[resource] = self._losses.get(resource, 0) + 1
            self._due[resource] = time.monotonic() + self._pause(losses)
        self._unreachable[resource] = why

    def mark_up(self, resource: str) -> None:
        """Note that a run was started there: it is well again."""
        self._losses.pop(resource, None)

    async def retry_until_reachable(
        self, resource: str, call: Callable[[], Awaitable[T]], is_moot: Callable[[], bool]
    ) -> T:
        """Make a call again each time that the resource comes back, until it is answered.

        Args:
            resource: where it goes.
            call: may be made several times.
            is_moot: whether it need not be made any more.

        Raises:
            UnreachableError: when the resource is back, and the call is moot.
        """
        while True:
            try:
                return await call()
            except UnreachableError as error:
                self.mark_down(resource, str(error))
                await self._until_it_answers(resource)
                if is_moot():
                    raise

    async def watch(self, is_back: Callable[[str], Awaitable[None]]) -> None:
        """Check unreachable resources again and again, for ever.

        Args:
            is_back: is called with each resource that answers again, before items are claimed for it.
        """
        while True:
            await anyio.sleep(_CHECK_SECONDS)
            for resource in [name for name in self._unreachable if time.monotonic() >= self._due[name]]:
                self._due[resource] = time.monotonic() + self._pause(self._losses.get(resource, 1))
                if await self._ping(resource) is None:
                    await self._welcome(resource, is_back)

    async def _welcome(self, resource: str, is_back: Callable[[str], Awaitable[None]]) -> None:
        try:
            await is_back(resource)
        except LaunchError as error:
            log.warning("still-away %s: %s", resource, error)
            return
        self._answered[resource] = time.monotonic()
        del self._unreachable[resource]
        log.info("back %s: its items are taken again", resource)

    async def _until_it_answers(self, resource: str) -> None:
        while True:
            await anyio.sleep(_PAUSE_SECONDS)
            if await self._ping(resource) is None:
                return

    async def _ping(self, resource: str) -> str | None:
        """Return why a resource does not answer; `None` when it does."""
        why: str | None = f"It has not answered a ping within {_PING_SECONDS:g} s."
        with anyio.move_on_after(_PING_SECONDS):
            try:
                await self._runner(resource).ping()
                self._answered[resource] = time.monotonic()
                why = None
            except LaunchError as error:
                why = str(error)
        return why

    @staticmethod
    def _pause(losses: int) -> float:
        return min(_PAUSE_MAX_SECONDS, _PAUSE_SECONDS * 2.0 ** min(losses - 1, 10))
