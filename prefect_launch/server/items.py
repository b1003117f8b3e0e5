"""The server's flow runs: making, reading and polling items."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from urllib.parse import quote
from uuid import UUID

import anyio

from prefect_launch.core.states import StateType
from prefect_launch.errors import ServerUnavailableError, SpecError
from prefect_launch.server.rest import Rest
from prefect_launch.server.values import Item, ItemDraft

#: Items in one bulk request. The server takes 100, but no faster (31 to 36 a second; 50: 32 to 40), and a SQLite server
#: lets nobody else write meanwhile: at 25 ms an item, an agent's claim would wait for 2.5 s.
_BULK: Final = 50
#: Attempts at items that a busy SQLite server left out of a bulk request.
_BULK_ATTEMPTS: Final = 20
_BULK_PAUSE_SECONDS: Final = 0.2
_BUSY_WORDS: Final = ("database is locked", "timeout", "deadlock")


class ItemCalls:
    """Calls about items."""

    _rest: Rest
    _flow_names: dict[UUID, str]

    async def create_item(self, deployment_id: UUID, draft: ItemDraft) -> Item | None:
        """Make an item, or return the one that was made with the same idempotency key.

        Returns:
            The item; `None` when the deployment is gone.

        Raises:
            SpecError: when the server refuses the parameters or the template variables, with its reason.
        """
        made = await self._rest.get("POST", f"/deployments/{deployment_id}/create_flow_run", json=_body(draft))
        return None if made is None else Item.model_validate(made)

    async def create_items(self, deployment_id: UUID, drafts: Sequence[ItemDraft]) -> list[Item]:
        """Make many items, each exactly once: what a busy server left out is sent again under the same key.

        Raises:
            SpecError: when the server refuses one; those made before it stay (the caller knows their keys).
            ServerUnavailableError: when the server stayed too busy.
        """
        ids: list[UUID] = []
        for start in range(0, len(drafts), _BULK):
            ids.extend(await self._create_batch(deployment_id, drafts[start : start + _BULK]))
        return [draft.made(item_id, deployment_id) for item_id, draft in zip(ids, drafts, strict=True)]

    async def _create_batch(self, deployment_id: UUID, drafts: Sequence[ItemDraft]) -> list[UUID]:
        made: dict[int, UUID] = {}
        for _ in range(_BULK_ATTEMPTS):
            left = [index for index in range(len(drafts)) if index not in made]
            if not left:
                break
            body = [_body(drafts[index]) for index in left]
            answer = await self._rest.get("POST", f"/deployments/{deployment_id}/create_flow_run/bulk", json=body)
            if answer is None:
                raise SpecError(f"The deployment {deployment_id} is gone: was the queue deleted meanwhile?")
            for index, result in zip(left, answer["results"], strict=True):
                if result.get("flow_run_id"):
                    made[index] = UUID(result["flow_run_id"])
                elif not any(word in str(result.get("error")).lower() for word in _BUSY_WORDS):
                    raise SpecError(f"The Prefect server refuses item {drafts[index].name!r}: {result.get('error')}")
            if len(made) < len(drafts):
                await anyio.sleep(_BULK_PAUSE_SECONDS)
        if len(made) < len(drafts):
            raise ServerUnavailableError(
                f"The Prefect server was too busy to take {len(drafts) - len(made)} of {len(drafts)} items."
                " Queue the same list again: what is there already is not made twice."
            )
        return [made[index] for index in range(len(drafts))]

    async def read_item(self, item_id: UUID) -> Item | None:
        """Read one item."""
        found = await self._rest.get("GET", f"/flow_runs/{item_id}")
        return None if found is None else await self._with_flow(Item.model_validate(found))

    async def _with_flow(self, item: Item) -> Item:
        """Return an item with its flow's name, which is read once for each flow and connection."""
        if item.flow_id is not None and item.flow_id not in self._flow_names:
            flow = await self._rest.get("GET", f"/flows/{item.flow_id}")
            if flow is None:  # deleted with its runs meanwhile
                return item
            self._flow_names[item.flow_id] = flow["name"]
        return item.model_copy(update={"flow": self._flow_names.get(item.flow_id) if item.flow_id else None})

    async def delete_item(self, item_id: UUID) -> None:
        """Delete an item with its log; one that is gone is fine."""
        await self._rest.get("DELETE", f"/flow_runs/{item_id}")

    async def list_items(
        self,
        *,
        pool: str | None = None,
        ids: Collection[UUID] | None = None,
        state_types: Collection[StateType] | None = None,
        tags: Collection[str] | None = None,
        keys: Collection[str] | None = None,
        names: Collection[str] | None = None,
        limit: int = 200,
        offset: int = 0,
    ) -> list[Item]:
        """List items, newest first; `keys` are idempotency keys."""
        body: dict[str, Any] = {"sort": "EXPECTED_START_TIME_DESC", "limit": limit, "offset": offset}
        body.update(_filters(pool=pool, ids=ids, state_types=state_types, tags=tags, keys=keys, names=names))
        return [Item.model_validate(found) for found in await self._rest.get("POST", "/flow_runs/filter", json=body)]

    async def count_items(
        self,
        *,
        pool: str,
        queue: str | None = None,
        state_types: Collection[StateType],
        due_before: datetime | None = None,
        state_names: Collection[str] | None = None,
    ) -> int:
        """Count the items of a pool, or of one of its work queues, in these states; less when more is asked of them."""
        body = _filters(pool=pool, queue=queue, state_types=state_types)
        if state_names is not None:
            body["flow_runs"]["state"]["name"] = {"any_": list(state_names)}
        if due_before is not None:
            body["flow_runs"]["next_scheduled_start_time"] = {"before_": due_before.isoformat()}
        return int(await self._rest.get("POST", "/flow_runs/count", json=body))

    async def list_line(self, pool: str, queue: str, *, limit: int) -> list[Item]:
        """List what waits in one work queue of a pool, first in line first: due or not, paused or not."""
        body = {"sort": "NEXT_SCHEDULED_START_TIME_ASC", "limit": limit}
        body.update(_filters(pool=pool, queue=queue, state_types=[StateType.SCHEDULED]))
        return [Item.model_validate(found) for found in await self._rest.get("POST", "/flow_runs/filter", json=body)]

    async def poll(
        self,
        pool: str,
        *,
        limit: int,
        before: datetime,
        after: datetime | None = None,
        queues: Collection[str] = (),
    ) -> list[Item]:
        """List what waits in the pool, or in these of its work queues, and is due, the most urgent first.

        Nothing when the pool, or one of the work queues, is gone, or the pool is paused.
        """
        body: dict[str, Any] = {"limit": limit, "scheduled_before": before.isoformat()}
        if after is not None:
            body["scheduled_after"] = after.isoformat()
        if queues:
            body["work_queue_names"] = list(queues)
        path = f"/work_pools/{quote(pool, safe='')}/get_scheduled_flow_runs"
        found = await self._rest.get("POST", path, json=body)
        return [await self._with_flow(Item.model_validate(entry["flow_run"])) for entry in found or ()]

    async def record_infrastructure(self, item_id: UUID, handle: str | None) -> None:
        """Record what was created for an item, as Prefect's `infrastructure_pid`; `None`: nothing of it exists."""
        await self._rest.get("PATCH", f"/flow_runs/{item_id}", json={"infrastructure_pid": handle})

    async def label_item(self, item_id: UUID, labels: Mapping[str, Any]) -> None:
        """Add labels to an item."""
        await self._rest.get("PATCH", f"/flow_runs/{item_id}/labels", json=dict(labels))


