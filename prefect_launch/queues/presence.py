"""Presence of agents: the holder of an item, and the lives of agents that hold items, with their heartbeats.

All agents of a name share one worker heartbeat. But two agents of one name may live at once, on two hosts. And an agent
that was moved to another host has a new life there, while the items of its last life wait. So each life of an agent has
its own variable, `launch_instance_<id>`, with a count that grows every 30 s. An observer watches the count by its own
clock to know whether a life is over.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_launch.core.states import ItemState
from prefect_launch.server.protocol import Server
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
        home, or host, may live at the same time: its heartbeats show it.
        """
        mine, theirs = (self.agent, self.home, self.host), (other.agent, other.home, other.host)
        return self.instance == other.instance or (bool(self.home) and mine == theirs)


TAG: Final = "launch-instance"


class Presence(BaseModel):
    """One life of an agent.

    Attributes:
        holder: who it is, as the data of its claims tells.
        queues: that it takes items of.
        beat: grows as long as it lives.
        at: when it beat last, by its own clock; for people.
        has_left: it has left in order; its runs continue, for its next life.
        is_shift: it is a scheduled run of a served agent: it ends when its time is up, and another follows.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    holder: Holder
    queues: tuple[str, ...] = ()
    beat: int = 0
    at: datetime
    has_left: bool = False
    is_shift: bool = False

    @classmethod
    def of(cls, holder: Holder, queues: tuple[str, ...], *, is_shift: bool = False) -> Presence:
        """Make the first one of a life."""
        return cls(holder=holder, queues=queues, at=datetime.now(timezone.utc), is_shift=is_shift)

    def beating(self, beat: int) -> Presence:
        """Return it as it is after so many beats."""
        return self.model_copy(update={"beat": beat, "at": datetime.now(timezone.utc)})

    def leaving(self) -> Presence:
        """Return it as it is once the agent has left."""
        return self.model_copy(update={"has_left": True, "at": datetime.now(timezone.utc)})


async def write_presence(server: Server, presence: Presence) -> None:
    """Show that a life of an agent is online."""
    await server.write_variable(_key(presence.holder.instance), presence.model_dump(mode="json"), tags=[TAG])


async def delete_presence(server: Server, instance: str) -> None:
    """Forget a life that holds nothing any more."""
    await server.delete_variable(_key(instance))


async def read_presences(server: Server) -> list[Presence]:
    """Read the lives that are online, or have left something behind; skip variables that hold none."""
    found = []
    for value in (await server.list_variables(TAG)).values():
        try:
            found.append(Presence.model_validate(value))
        except ValidationError:
            continue
    return found


def _key(instance: str) -> str:
    return f"launch_instance_{instance}"
