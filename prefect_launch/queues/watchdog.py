"""The watchdog: an automation on the Prefect server that crashes an item in work whose agent is not heard of any more.

Other agents of a queue tell of a lost one after 90 s, and put its items back; for a queue with one agent only, there is
nobody to tell. It is off until somebody sets it, since it cannot know better: an agent that comes back after that time
finds its items ended, and stops what runs of them. It puts nothing back into a queue.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from prefect_launch.core.units import format_duration
from prefect_launch.errors import SpecError
from prefect_launch.server.pools import POOL_TYPE

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.events.schemas.automations import Automation, AutomationCore

    from prefect_launch.client.api import Api

NAME: Final = "prefect-launch watchdog"
DEFAULT_SECONDS: Final = 600.0
#: Heartbeats come every 30 s; an agent that is restarted, or cut off for a moment, must have time to beat again.
LEAST_SECONDS: Final = 120.0


def check_patience(seconds: float) -> float:
    """Return for how long an item's heartbeats may stop.

    Raises:
        SpecError: when that is too short.
    """
    if seconds < LEAST_SECONDS:
        raise SpecError(
            f"The watchdog's time is {format_duration(seconds)}; it must be {format_duration(LEAST_SECONDS)} or more,"
            " so that an agent that is restarted can take its items up again."
        )
    return seconds


async def aset_watchdog(api: Api, seconds: float = DEFAULT_SECONDS) -> bool:
    """Make sure that the server has the watchdog, once, with this time.

    Args:
        api: the server.
        seconds: for how long an item's heartbeats may stop, see `check_patience`.

    Returns:
        Whether it was made or changed; false: it was there.
    """
    async with api.connect() as server:
        client: PrefectClient = server.client  # type: ignore[attr-defined]
        found = await client.read_automations_by_name(NAME)
        if not found:
            await client.create_automation(_automation(seconds))
            return True
        first, *others = found
        for other in others:  # Two have made it at the same moment.
            await client.delete_automation(other.id)
        if first.enabled and _seconds_of(first) == seconds:
            return False
        await client.update_automation(first.id, _automation(seconds))
        return True


async def aremove_watchdog(api: Api) -> bool:
    """Take the watchdog off the server; return whether it was there."""
    async with api.connect() as server:
        client: PrefectClient = server.client  # type: ignore[attr-defined]
        found = await client.read_automations_by_name(NAME)
        for one in found:
            await client.delete_automation(one.id)
        return bool(found)


async def aread_watchdog(api: Api) -> float | None:
    """Return for how long an item's heartbeats may stop; `None` when there is no watchdog."""
    async with api.connect() as server:
        client: PrefectClient = server.client  # type: ignore[attr-defined]
        found = [one for one in await client.read_automations_by_name(NAME) if one.enabled]
        return _seconds_of(found[0]) if found else None


def _automation(seconds: float) -> AutomationCore:
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    related: dict[str, Any] = {"prefect.resource.role": "work-pool", "prefect.work-pool.type": POOL_TYPE}
    trigger = EventTrigger(
        # Of items alone: other flow runs beat too, and have no work pool of this type.
        match={"prefect.resource.id": "prefect.flow-run.*"},
        match_related=related,
        after={"prefect.flow-run.heartbeat"},
        # The next heartbeat, or any new state: its end, or its way back into the queue.
        expect={"prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )
    told = f"[run] Its agent was not heard of for {format_duration(seconds)}, says the watchdog."
    return AutomationCore(
        name=NAME,
        description=f"Ends an item as Crashed when its agent was not heard of for {format_duration(seconds)}.",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, name="Crashed", message=told)],
    )


def _seconds_of(automation: Automation) -> float | None:
    within: timedelta | None = getattr(automation.trigger, "within", None)
    return within.total_seconds() if within is not None else None