def _body(draft: ItemDraft) -> dict[str, Any]:
    state = {"type": draft.state.type.value, "name": draft.state.name, "message": draft.state.message}
    body = draft.model_dump(mode="json", exclude={"state"}, exclude_none=True)
    return {**body, "state": state}


def _filters(
    *,
    pool: str | None = None,
    queue: str | None = None,
    ids: Collection[UUID] | None = None,
    state_types: Collection[StateType] | None = None,
    tags: Collection[str] | None = None,
    keys: Collection[str] | None = None,
    names: Collection[str] | None = None,
) -> dict[str, Any]:
    runs: dict[str, Any] = {}
    if ids is not None:
        runs["id"] = {"any_": [str(item_id) for item_id in ids]}
    if state_types is not None:
        runs["state"] = {"type": {"any_": [state_type.value for state_type in state_types]}}
    if tags is not None:
        runs["tags"] = {"all_": list(tags)}
    if keys is not None:
        runs["idempotency_key"] = {"any_": list(keys)}
    if names is not None:
        runs["name"] = {"any_": list(names)}
    filters: dict[str, Any] = {"flow_runs": runs, "flows": {"name": {"any_": ["launch"]}}}
    if pool is not None:
        filters["work_pools"] = {"name": {"any_": [pool]}}
    if queue is not None:
        filters["work_pool_queues"] = {"name": {"any_": [queue]}}
    return filters
