"""The book: which devices this agent has, and who holds what of them.

A frozen value; each change is a new book. It is asked with an `Ask`, and answers with a `Grant` or with a `Refusal`
that says whether the item never fits here or only not now. It knows neither time nor server: who waits how long is
the business of `line.py`, and what a foreign process holds is told to it (`busy`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_launch.agent.devices.request import Ask, in_gib
from prefect_launch.runners.gpu_option import GpuAsk

_NOTHING: Final[Mapping[str, str]] = MappingProxyType({})
#: CPUs are added up as floats.
_HAIR = 1e-9


class Card(BaseModel):
    """One GPU."""

    model_config = ConfigDict(frozen=True)

    index: str = Field(description="Its number in the order of the PCI bus, as `nvidia-smi` shows it.")
    uuid: str | None = None
    name: str = "GPU"

    def is_called(self, wanted: str) -> bool:
        """Whether an id, an index or a UUID, names it."""
        return wanted == self.index or (self.uuid is not None and wanted.lower() == self.uuid.lower())


class Stock(BaseModel):
    """What the agent has to give."""

    model_config = ConfigDict(frozen=True)

    cards: tuple[Card, ...] = ()
    cpus: float | None = Field(default=None, description="None: not counted.")
    memory: int | None = Field(default=None, description="Bytes; None: not counted.")
    note: str = Field(default="", description="Why it has no GPU, in words.")
    is_known: bool = Field(
        default=True, description="Which GPUs it has is known; false: the driver did not answer yet."
    )

    def with_new(self, seen: Stock) -> Stock:
        """Return the stock with the cards besides that a later look has shown."""
        known = {card.index for card in self.cards} | {card.uuid for card in self.cards if card.uuid}
        new = tuple(card for card in seen.cards if not known & {card.index, card.uuid})
        return self.model_copy(update={"cards": self.cards + new, "note": "" if self.cards or new else seen.note})


class Grant(BaseModel):
    """What one item holds. It stands in a label on what runs, so that the book can be made again of the labels."""

    model_config = ConfigDict(frozen=True)

    gpus: tuple[str, ...] = Field(default=(), description="Indexes of cards.")
    cpus: float = 0
    memory: int = 0

    def as_label(self) -> str:
        """Return it as the text of a label."""
        return self.model_dump_json(exclude_defaults=True)

    @classmethod
    def from_label(cls, text: str) -> Grant | None:
        """Read the text of a label; `None` when it is not one that an agent wrote."""
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None


class Refusal(BaseModel):
    """Why an item gets nothing."""

    model_config = ConfigDict(frozen=True)

    reason: str
    never: bool = Field(default=False, description="It does not fit on this machine even when nothing else runs.")


class Book(BaseModel):
    """Who holds what."""

    model_config = ConfigDict(frozen=True)

    stock: Stock = Stock()
    held: dict[str, Grant] = Field(default_factory=dict)

    def holding(self, holder: str, grant: Grant) -> Book:
        """Return the book in which `holder` holds a grant, in the place of what it held."""
        return self.model_copy(update={"held": {**self.held, holder: grant}})

    def without(self, holder: str) -> Book:
        """Return the book in which `holder` holds nothing."""
        return self.model_copy(update={"held": {key: grant for key, grant in self.held.items() if key != holder}})

    def holder_of(self, card: str) -> str | None:
        """Return who holds a card."""
        return next((holder for holder, grant in self.held.items() if card in grant.gpus), None)

    def ask(self, ask: Ask, *, busy: Mapping[str, str] = _NOTHING, reserved: Ask | None = None) -> Grant | Refusal:
        """Say what an item would get.

        Args:
            ask: what it asks for.
            busy: what is in the way of cards that no item holds, by index, such as "is held by process 77".
            reserved: what somebody waits for who comes first: of what is free, that much is not given out.
        """
        never = self._never(ask)
        if never:
            return Refusal(reason=never, never=True)
        if not self.stock.is_known and not ask.gpus.is_none:
            return Refusal(reason=f"It asks for {ask.gpus}, and {self.stock.note}.")
        free = [card for card in self.stock.cards if self.holder_of(card.index) is None and card.index not in busy]
        cpus = _left(self.stock.cpus, sum(grant.cpus for grant in self.held.values()))
        memory = _left(self.stock.memory, sum(grant.memory for grant in self.held.values()))
        if reserved is not None:
            kept = _wanted(reserved.gpus, self.stock.cards, free, whole=False)
            free = [card for card in free if card not in kept]
            cpus, memory = _left(cpus, reserved.cpus), _left(memory, reserved.memory)
        cards = _wanted(ask.gpus, self.stock.cards, free, whole=True)
        if cards is None:
            return Refusal(reason=self._cards_taken(ask.gpus, free, busy, reserved))
        if cpus is not None and ask.cpus > cpus + _HAIR:
            return Refusal(reason=f"{max(cpus, 0):g} of {self.stock.cpus:g} CPUs are free; it asks for {ask.cpus:g}.")
        if memory is not None and ask.memory > memory:
            return Refusal(reason=f"{in_gib(max(memory, 0))} is free; it asks for {in_gib(ask.memory)}.")
        return Grant(gpus=tuple(card.index for card in cards), cpus=ask.cpus, memory=ask.memory)

    def _never(self, ask: Ask) -> str:
        """Say why an ask cannot be met here even when nothing runs; an empty text when it can."""
        cards = self.stock.cards
        why = f" ({self.stock.note})" if self.stock.note else ""
        has = f"this agent has {_names(cards)}" if cards else f"this agent has no GPU{why}"
        if self.stock.is_known:
            for wanted in ask.gpus.ids:
                if not any(card.is_called(wanted) for card in cards):
                    return f"It asks for the GPU {wanted!r}, and {has}."
            if ask.gpus.count > len(cards) or (ask.gpus.all and not cards):
                return f"It asks for {ask.gpus}, and {has}."
        if self.stock.cpus is not None and ask.cpus > self.stock.cpus + _HAIR:
            return f"It asks for {ask.cpus:g} CPUs, and this agent has {self.stock.cpus:g}."
        if self.stock.memory is not None and ask.memory > self.stock.memory:
            return f"It asks for {in_gib(ask.memory)}, and this agent has {in_gib(self.stock.memory)}."
        return ""

    def _cards_taken(self, asked: GpuAsk, free: list[Card], busy: Mapping[str, str], reserved: Ask | None) -> str:
        taken = [f"GPU {index} {why}" for index, why in busy.items()]
        held = [card for card in self.stock.cards if self.holder_of(card.index)]
        taken += [f"{_names(held)} in use by other items"] if held else []
        if reserved is not None and not reserved.gpus.is_none:
            taken.append(f"{reserved.gpus} kept for an item that comes first")
        return f"{len(free)} of {len(self.stock.cards)} GPUs are free ({'; '.join(taken)}); it asks for {asked}."


def _left(have: Any, less: Any) -> Any:
    return None if have is None else have - less


def _wanted(asked: GpuAsk, cards: Collection[Card], free: list[Card], *, whole: bool) -> Any:
    """Choose cards for an ask out of the free ones: `None` when it cannot be met whole, if it must be."""
    if asked.all:
        chosen, most = free, len(cards)
    elif asked.ids:
        chosen = [card for card in free if any(card.is_called(wanted) for wanted in asked.ids)]
        most = sum(any(card.is_called(wanted) for wanted in asked.ids) for card in cards)
    else:
        chosen, most = free[: asked.count], asked.count
    return None if whole and len(chosen) < most else chosen


def _names(cards: Collection[Card]) -> str:
    """Say which cards, such as `GPUs 0,1`."""
    return f"GPU{'s' if len(cards) > 1 else ''} {','.join(card.index for card in cards)}"
