"""Presence of agent instances on the server: which lives of which agents hold items, and whether they still beat.

A worker's heartbeat is one for all agents of a name. Two of one name may live at once, on two hosts; and one that was
moved to another host has a new life there, while what its last life held waits for somebody. So each life of an agent
has a variable of its own, `launch_instance_<id>`, with a count that grows every 30 s. Whoever wants to know whether a
life is over watches the count, by its own clock.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from prefect_launch.queues.holder import Holder
from prefect_launch.server.protocol import Server

TAG: Final = "launch-instance"


class Presence(BaseModel):
    """One life of an agent.

    Attributes:
        holder: who it is, as the data of its claims tells.
        queues: that it takes items of.
        beat: grows as long as it lives.
        at: when it beat last, by its own clock; for people.
        has_left: it has left in order, and what it ran goes on for its next life.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    holder: Holder
    queues: tuple[str, ...] = ()
    beat: int = 0
    at: datetime
    has_left: bool = False

    @classmethod
    def of(cls, holder: Holder, queues: tuple[str, ...]) -> Presence:
        """Make the first one of a life."""
        return cls(holder=holder, queues=queues, at=datetime.now(timezone.utc))

    def beating(self, beat: int) -> Presence:
        """Return it as it is after so many beats."""
        return self.model_copy(update={"beat": beat, "at": datetime.now(timezone.utc)})

    def leaving(self) -> Presence:
        """Return it as it is once the agent has left."""
        return self.model_copy(update={"has_left": True, "at": datetime.now(timezone.utc)})


async def write_presence(server: Server, presence: Presence) -> None:
    """Show that a life of an agent is there."""
    await server.write_variable(_key(presence.holder.instance), presence.model_dump(mode="json"), tags=[TAG])


async def delete_presence(server: Server, instance: str) -> None:
    """Forget a life that holds nothing any more."""
    await server.delete_variable(_key(instance))


async def read_presences(server: Server) -> list[Presence]:
    """Read the lives that are there, or have left something behind; what is none is passed over."""
    found = []
    for value in (await server.list_variables(TAG)).values():
        try:
            found.append(Presence.model_validate(value))
        except ValidationError:
            continue
    return found


def _key(instance: str) -> str:
    return f"launch_instance_{instance}"
