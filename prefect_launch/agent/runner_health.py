"""Runner health: whether an agent's resources (the Docker Engine) can be reached; none gets items while it cannot.

A resource may have several places, such as the clusters of a kubeconfig: each is asked for itself, and closes the
queues that lead to it. A queue whose place is full is closed alone, and tried again with one item after each pause.

An answered ping counts for a few seconds, so an item needs no ping of its own. An unreachable resource is pinged again
and again, and counts as back only when the agent has listed the runs that its last life left there. Without this, an
agent whose engine is down would empty the queue in seconds, and crash every item.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import anyio

from prefect_launch.errors import LaunchError, NoRoomError, NothingMadeError, UnreachableError
from prefect_launch.queues.agent_status import problem_of
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


class Part(NamedTuple):
    """What is asked, and closed, as one.

    Attributes:
        resource: its name.
        place: as `Runner.place_of` gives it; empty: the resource's own, whose loss closes all of it where it is not
            known what runs there.
    """

    resource: str
    place: str = ""

    def __str__(self) -> str:
        return f"{self.resource} ({self.place})" if self.place else self.resource


@dataclass
class _Full:
    """A queue whose place takes no more runs.

    Attributes:
        why: as it was reported last.
        due: when an item of it may be claimed again, by the monotonic clock.
        refusals: how many there were in a row, of one item each after the first.
        is_tried: whether an item was claimed since the last refusal, to see whether there is room again.
    """

    why: str
    due: float
    refusals: int = 1
    is_tried: bool = False


class RunnerHealth:
    """What one agent can reach.

    Args:
        session: its connection.
        runner: returns its runner of a resource.
    """

    def __init__(self, session: Session, runner: Callable[[str], Runner]) -> None:
        self._session = session
        self._runner = runner
        self._answered: dict[Part, float] = {}
        self._unreachable: dict[Part, str] = {}
        self._unseen: set[str] = set()
        self._full: dict[str, _Full] = {}
        self._closed: dict[str, str] = {}
        self._due: dict[Part, float] = {}
        self._losses: dict[Part, int] = {}
        self._pinging: defaultdict[Part, anyio.Lock] = defaultdict(anyio.Lock)
        self._outcomes: dict[Part, tuple[float, str | None]] = {}

    @property
    def unreachable(self) -> dict[str, str]:
        """Why, by the name of each resource that cannot be reached, and of each queue whose own place takes none."""
        resources = {part.resource: why for part, why in self._unreachable.items() if not part.place}
        full = {queue: one.why for queue, one in self._full.items() if time.monotonic() < one.due}
        return {**resources, **{problem_of(queue): why for queue, why in {**self._closed, **full}.items()}}

    def describe(self) -> str:
        """Say what cannot be reached, for people; an empty text when all can."""
        return "; ".join(f"takes no items of {name}: {why}" for name, why in sorted(self.unreachable.items()))

    async def is_open(self, queue: str) -> bool:
        """Whether items of a queue may be claimed."""
        if queue in self._full and time.monotonic() < self._full[queue].due:
            return False
        config = (await self._session.queue(queue)).config
        part = Part(config.resource, self._runner(config.resource).place_of(config.resource_args))
        if config.resource in self._unseen:
            return False
        if part not in self._unreachable and not self._has_answered(part):
            why = await self._ping(part)
            if why is not None:
                self.mark_down(part, why)
        if part.place and part in self._unreachable:
            self._closed[queue] = self._unreachable[part]
        else:
            self._closed.pop(queue, None)
        return part not in self._unreachable

    def mark_unseen(self, resource: str, why: str) -> None:
        """Note that the runs on a resource could not be listed: its queues get no items until they are."""
        self._unseen.add(resource)
        self.mark_down(Part(resource), why)

    def mark_down(self, part: Part, why: str) -> None:
        """Note that a resource cannot be reached; one that comes and goes is asked more and more seldom."""
        self._answered.pop(part, None)
        if part not in self._unreachable:
            log.warning("away %s: its items stay in the queue. %s", part, why)
            losses = self._losses[part] = self._losses.get(part, 0) + 1
            self._due[part] = time.monotonic() + self._pause(losses)
        self._unreachable[part] = why

    def mark_full(self, queue: str, why: str) -> None:
        """Note that a queue's place takes no more runs: one item tries again after a pause, which grows."""
        full = self._full.get(queue)
        if full is None:
            log.warning("full %s: its items stay in it. %s", queue, why)
            self._full[queue] = _Full(why, time.monotonic() + self._pause(1))
        elif full.is_tried:
            refusals = full.refusals + 1
            self._full[queue] = _Full(why, time.monotonic() + self._pause(refusals), refusals)

    def note_claim(self, queue: str) -> None:
        """Note that an item of a queue was claimed: of a full one, no other is until a run was started or refused."""
        full = self._full.get(queue)
        if full is not None:
            full.is_tried, full.due = True, time.monotonic() + self._pause(full.refusals)

    def mark_up(self, part: Part, queue: str) -> None:
        """Note that a run of a queue was started there: it is well again."""
        self._losses.pop(part, None)
        self._full.pop(queue, None)

    def _has_answered(self, part: Part) -> bool:
        return time.monotonic() - self._answered.get(part, float("-inf")) < ANSWER_SECONDS

    async def retry_until_reachable(
        self, part: Part, call: Callable[[], Awaitable[T]], is_moot: Callable[[], bool]
    ) -> T:
        """Make a call again each time that the resource comes back, until it is answered.

        A queue without room is tried again after a pause, which grows: the resource is reachable.

        Args:
            part: where it goes.
            call: may be made several times.
            is_moot: whether it need not be made any more.

        Raises:
            NothingMadeError: when there is no room, and nothing that could wait for it.
            UnreachableError: when the resource is back, and the call is moot.
        """
        refusals = 0
        while True:
            try:
                return await call()
            except NothingMadeError:
                raise
            except NoRoomError:
                refusals += 1
                with anyio.move_on_after(self._pause(refusals)):
                    while not is_moot():  # noqa: ASYNC110 - whether it is moot may come from anywhere
                        await anyio.sleep(_PAUSE_SECONDS)
                if is_moot():
                    raise
            except UnreachableError as error:
                self.mark_down(part, str(error))
                await self._until_it_answers(part)
                if is_moot():
                    raise

    async def watch(self, is_back: Callable[[str], Awaitable[None]]) -> None:
        """Check unreachable resources again and again; never returns.

        Args:
            is_back: is called with each resource that answers again, before items are claimed for it.
        """
        while True:
            await anyio.sleep(_CHECK_SECONDS)
            for part in [one for one in self._unreachable if time.monotonic() >= self._due[one]]:
                self._due[part] = time.monotonic() + self._pause(self._losses.get(part, 1))
                if await self._ping(part) is None:
                    await self._welcome(part, is_back)

    async def _welcome(self, part: Part, is_back: Callable[[str], Awaitable[None]]) -> None:
        try:
            await is_back(part.resource)
        except LaunchError as error:
            log.warning("still-away %s: %s", part, error)
            return
        self._answered[part] = time.monotonic()
        del self._unreachable[part]
        self._unseen.discard(part.resource)
        log.info("back %s: its items are taken again", part)

    async def _until_it_answers(self, part: Part) -> None:
        while True:
            since = time.monotonic()
            await anyio.sleep(_PAUSE_SECONDS)
            if await self._ping(part, since) is None:
                return

    async def _ping(self, part: Part, since: float | None = None) -> str | None:
        """Return why a resource does not answer; `None` when it does.

        Args:
            part: is asked once at a time: who comes meanwhile waits for the outcome.
            since: from when on the outcome of another's ping does, by the monotonic clock; by default from now on.
        """
        since = time.monotonic() if since is None else since
        async with self._pinging[part]:
            at, why = self._outcomes.get(part, (float("-inf"), None))
            if at < since:
                why = await self._ask(part)
                self._outcomes[part] = time.monotonic(), why
        return why

    async def _ask(self, part: Part) -> str | None:
        why: str | None = f"It has not answered a ping within {_PING_SECONDS:g} s."
        with anyio.move_on_after(_PING_SECONDS):
            try:
                await self._runner(part.resource).ping_place(part.place)
                self._answered[part] = time.monotonic()
                why = None
            except LaunchError as error:
                why = str(error)
        return why

    @staticmethod
    def _pause(losses: int) -> float:
        return min(_PAUSE_MAX_SECONDS, _PAUSE_SECONDS * 2.0 ** min(losses - 1, 10))
