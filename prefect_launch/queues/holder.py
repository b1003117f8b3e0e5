"""Holder of an item: the agent that has claimed it, as the data of the claim's state keeps it."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_launch.core.states import ItemState
from prefect_launch.server.values import State

#: Where the holder stands in the data of a claim's state.
_KEY: Final = "launch_claim"


class Holder(BaseModel):
    """The agent that has claimed an item, as the data of the claim's state keeps it.

    Attributes:
        agent: its name.
        instance: id of the one life of the agent that has claimed it.
        host: its machine, for people.
        home: id of its home, see `prefect_launch.agent.item.ownership.home_id`.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    agent: str
    instance: str
    host: str
    home: str = ""

    def __str__(self) -> str:
        """Say who it is, for people."""
        return f"agent {self.agent} on {self.host}"

    def claimed_state(self) -> State:
        """Return the state that claims an item for this holder."""
        data = {_KEY: self.model_dump(mode="json")}
        return State.of(ItemState.CLAIMED, f"Claimed by {self}.").model_copy(update={"data": data})

    @classmethod
    def of(cls, claim: State) -> Holder | None:
        """Read the holder from a claim's state; `None` when no agent of ours has made it."""
        try:
            return cls.model_validate(claim.data[_KEY])
        except (KeyError, TypeError, ValidationError):
            return None

    def is_earlier_life_of(self, other: Holder) -> bool:
        """Whether it is the other itself, or a life of that agent before this one.

        Only one agent of a name lives on a home and host, which a lock sees to. One of the same name that has another
        home, or host, may live beside the other: its heartbeats tell.
        """
        mine, theirs = (self.agent, self.home, self.host), (other.agent, other.home, other.host)
        return self.instance == other.instance or (bool(self.home) and mine == theirs)
