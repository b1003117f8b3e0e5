"""Where agents post how they are, and are told to drain: one variable of the server each.

A worker's heartbeat says only that an agent is alive. What it runs, and in which state it is, stands in the variable
`launch_agent_<name>`; that it is to drain, in `launch_drain_<name>`. People read them, with `agent list`; no decision
about an item is made by them.
"""

from __future__ import annotations

import hashlib
import json
import re
from datetime import datetime, timezone
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_launch.core.validation import clean_json
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item

TAG: Final = "launch-agent"
DRAIN_TAG: Final = "launch-drain"
#: The server keeps no value of more than 5 000 characters.
_MOST_CHARS: Final = 4_500
_NAME_CHARS: Final = 60
#: What is told of the items that wait for devices: a third of a notice at most.
_MOST_WAITS: Final = 6
_REASON_CHARS: Final = 200
_DEVICES_CHARS: Final = 500


class RunningItem(BaseModel):
    """An item that an agent has in work.

    Attributes:
        id: of the item.
        name: of its run, cut when it is long.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    name: str

    @classmethod
    def of(cls, item: Item) -> RunningItem:
        """Make it of an item."""
        return cls(id=str(item.id), name=item.name[:_NAME_CHARS])


class AgentNotice(BaseModel):
    """How an agent is, in its own words.

    Attributes:
        name: of the agent.
        host: its machine.
        queues: that it takes items of.
        slots: how many jobs it runs at a time; `None`: no limit.
        state: polling, running, draining, or offline: it has left, and what it ran goes on.
        running: what it has in work; when that is much, the first of it.
        in_work: how many items it has in work.
        waits: why items wait for its devices, by their ids; when that is much, the first of it.
        devices: who holds each of its GPUs; an empty text for none.
        troubles: why it takes no items of a resource, one text each.
        secure_mode: whether it lets a submitter give inputs and nothing else.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str
    host: str
    queues: tuple[str, ...]
    slots: int | None
    state: str
    running: tuple[RunningItem, ...] = ()
    in_work: int = 0
    waits: dict[str, str] = Field(default_factory=dict)
    devices: str = ""
    troubles: tuple[str, ...] = ()
    secure_mode: bool = False

    def short(self) -> AgentNotice:
        """Return it without what the server would not keep."""
        waits = {item: reason[:_REASON_CHARS] for item, reason in list(self.waits.items())[:_MOST_WAITS]}
        found = self.model_copy(update={"waits": waits, "devices": self.devices[:_DEVICES_CHARS]})
        while found.running and len(json.dumps(found.model_dump(mode="json"))) > _MOST_CHARS:
            found = found.model_copy(update={"running": found.running[:-1]})
        return found


async def post_notice(server: Server, notice: AgentNotice) -> None:
    """Post how an agent is."""
    shown = clean_json(notice.short().model_dump(mode="json"))  # An error's text may hold anything.
    await server.write_variable(_key("agent", notice.name), shown, tags=[TAG])


async def take_notice_down(server: Server, name: str) -> None:
    """Forget how an agent was."""
    await server.delete_variable(_key("agent", name))


async def read_notices(server: Server) -> dict[str, AgentNotice]:
    """Read what agents have posted, by their names; what is no notice is passed over."""
    found = {}
    for value in (await server.list_variables(TAG)).values():
        try:
            notice = AgentNotice.model_validate(value)
        except ValidationError:
            continue
        found[notice.name] = notice
    return found


class DrainOrder(BaseModel):
    """That an agent is to drain.

    Attributes:
        agent: its name.
        at: when it was told.
        ends_shift: a shift of a served agent ends as soon as it has drained, and this order with it.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    agent: str
    at: datetime
    ends_shift: bool = False


async def order_drain(server: Server, name: str, *, ends_shift: bool = False) -> None:
    """Tell an agent to drain; it hears of it at once, or else within its poll interval.

    Args:
        server: the agent's.
        name: of the agent.
        ends_shift: a shift of a served agent ends as soon as it has drained. By default it stays until its time is up.
    """
    order = DrainOrder(agent=name, at=datetime.now(timezone.utc), ends_shift=ends_shift)
    await server.write_variable(_key("drain", name), order.model_dump(mode="json"), tags=[DRAIN_TAG])


async def take_drain_back(server: Server, name: str) -> bool:
    """Let an agent take items again; whether it was told to drain."""
    return await server.delete_variable(_key("drain", name))


async def read_drain_order(server: Server, name: str) -> DrainOrder | None:
    """Return the order that an agent drains; `None` when there is none."""
    try:
        order = DrainOrder.model_validate(await server.read_variable(_key("drain", name)))
    except ValidationError:
        return None
    return order if order.agent == name else None


def drain_order_of(name: str) -> str:
    """Return the name of the variable that tells an agent to drain."""
    return _key("drain", name)


def _key(kind: str, name: str) -> str:
    """Return a variable's name, which has fewer letters than an agent's may have."""
    safe = re.sub(r"[^a-z0-9_]", "_", name.lower())
    mark = "" if safe == name else f"_{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return f"launch_{kind}_{safe}{mark}"
