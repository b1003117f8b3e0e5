"""Notifications of items: one of Prefect's automations, which sends a message through a notification block.

The server itself watches and sends, so no process of ours is needed for it. People change, pause and delete the
automation on the Automations page.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from prefect_launch.core.states import ItemState
from prefect_launch.core.units import format_duration
from prefect_launch.errors import NotFoundError, SpecError, unknown_name
from prefect_launch.server.values import POOL_TYPE

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.events.schemas.automations import AutomationCore, EventTrigger

    from prefect_launch.queues.session import Session

#: What a notification can be about, besides an item that is `STUCK`.
_ENDS: Final = (ItemState.COMPLETED, ItemState.FAILED, ItemState.CRASHED, ItemState.CANCELLED)
#: An item that has waited for so long that somebody should look.
STUCK: Final = "stuck"
#: What may be named, in lower case.
CAUSES: Final = (*(state.label.lower() for state in _ENDS), STUCK)
DEFAULT_WAIT_SECONDS: Final = 3_600.0
#: The least that the server takes for the absence of an event.
_MIN_WAIT_SECONDS: Final = 10.0
_SUBJECT: Final = "{{ flow_run.name }}: {{ flow_run.state.name }}"
_BODY: Final = (
    "{{ flow_run.name }} of the queue {{ work_pool.name }} is {{ flow_run.state.name }}:"
    " {{ flow_run.state.message }}\n{{ flow_run|ui_url }}"
)


@dataclass(frozen=True)
class Notification:
    """What somebody wants to be told, and how.

    Attributes:
        causes: of `CAUSES`, such as `failed` and `stuck`.
        block: the notification block, as `type/name`.
        queue: only of this queue; by default of all.
        wait_seconds: how long an item must have waited to be stuck.
        name: of the automation; by default made of the other attributes.
    """

    causes: tuple[str, ...]
    block: str
    queue: str | None = None
    wait_seconds: float = DEFAULT_WAIT_SECONDS
    name: str | None = None

    def __post_init__(self) -> None:
        if not self.causes:
            raise SpecError(f"Name what to be told of: {', '.join(CAUSES)}.")
        for cause in self.causes:
            if cause not in CAUSES:
                raise unknown_name("cause", cause, CAUSES)
        if not all(self.block.partition("/")):
            raise SpecError(
                f"Invalid block {self.block!r}: give the type and the name of a notification block, such as"
                " slack-webhook/ops. 'prefect block ls' lists them."
            )
        if self.wait_seconds < _MIN_WAIT_SECONDS:
            raise SpecError(
                f"Invalid wait of {self.wait_seconds:g} s: the server takes {_MIN_WAIT_SECONDS:g} s or more."
            )

    @property
    def title(self) -> str:
        """The name of the automation."""
        where = f" of {self.queue}" if self.queue else ""
        return self.name or f"prefect-launch: {', '.join(self.causes)} items{where} to {self.block}"

    def automation(self, block_id: UUID) -> AutomationCore:
        """Return the automation that sends it through a block of this id."""
        from prefect.events.actions import SendNotification
        from prefect.events.schemas.automations import AutomationCore, CompoundTrigger

        # Prefect's client updates only with fields that were given, and its server wants them all.
        triggers = [*self._ends(), *self._stuck()]
        any_of = CompoundTrigger(type="compound", require="any", triggers=triggers, within=None)
        action = SendNotification(type="send-notification", block_document_id=block_id, subject=_SUBJECT, body=_BODY)
        return AutomationCore(
            name=self.title,
            description="Made by 'prefect-launch notify'.",
            enabled=True,
            trigger=triggers[0] if len(triggers) == 1 else any_of,
            actions=[action],
        )

    def _ends(self) -> list[EventTrigger]:
        from prefect.events.schemas.automations import EventTrigger, Posture

        events = {_event(state) for state in _ENDS if state.label.lower() in self.causes}
        if not events:
            return []
        reactive = EventTrigger(
            after=set(), expect=events, posture=Posture.Reactive, within=timedelta(0), **self._of_items()
        )
        return [reactive]

    def _stuck(self) -> list[EventTrigger]:
        from prefect.events.schemas.automations import EventTrigger, Posture

        if STUCK not in self.causes:
            return []
        return [
            EventTrigger(
                after={_event(ItemState.QUEUED)},
                expect={_event(ItemState.RUNNING), *map(_event, _ENDS)},
                posture=Posture.Proactive,
                within=timedelta(seconds=self.wait_seconds),
                **self._of_items(),
            )
        ]

    def _of_items(self) -> dict[str, Any]:
        """Return what makes a trigger one of items, each for itself."""
        related = {"prefect.resource.role": "work-pool", "prefect.work-pool.type": POOL_TYPE}
        return {
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "match_related": {**related, **({"prefect.resource.name": self.queue} if self.queue else {})},
            "for_each": {"prefect.resource.id"},
            "threshold": 1,
            "type": "event",
        }

    def in_words(self) -> str:
        """Say what it tells of."""
        ends = [cause for cause in self.causes if cause != STUCK]
        parts = [f"has ended as {' or '.join(ends)}"] if ends else []
        parts += [f"has waited for {format_duration(self.wait_seconds)}"] if STUCK in self.causes else []
        return f"an item{f' of {self.queue}' if self.queue else ''} {' or '.join(parts)}"


def _event(state: ItemState) -> str:
    return f"prefect.flow-run.{state.label}"


async def write_notification(session: Session, wanted: Notification) -> UUID:
    """Create the automation of a notification, or update the one of its name; return its id.

    Raises:
        NotFoundError: for an unknown queue or block, and for a block that sends nothing.
        ServerUnavailableError: when the server does not answer.
    """
    if wanted.queue is not None:
        await session.queue(wanted.queue)
    client = session.server.client
    block_id = await _block_id(client, wanted.block)
    automation = wanted.automation(block_id)
    for there in await client.read_automations_by_name(wanted.title):
        await client.update_automation(there.id, automation)
        return there.id
    return await client.create_automation(automation)


async def _block_id(client: Any, block: str) -> UUID:
    from prefect.exceptions import ObjectNotFound

    kind, _, name = block.partition("/")
    try:
        document = await client.read_block_document_by_name(name, block_type_slug=kind, include_secrets=False)
    except ObjectNotFound:
        raise NotFoundError(
            f"There is no block {block!r}. 'prefect block ls' lists them; make one on the Blocks page, or in Python."
        ) from None
    if "notify" not in (document.block_schema.capabilities or ()):
        raise NotFoundError(
            f"The block {block!r} sends no notifications. Name one that does, such as one of the type slack-webhook."
        )
    found: UUID = document.id
    return found
