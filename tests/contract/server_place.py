"""Where the contract of the server is tested: a queue of its own on a server, and short words to use it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

from prefect_launch.core.states import ItemState
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Item, ItemDraft, State, Verdict
from prefect_launch.spec.scheduling import Priority

TEMPLATE: dict[str, Any] = {
    "job_configuration": {"resource_args": {"gpus": "{{ gpus }}", "site": "{{ site }}"}},
    "variables": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "gpus": {"type": "integer", "minimum": 0, "maximum": 8, "default": 1},
            "site": {"type": "string", "enum": ["north", "south"]},
        },
        "required": ["site"],
    },
}
INPUTS: dict[str, Any] = {
    "type": "object",
    "properties": {"lr": {"type": "number", "exclusiveMinimum": 0}, "epochs": {"type": "integer"}},
    "required": ["lr"],
}


@dataclass(frozen=True)
class Place:
    """A queue with its four priorities, and the deployment that its items are made from."""

    server: Server
    pool: str
    pool_id: UUID
    deployment_id: UUID

    async def add(self, name: str = "item", *, priority: Priority = Priority.MEDIUM, **changes: Any) -> Item:
        """Put an item on the queue."""
        item = await self.server.create_item(self.deployment_id, draft(name, priority=priority, **changes))
        assert item is not None
        return item

    async def move(self, item: Item, *states: ItemState, force: bool = False) -> Verdict:
        """Propose states, one after another; return the last verdict."""
        verdict = None
        for state in states:
            verdict = await self.server.propose(item.id, State.of(state), force=force)
        assert verdict is not None
        return verdict

    async def read(self, item: Item) -> Item:
        """Read an item that is there."""
        found = await self.server.read_item(item.id)
        assert found is not None
        return found

    async def poll(self, limit: int = 50) -> list[str]:
        """Names of the items that wait and are due, in the order in which an agent would take them."""
        return [item.name for item in await self.server.poll(self.pool, limit=limit, before=soon())]

    async def deploy(self, name: str | None = None, **changes: Any) -> UUID:
        """Make, or change, a deployment on the queue."""
        fields = {
            "pool": self.pool,
            "parameters": {"lr": 0.1},
            "parameter_schema": INPUTS,
            "description": "A deployment of the contract.",
            "tags": ["from-deployment"],
            "labels": {"origin": "deployment", "owner": "us"},
            "enforce": True,
        }
        return await self.server.upsert_deployment(name or self.pool, **{**fields, **changes})


async def make_place(server: Server, pool: str) -> Place:
    """Make a queue on a server."""
    made = await server.create_pool(pool, base_job_template=TEMPLATE, description=None, concurrency_limit=None)
    assert made is not None
    for priority in (Priority.CRITICAL, Priority.HIGH, Priority.LOW):
        await server.create_queue(pool, priority.work_queue, int(priority))
    place = Place(server, pool, made.id, uuid4())
    return Place(server, pool, made.id, await place.deploy())


def draft(name: str = "item", *, priority: Priority = Priority.MEDIUM, **changes: Any) -> ItemDraft:
    """An item that the queue takes."""
    fields = {
        "parameters": {"epochs": 3},
        "job_variables": {"site": "north"},
        "idempotency_key": uuid4().hex,
        "work_queue_name": priority.work_queue,
    }
    return ItemDraft(name=name, **{**fields, **changes})


def soon() -> datetime:
    """A time that lies after everything that is due now, whatever the two clocks say."""
    return datetime.now(timezone.utc) + timedelta(seconds=5)
