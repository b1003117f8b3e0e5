"""The desk: where an agent's items get their devices, before they are claimed.

The intake asks it of each item that a poll shows (`admit`): one that fits has its devices from then on, until
`release`; one that does not fit waits in line, and is not claimed, whether it could fit later or never: a driver that
does not answer and a card that fell off come back, and other agents may be started. Only a queue whose owner says so
(`fail_impossible_after`) has an item let in that can never fit, so that its execution fails it with the reason. At its
start an execution writes what it got into its plan (`equip`), and onto what runs as a label, of which the next agent of
this name makes its book again (`restore`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Final
from uuid import UUID

import anyio

from prefect_launch.agent.devices.allocations import Book, Grant, Refusal
from prefect_launch.agent.devices.capacity import make_stock
from prefect_launch.agent.devices.gpus import CardReader, Cards, CardWatch, NvmlReader, names_of
from prefect_launch.agent.devices.request import Ask, read_ask
from prefect_launch.agent.devices.wait_list import Line
from prefect_launch.agent.item.log_notes import write_log_note
from prefect_launch.agent.item.tracker import is_scheduler
from prefect_launch.core.duration import in_words
from prefect_launch.core.short_id import short_id
from prefect_launch.errors import AgentConfigError, LaunchError, OperatorError, SpecError
from prefect_launch.planning.plan import save_plan
from prefect_launch.policy.submitter_options import merge_resource_args
from prefect_launch.policy.template import QueueConfig
from prefect_launch.runners.base import Labels, Runner, RunPlan
from prefect_launch.runners.gpu_option import visible_gpus
from prefect_launch.server.values import Item
from prefect_launch.settings.device_settings import NONE
from prefect_launch.spec.item_parameters import spec_of
from prefect_launch.spec.priority import Priority

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session
    from prefect_launch.settings.agent_config import AgentConfig

log = logging.getLogger("prefect_launch.agent")

#: One look at the cards serves all items of a poll.
_LOOK_SECONDS: Final = 1.0
#: For how long it is taken as known which agents serve a queue: many items of a poll may ask.
_ALONE_SECONDS: Final = 5.0
#: Of the items that can never fit for one and the same reason, so many are told so on their own pages.
_MOST_TOLD: Final = 20
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
        self._watch = CardWatch(reader or NvmlReader())
        self._seen = Cards()
        self._looked_at = float("-inf")
        self._book = Book()
        #: Since when no other agent is online, by queue (infinite: one is), and when that was read.
        self._alone: dict[str, tuple[float, float]] = {}
        #: How many items were told why they do not fit, by what they ask for and whether they never will.
        self._told: dict[tuple[str, Ask, bool], int] = {}
        #: Items that were let in only to be failed, and after how many seconds.
        self._hopeless: dict[UUID, float] = {}
        self._line = Line(config.device_patience_seconds)
        #: What items ask for, with the queue's config that it was read under; without one, it is known for certain.
        self._asks: dict[UUID, tuple[QueueConfig | None, Ask]] = {}

    async def open(self) -> None:
        """See what the machine has.

        Raises:
            AgentConfigError: when the agent's settings name a card that is not there.
        """
        config = self._config
        seen = Cards() if config.gpus == NONE else await self._watch.look()
        self._book = Book(stock=make_stock(config.gpus, config.cpus, config.memory, seen))
        if config.gpus != NONE:
            self._note(seen)

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
            await self._tell(queue, item, ask, found)
        return found.never and await self._is_hopeless(queue, item)

    def saw(self, queue: str, shown: Collection[UUID]) -> None:
        """Note the ids of all that a queue has waiting, as polls showed it."""
        self._line.saw(queue, shown)
        asked = {(one.queue, one.ask) for one in self._line.waiting}
        self._told = {key: count for key, count in self._told.items() if key[0] != queue or key[:2] in asked}
        held = {UUID(holder) for holder in self._book.held}
        # What is known for certain is kept while the item goes back into its queue; to lose it costs one claim more.
        keeps = len(self._asks) < _REMEMBERED
        kept = {one for one, (config, _) in self._asks.items() if one in shown or one in held or (keeps and not config)}
        self._asks = {one: self._asks[one] for one in kept}

    def release(self, item_id: UUID | str) -> None:
        """Take back what an item held: it has ended, or was not claimed."""
        self._hopeless.pop(UUID(str(item_id)), None)
        self._book = self._book.without(str(item_id))

    # --- for an execution ---

    async def equip(self, item_id: UUID, runner: Runner, plan: RunPlan) -> RunPlan:
        """Return the plan of a claimed item with its devices in it.

        Raises:
            SpecError: when this machine can never give what the item asks for, and its queue fails such an item.
            NotNowError: when it cannot give it now.
        """
        if not runner.uses_this_machine:
            return plan
        ask = read_ask(plan.options)
        grant = self._book.held.get(str(item_id))
        if grant is None or self._asks.get(item_id, (None, None))[1] != ask:
            grant = await self._grant(item_id, ask)
        self._line.leave(item_id)
        if ask.is_nothing and not self._gives_cards:
            return plan
        labels = {**plan.labels, Labels.DEVICES: grant.as_label()}
        plan = plan.model_copy(update={"labels": plan.labels if ask.is_nothing else labels})
        if self._gives_cards and not (ask.gpus.is_none and _is_chosen_by_hand(plan)):
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
        if not self._book.stock.is_known:
            return f"GPUs unknown: {self._book.stock.note}"
        return "; ".join(f"GPU {card.index} {self._use_of(card.index)}" for card in self._book.stock.cards)

    # --- inside ---

    @property
    def _gives_cards(self) -> bool:
        """Whether it gives out GPUs, or will when the driver answers: what asks for none must not see them."""
        return bool(self._book.stock.cards) or not self._book.stock.is_known

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
        after = self._hopeless.get(item_id)
        self.release(item_id)
        if found.never and after is not None:
            raise SpecError(
                f"{found.reason} No other agent was online for {in_words(after)}, after which its queue fails such an"
                " item. Ask for less, or start an agent on a machine that has it."
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
        if self._config.gpus == NONE or (ask.gpus.is_none and self._line.is_empty):
            return {}
        if time.monotonic() - self._looked_at > _LOOK_SECONDS:
            await self._look()
        stock = self._book.stock
        free = [card.index for card in stock.cards if self._book.holder_of(card.index) is None]
        return {card: why for card in free if (why := self._in_the_way(card))}

    def _in_the_way(self, card: str) -> str:
        if card in self._seen.users:
            return f"is held by a foreign {names_of(self._seen.users[card])}"
        if self._seen.is_away:
            return f"cannot be seen: {self._seen.note}"
        return "" if any(one.index == card for one in self._seen.cards) else "is not shown by the driver any more"

    async def _look(self) -> None:
        """Look at the cards: one that was not there before is given out from now on."""
        self._note(await self._watch.look())
        if self._seen.is_away:
            return
        stock, config = self._book.stock, self._config
        try:
            seen = make_stock(config.gpus, config.cpus, config.memory, self._seen)
        except AgentConfigError as error:
            if not stock.is_known and stock.note != str(error):
                log.error("no GPU is given out: %s", error)
                self._book = self._book.model_copy(update={"stock": stock.model_copy(update={"note": str(error)})})
            return
        self._book = self._book.model_copy(update={"stock": stock.with_new(seen) if stock.is_known else seen})

    def _note(self, seen: Cards) -> None:
        """Keep what a look has shown, and log what has changed."""
        before, self._seen = self._seen, seen
        self._looked_at = time.monotonic()
        if seen.is_away and not before.is_away:
            log.warning("GPUs away: items that ask for one wait. %s", seen.note)
        elif before.is_away and not seen.is_away:
            log.info("GPUs back: %d", len(seen.cards))
        for card, users in seen.users.items():
            if self._book.holder_of(card) is None and card not in before.users:
                log.warning("GPU %s is skipped while a foreign %s holds it", card, names_of(users))

    def _could_have(self, ask: Ask, busy: Mapping[str, str]) -> bool:
        """Whether an ask can be met once all that runs here has ended."""
        return isinstance(Book(stock=self._book.stock).ask(ask, busy=busy), Grant)

    async def _is_hopeless(self, queue: str, item: Item) -> bool:
        """Whether an item that can never fit here is to be failed, as its queue's owner has asked for."""
        after = (await self._session.queue(queue)).config.fail_impossible_after
        since = self._line.since(item.id)
        if after is None or since is None:
            return False
        is_so = time.monotonic() - max(since, await self._alone_since(queue)) >= after
        if is_so:
            self._hopeless[item.id] = after
        return is_so

    async def _alone_since(self, queue: str) -> float:
        """Return since when no other agent was seen online for a queue; infinite when one is."""
        read_at, since = self._alone.get(queue, (float("-inf"), float("inf")))
        now = time.monotonic()
        if now - read_at > _ALONE_SECONDS:
            workers = await self._session.server.list_workers(queue)
            others = any(worker.status == _ONLINE and worker.name != self._config.name for worker in workers)
            since = float("inf") if others else min(since, now)
            self._alone[queue] = (now, since)
        return since

    async def _tell(self, queue: str, item: Item, ask: Ask, refusal: Refusal) -> None:
        """Log why items wait, once a cause; say on an item's own page that this agent can never run it.

        Thousands may wait for one cause: the first of them are told. `item show` says it of any.
        """
        cause = (queue, ask, refusal.never)
        count = self._told.get(cause, 0)
        self._told[cause] = count + 1
        if not count:
            log.info("waits-for-devices %s (and all of %s that ask for as much): %s", item.id, queue, refusal.reason)
        if not refusal.never or count >= _MOST_TOLD:
            return
        after = (await self._session.queue(queue)).config.fail_impossible_after
        then = "waits until one can" if after is None else f"fails when none is online for {in_words(after)}"
        message = (
            f"The agent {self._config.name} cannot run this: {refusal.reason} It is left to the queue's other agents,"
            f" and {then}."
        )
        try:
            await write_log_note(self._session.server, item.id, message)
        except LaunchError as error:
            log.debug("%s not told %s", item.id, error)


def _is_chosen_by_hand(plan: RunPlan) -> bool:
    """Whether the queue, or who submitted it, sets which cards the job sees, and asks the agent for none."""
    return not visible_gpus(()).keys().isdisjoint(plan.options.get("env", {}))
