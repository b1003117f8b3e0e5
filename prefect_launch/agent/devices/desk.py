"""The desk: where an agent's items get their devices, before they are claimed.

The intake asks it of each item that a poll shows (`admit`): one that fits has its devices from then on, until
`release`; one that does not fit waits in line, and is not claimed. What can never fit on this machine is left to the
queue's other agents; when there is none, it is let in, so that its execution refuses it with the reason. At its start
an execution writes what it got into its plan (`equip`), and onto what runs as a label, of which the next agent of this
name makes its book again (`restore`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

from prefect_launch.agent.devices.ask import Ask, read_ask
from prefect_launch.agent.devices.book import Book, Grant, Refusal
from prefect_launch.agent.devices.line import Line
from prefect_launch.agent.devices.reader import CardReader, Cards, NvmlReader, names_of
from prefect_launch.agent.devices.stock import NONE, make_stock
from prefect_launch.agent.tracker import is_scheduler
from prefect_launch.errors import LaunchError, OperatorError, SpecError
from prefect_launch.item_id import short_id
from prefect_launch.item_spec import spec_of
from prefect_launch.planning import save_plan
from prefect_launch.priority import Priority
from prefect_launch.runners.base import Labels, Runner, RunPlan
from prefect_launch.runners.gpu_option import visible_gpus
from prefect_launch.safety.options import merge_resource_args
from prefect_launch.server.values import Item, LogRecord
from prefect_launch.templates import QueueConfig

if TYPE_CHECKING:
    from prefect_launch.agent.config import AgentConfig
    from prefect_launch.session import Session

log = logging.getLogger("prefect_launch.agent")

#: One look at the cards serves all items of a poll.
_LOOK_SECONDS: Final = 1.0
#: For how long it is taken as known which agents serve a queue: many items of a poll may ask.
_ALONE_SECONDS: Final = 5.0
#: How many items' asks are remembered.
_REMEMBERED: Final = 2000
_ONLINE: Final = "ONLINE"
_RANKS: Final = {priority.work_queue: int(priority) for priority in Priority}


class NotNowError(OperatorError):
    """The devices that an item was claimed for cannot be had after all: it goes back into its queue."""


class Desk:
    """Gives out the devices of one agent.

    Args:
        config: the agent's.
        session: its connection.
        runner: returns its runner of a resource.
        reader: the door to the cards; by default NVIDIA's driver.
    """

    def __init__(
        self, config: AgentConfig, session: Session, runner: Callable[[str], Runner], reader: CardReader | None = None
    ) -> None:
        self._config = config
        self._session = session
        self._runner = runner
        self._reader = reader or NvmlReader()
        self._seen = Cards()
        self._looked_at = float("-inf")
        self._book = Book()
        #: Whether there is no other agent, by queue, and when that was read.
        self._alone: dict[str, tuple[float, bool]] = {}
        self._line = Line(config.device_patience_seconds)
        #: What items ask for, with the queue's config that it was read under; without one, it is known for certain.
        self._asks: dict[UUID, tuple[QueueConfig | None, Ask]] = {}

    async def open(self) -> None:
        """See what the machine has.

        Raises:
            AgentConfigError: when the agent's settings name a card that is not there.
        """
        config = self._config
        seen = Cards() if config.gpus == NONE else await self._look()
        self._book = Book(stock=make_stock(config.gpus, config.cpus, config.memory, seen))

    @property
    def book(self) -> Book:
        """Who holds what now."""
        return self._book

    @property
    def line(self) -> Line:
        """Who waits for what."""
        return self._line

    # --- for the intake ---

    async def admit(self, queue: str, item: Item) -> bool:
        """Whether an item may be claimed now; what it asks for is its own from here on.

        Raises:
            LaunchError: when the server does not answer.
        """
        ask = await self._ask(queue, item)
        if ask.is_nothing:
            return True
        busy = await self._busy(ask)
        rank = _RANKS.get(item.work_queue_name or "", int(Priority.MEDIUM))
        kept = self._line.kept_from(item.id, rank, lambda other: self._could_have(other, busy))
        found = self._book.without(str(item.id)).ask(ask, busy=busy, reserved=kept)
        if isinstance(found, Grant):
            self._book = self._book.holding(str(item.id), found)
            self._line.leave(item.id)
            return True
        if self._line.wait(item.id, queue, ask, rank, found.reason):
            log.info("%s waits-for-devices %s", item.id, found.reason)
            await self._tell(item, found)
        return found.never and self._line.is_out_of_patience(item.id) and await self._is_alone(queue)

    def saw(self, queue: str, shown: Collection[UUID]) -> None:
        """Note the ids of all that a queue has waiting, as polls showed it."""
        self._line.saw(queue, shown)
        held = {UUID(holder) for holder in self._book.held}
        # What is known for certain is kept while the item goes back into its queue; to lose it costs one claim more.
        keeps = len(self._asks) < _REMEMBERED
        kept = {one for one, (config, _) in self._asks.items() if one in shown or one in held or (keeps and not config)}
        self._asks = {one: self._asks[one] for one in kept}

    def release(self, item_id: UUID | str) -> None:
        """Take back what an item held: it has ended, or was not claimed."""
        self._book = self._book.without(str(item_id))

    # --- for an execution ---

    async def equip(self, item_id: UUID, runner: Runner, plan: RunPlan) -> RunPlan:
        """Return the plan of a claimed item with its devices in it.

        Raises:
            SpecError: when this machine can never give what the item asks for.
            NotNowError: when it cannot give it now.
        """
        if not runner.uses_this_machine:
            return plan
        ask = read_ask(plan.options)
        grant = self._book.held.get(str(item_id))
        if grant is None or self._asks.get(item_id, (None, None))[1] != ask:
            grant = await self._grant(item_id, ask)
        self._line.leave(item_id)
        if ask.is_nothing and not self._book.stock.cards:
            return plan
        labels = {**plan.labels, Labels.DEVICES: grant.as_label()}
        plan = plan.model_copy(update={"labels": plan.labels if ask.is_nothing else labels})
        if self._book.stock.cards and not (ask.gpus.is_none and _is_chosen_by_hand(plan)):
            plan = runner.give_gpus(plan, grant.gpus)
        await anyio.to_thread.run_sync(save_plan, plan)
        return plan

    def restore(self, item_id: UUID, labels: Mapping[str, str]) -> None:
        """Note what a run holds that was found again."""
        text = labels.get(Labels.DEVICES)
        grant = Grant.from_label(text) if text else None
        if grant is not None:
            self._book = self._book.holding(str(item_id), grant)
        elif text:
            log.warning("%s its label %s is not one that an agent writes: %r", item_id, Labels.DEVICES, text)

    # --- for people ---

    def gpus_of(self, item_id: UUID) -> str:
        """Say which GPUs an item holds, such as `GPUs 0,1`; an empty text for none."""
        grant = self._book.held.get(str(item_id), Grant())
        return f"GPU{'s' if len(grant.gpus) > 1 else ''} {','.join(grant.gpus)}" if grant.gpus else ""

    def describe(self) -> str:
        """Say who holds each card, as it was last seen; an empty text when there is none."""
        return "; ".join(f"GPU {card.index} {self._use_of(card.index)}" for card in self._book.stock.cards)

    # --- inside ---

    def _use_of(self, card: str) -> str:
        holder = self._book.holder_of(card)
        if holder is not None:
            return f"of {short_id(holder)}"
        why = self._in_the_way(card)
        return f"skipped: it {why}" if why else "free"

    async def _grant(self, item_id: UUID, ask: Ask) -> Grant:
        """Get an execution what it asks for, other than what it was claimed with."""
        busy = await self._busy(ask)
        found = self._book.without(str(item_id)).ask(ask, busy=busy)
        if isinstance(found, Grant):
            self._asks[item_id] = (None, ask)
            if not ask.is_nothing:
                self._book = self._book.holding(str(item_id), found)
            return found
        self.release(item_id)
        if found.never:
            raise SpecError(
                f"{found.reason} No other agent serves its queue. Ask for less, or start an agent on a machine that"
                " has it."
            )
        self._asks[item_id] = (None, ask)
        raise NotNowError(f"Waits for devices: {found.reason}")

    async def _ask(self, queue: str, item: Item) -> Ask:
        config = (await self._session.queue(queue)).config
        known = self._asks.get(item.id)
        if known is None or known[0] not in (None, config):
            self._asks[item.id] = known = (config, self._read(item, config))
        return known[1]

    def _read(self, item: Item, config: QueueConfig) -> Ask:
        """Read what an item will ask for, as far as can be told without resolving its job or a secret."""
        try:
            if is_scheduler(item) or not self._runner(config.resource).uses_this_machine:
                return Ask()
            spec = spec_of(item)
            options = merge_resource_args(
                config.fill(spec.template_variables), spec.resource_args.get(config.resource, {})
            )
            return read_ask(options)
        except LaunchError as error:
            # What is wrong with it is for its execution to say, once it is claimed.
            log.debug("%s asks for what cannot be read: %s", item.id, error)
            return Ask()

    async def _busy(self, ask: Ask) -> Mapping[str, str]:
        """Return what is in the way of the cards that no item of ours holds."""
        stock = self._book.stock
        if not stock.cards or (ask.gpus.is_none and self._line.is_empty):
            return {}
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            await self._look()
        free = [card.index for card in stock.cards if self._book.holder_of(card.index) is None]
        return {card: why for card in free if (why := self._in_the_way(card))}

    def _in_the_way(self, card: str) -> str:
        if card in self._seen.users:
            return f"is held by a foreign {names_of(self._seen.users[card])}"
        return "" if any(one.index == card for one in self._seen.cards) else "is not shown by the driver any more"

    async def _look(self) -> Cards:
        before = self._seen.users
        self._seen = await anyio.to_thread.run_sync(self._reader.look)
        self._looked_at = time.monotonic()
        for card, users in self._seen.users.items():
            if self._book.holder_of(card) is None and card not in before:
                log.warning("GPU %s is skipped while a foreign %s holds it", card, names_of(users))
        return self._seen

    def _could_have(self, ask: Ask, busy: Mapping[str, str]) -> bool:
        """Whether an ask can be met once all that runs here has ended."""
        return isinstance(Book(stock=self._book.stock).ask(ask, busy=busy), Grant)

    async def _is_alone(self, queue: str) -> bool:
        read_at, alone = self._alone.get(queue, (float("-inf"), False))
        if time.monotonic() - read_at > _ALONE_SECONDS:
            workers = await self._session.server.list_workers(queue)
            alone = not any(worker.status == _ONLINE and worker.name != self._config.name for worker in workers)
            self._alone[queue] = (time.monotonic(), alone)
        return alone

    async def _tell(self, item: Item, refusal: Refusal) -> None:
        """Say on the item's own page that this agent leaves it to others."""
        if not refusal.never:
            return
        message = (
            f"The agent {self._config.name} cannot run this: {refusal.reason} It is left to the queue's other agents,"
            f" and fails when there is none within {self._config.device_patience_seconds:g} s."
        )
        now = datetime.now(timezone.utc)
        record = LogRecord(name="launch.agent", level=logging.WARNING, message=message, timestamp=now)
        try:
            await self._session.server.write_logs(item.id, [record])
        except LaunchError as error:
            log.debug("%s not told %s", item.id, error)


def _is_chosen_by_hand(plan: RunPlan) -> bool:
    """Whether the queue, or who submitted it, sets which cards the job sees, and asks the agent for none."""
    return not visible_gpus(()).keys().isdisjoint(plan.options.get("env", {}))
