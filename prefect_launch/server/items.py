"""Items on the Prefect server: flow runs, their states, logs, artifacts and heartbeats.

Each proposed state takes effect once. The answer to a proposal can be lost when the server or the network fails. The
server recognizes a repeated proposal by its transition id, but only while the item is in that very state. So after a
lost answer, the client reads the item's states first, and does not repeat a proposal that has taken effect.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote
from uuid import UUID, uuid4

import anyio

from prefect_launch.core.backoff import Backoff
from prefect_launch.core.states import StateType
from prefect_launch.errors import (
    AnswerLostError,
    ItemGoneError,
    ServerFailedError,
    ServerUnavailableError,
    SpecError,
    clause,
)
from prefect_launch.server.http import BUSY_SECONDS, Calls, is_taken, raise_refusal
from prefect_launch.server.values import (
    BULK,
    ITEM_FLOWS,
    MOVED,
    PAGE,
    POOL_TYPE,
    Answer,
    Item,
    ItemDraft,
    ItemFilter,
    LogRecord,
    State,
    Verdict,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack


#: The first pause before what a busy SQLite server left out of a bulk request is sent again; it doubles up to the
#: longest: mostly one write of somebody else was in the way.
_BULK_FIRST_PAUSE_SECONDS: Final = 0.01
_BULK_PAUSE_SECONDS: Final = 0.2
_GONE: Final = 404
#: How the server's own error begins for an item that it would have taken had it been less busy. A refusal may quote any
#: word of the item's. SQLite goes on with the rest of the request.
_LOCKED: Final = re.compile(r"\(sqlite3\.OperationalError\) database is locked")
#: Of a request with such an error the server keeps nothing, though it gives ids for some items: all of it is one
#: transaction, which ends with the error. A timeout has no text.
_UNDONE: Final = re.compile(
    r"\(sqlalchemy\.dialects\.postgresql\.asyncpg\.\w+\) <class 'asyncpg\.exceptions\.(?:_base\.)?"
    r"(?:AdminShutdown|CrashShutdown|ConnectionDoesNotExist|DeadlockDetected|InFailedSQLTransaction|Interface|LockNotAvailable"
    r"|QueryCanceled)Error'>"
    r"|QueuePool limit of size"
    r"|Can't operate on closed transaction"
    r"|This Session's transaction has been rolled back"
    r"|\Z"
)


class ItemCalls(Calls):
    """Calls about items."""

    _flow_names: dict[UUID, str]

    async def create_item(self, deployment_id: UUID, draft: ItemDraft) -> Item | None:
        made = await self._rest.get("POST", f"/deployments/{deployment_id}/create_flow_run", json=_body(draft))
        return None if made is None else Item.model_validate(made)

    async def create_items(
        self, deployment_id: UUID, drafts: Sequence[ItemDraft], *, progress: Callable[[int], None] = lambda made: None
    ) -> list[Item]:
        ids: list[UUID] = []
        for start in range(0, len(drafts), BULK):
            ids.extend(await self._create_batch(deployment_id, drafts[start : start + BULK]))
            progress(len(ids))
        return [draft.made(item_id, deployment_id) for item_id, draft in zip(ids, drafts, strict=True)]

    async def _create_batch(self, deployment_id: UUID, drafts: Sequence[ItemDraft]) -> list[UUID]:
        made: dict[int, UUID] = {}
        pauses, progress_at = Backoff(_BULK_FIRST_PAUSE_SECONDS, _BULK_PAUSE_SECONDS), time.monotonic()
        while left := [index for index in range(len(drafts)) if index not in made]:
            new, busy = await self._create_some(deployment_id, [drafts[index] for index in left])
            made |= {left[index]: item_id for index, item_id in new.items()}
            missing = len(drafts) - len(made)
            if missing < len(left):
                progress_at = time.monotonic()
            elif time.monotonic() - progress_at >= BUSY_SECONDS:
                raise ServerUnavailableError(
                    f"The Prefect server was too busy to take {missing} of {len(drafts)} items for {BUSY_SECONDS:g} s"
                    f" ({busy}). Asked again, it makes none of them twice."
                )
            if missing:
                await pauses.sleep()
        return [made[index] for index in range(len(drafts))]

    async def _create_some(self, deployment_id: UUID, drafts: Sequence[ItemDraft]) -> tuple[dict[int, UUID], str]:
        """Send one bulk request; return the ids of the items that it made, by their place, and why not all."""
        body = [_body(draft) for draft in drafts]
        answer = await self._rest.get("POST", f"/deployments/{deployment_id}/create_flow_run/bulk", json=body)
        if answer is None:
            raise SpecError(f"The deployment {deployment_id} is gone: was the queue deleted meanwhile?")
        made: dict[int, UUID] = {}
        errors: list[str] = []
        for index, (draft, result) in enumerate(zip(drafts, answer["results"], strict=True)):
            if result.get("flow_run_id"):
                made[index] = UUID(result["flow_run_id"])
                continue
            error = result.get("error") or ""
            if not (_LOCKED.match(error) or _UNDONE.match(error)):
                raise SpecError(f"The Prefect server refuses item {draft.name!r}: {error}")
            errors.append(error)
        why = clause(errors[0].partition("\n")[0]) or "timeout" if errors else ""
        return ({} if any(map(_UNDONE.match, errors)) else made), why

    async def read_item(self, item_id: UUID) -> Item | None:
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
        await self._rest.get("DELETE", f"/flow_runs/{item_id}")

    async def list_items(
        self, *, limit: int = PAGE, offset: int = 0, by_id: bool = False, **wanted: Unpack[ItemFilter]
    ) -> list[Item]:
        sort = "ID_DESC" if by_id else "EXPECTED_START_TIME_DESC"
        return await self._list(sort, wanted, limit=limit, offset=offset)

    async def count_items(self, **wanted: Unpack[ItemFilter]) -> int:
        return int(await self._rest.get("POST", "/flow_runs/count", json=_filters(wanted)))

    async def count_due(self, pool: str, *, before: datetime, queues: Collection[str] = ()) -> int:
        # Only what is scheduled has such a time. A filter by state or flow too costs SQLite 20 times as much.
        runs: dict[str, Any] = {"next_scheduled_start_time": {"before_": before.isoformat()}}
        if queues:
            runs["work_queue_name"] = {"any_": list(queues)}
        body = {"flow_runs": runs, "work_pools": {"name": {"any_": [pool]}}}
        return int(await self._rest.get("POST", "/flow_runs/count", json=body))

    async def list_waiting(self, pool: str, queue: str, *, limit: int) -> list[Item]:
        wanted = ItemFilter(pool=pool, queue=queue, state_types=[StateType.SCHEDULED])
        return await self._list("NEXT_SCHEDULED_START_TIME_ASC", wanted, limit=limit)

    async def _list(self, sort: str, wanted: ItemFilter, **page: int) -> list[Item]:
        body = {"sort": sort, **page, **_filters(wanted)}
        found = await self._rest.get("POST", "/flow_runs/filter", json=body)
        return [await self._with_flow(Item.model_validate(each)) for each in found]

    async def poll(
        self, pool: str, *, limit: int, before: datetime, after: datetime | None = None, queues: Collection[str] = ()
    ) -> list[Item]:
        body: dict[str, Any] = {"limit": limit, "scheduled_before": before.isoformat()}
        if after is not None:
            body["scheduled_after"] = after.isoformat()
        if queues:
            body["work_queue_names"] = list(queues)
        path = f"/work_pools/{quote(pool, safe='')}/get_scheduled_flow_runs"
        found = await self._rest.get("POST", path, json=body)
        polled = [
            {**entry["flow_run"], "work_pool_id": entry["work_pool_id"], "work_pool_name": pool}
            for entry in found or ()
        ]
        return [await self._with_flow(Item.model_validate(item)) for item in polled]

    async def record_infrastructure(self, item_id: UUID, handle: str | None) -> None:
        await self._rest.get("PATCH", f"/flow_runs/{item_id}", json={"infrastructure_pid": handle})

    async def label_item(self, item_id: UUID, labels: Mapping[str, Any]) -> None:
        await self._rest.get("PATCH", f"/flow_runs/{item_id}/labels", json=dict(labels))

    async def rename_item(self, item_id: UUID, name: str) -> None:
        await self._rest.get("PATCH", f"/flow_runs/{item_id}", json={"name": name})

    async def replace_parameters(self, item_id: UUID, parameters: Mapping[str, Any]) -> None:
        await self._rest.get("PATCH", f"/flow_runs/{item_id}", json={"parameters": dict(parameters)})

    async def replace_tags(self, item_id: UUID, tags: Collection[str]) -> None:
        await self._rest.get("PATCH", f"/flow_runs/{item_id}", json={"tags": list(tags)})

    async def put_input(self, item_id: UUID, key: str, value: str) -> bool:
        response = await self._rest.call("POST", f"/flow_runs/{item_id}/input", json={"key": key, "value": value})
        if is_taken(response):
            return False
        if response.status_code == _GONE:
            raise ItemGoneError(f"Item {item_id} is not on the server any more, so it takes no input.")
        raise_refusal(response)
        return True

    async def read_input(self, item_id: UUID, key: str) -> str | None:
        response = await self._rest.call("GET", f"/flow_runs/{item_id}/input/{key}")
        if response.status_code == _GONE:
            return None
        raise_refusal(response)
        return response.text

    async def delete_input(self, item_id: UUID, key: str) -> None:
        await self._rest.get("DELETE", f"/flow_runs/{item_id}/input/{key}")


def _body(draft: ItemDraft) -> dict[str, Any]:
    state = draft.state.model_dump(mode="json", include={"type", "name", "message", "state_details"})
    body = draft.model_dump(mode="json", exclude={"state"}, exclude_none=True)
    return {**body, "state": state}


def _filters(wanted: ItemFilter) -> dict[str, Any]:
    """Return the filters of the server's API."""
    given = {name: value for name, value in cast("dict[str, Any]", wanted).items() if value is not None}

    def any_of(**names: str) -> dict[str, Any]:
        values = {field: given[name] for name, field in names.items() if name in given}
        return {
            field: {"any_": [str(one) if isinstance(one, UUID) else one for one in values[field]]} for field in values
        }

    runs = any_of(ids="id", keys="idempotency_key", names="name")
    state = any_of(state_types="type", state_names="name")
    if "name" in state:  # The server ignores a filter with both any_ and not_any_.
        state["name"]["any_"] = [name for name in state["name"]["any_"] if name != MOVED or given.get("moved")]
    elif not given.get("moved") and StateType.CANCELLED in given.get("state_types", (StateType.CANCELLED,)):
        state["name"] = {"not_any_": [MOVED]}
    if state:
        runs["state"] = state
    if "tags" in given:
        runs["tags"] = {"all_": list(given["tags"])}
    if "due_before" in given:
        runs["next_scheduled_start_time"] = {"before_": given["due_before"].isoformat()}
    if "expected_after" in given:
        runs["expected_start_time"] = {"after_": given["expected_after"].isoformat()}
    flows = [given["flow"]] if "flow" in given else list(ITEM_FLOWS)
    filters: dict[str, Any] = {"flow_runs": runs, "flows": {"name": {"any_": flows}}}
    for name, table in (("pool", "work_pools"), ("queue", "work_pool_queues")):
        if name in given:
            filters[table] = {"name": {"any_": [given[name]]}}
    return filters


# --- states ---

#: Proposals in a row whose answers are lost, before the caller gets an error.
_LOST_MAX: Final = 5
#: What a server gets to commit a request whose answer cannot reach us any more.
_LOST_PAUSE_SECONDS: Final = 0.3

#: The server keeps a state's data as an artifact. Of this type, as the results of Prefect's own flows are, it is not
#: listed among what a run shows; without one, its page has an artifact of no name and type.
RESULT: Final = "result"


class ProposalCalls(Calls):
    """Calls about the states of items."""

    _unanswered: set[UUID]

    async def propose(
        self, item_id: UUID, state: State, *, transition_id: UUID | None = None, force: bool = False
    ) -> Verdict:
        token = transition_id or uuid4()
        lost = 0
        while True:
            if token in self._unanswered and (made := await self._made(item_id, token)):
                self._unanswered.discard(token)
                return Verdict(status=Answer.ACCEPT, state=made, is_repeated=True)
            try:
                verdict = await self._send(item_id, state, token, force=force)
            except AnswerLostError:
                self._unanswered.add(token)
                lost += 1
                if lost == _LOST_MAX:
                    raise
                await anyio.sleep(_LOST_PAUSE_SECONDS)
            except ServerFailedError:
                self._unanswered.add(token)
                raise
            else:
                self._unanswered.discard(token)
                return verdict

    async def read_states(self, item_id: UUID) -> list[State]:
        found = await self._rest.get("GET", "/flow_run_states/", params={"flow_run_id": str(item_id)})
        return [State.model_validate(state) for state in found or ()]

    async def _made(self, item_id: UUID, token: UUID) -> State | None:
        """Return the state that a proposal has made, if it has."""
        made = [state for state in await self.read_states(item_id) if state.transition_id == str(token)]
        return made[-1] if made else None

    async def _send(self, item_id: UUID, state: State, token: UUID, *, force: bool) -> Verdict:
        data = state.data
        proposed = {
            "type": state.type.value,
            "name": state.name,
            "message": state.message,
            "data": {**data, "artifact_type": RESULT} if data and isinstance(data, dict) else data,
            "state_details": {
                **state.state_details,
                "flow_run_id": str(item_id),
                "transition_id": str(token),
            },
        }
        body = {"state": proposed, "force": force}
        answer = await self._rest.get("POST", f"/flow_runs/{item_id}/set_state", json=body)
        if answer is None:
            raise ItemGoneError(f"Item {item_id} is not on the server any more: it was deleted while it was active.")
        return Verdict.model_validate(answer)


# --- logs, artifacts, heartbeats ---

#: Keys in one request; each has one artifact, and the server lists 200.
_ARTIFACTS_PAGE: Final = 100
#: What an artifact that is made once tells of, in its metadata.
ONCE: Final = "prefect-launch.once"


class TelemetryCalls(Calls):
    """Calls about logs, artifacts and events."""

    api_url: str

    async def write_logs(self, item_id: UUID, records: Sequence[LogRecord]) -> None:
        await self.write_lines([(item_id, record) for record in records])

    async def write_lines(self, lines: Sequence[tuple[UUID, LogRecord]]) -> None:
        body = [{**record.model_dump(mode="json"), "flow_run_id": str(item_id)} for item_id, record in lines]
        await self._rest.get("POST", "/logs/", json=body)

    async def read_logs(
        self, item_id: UUID, *, limit: int = PAGE, offset: int = 0, since: datetime | None = None
    ) -> list[LogRecord]:
        body = {
            "logs": {
                "flow_run_id": {"any_": [str(item_id)]},
                "timestamp": None if since is None else {"after_": since.isoformat()},
            },
            "sort": "TIMESTAMP_ASC",
            "limit": limit,
            "offset": offset,
        }
        return [LogRecord.model_validate(found) for found in await self._rest.get("POST", "/logs/filter", json=body)]

    async def create_artifact(
        self, item_id: UUID, *, key: str, kind: str, data: Any, description: str | None = None, once: str | None = None
    ) -> None:
        body = {"key": key, "type": kind, "data": data, "description": description, "flow_run_id": str(item_id)}
        if once is not None:
            body["metadata_"] = {ONCE: once}
        lost = 0
        while not any(is_same_artifact(found, data, once) for found in await self._artifacts(item_id, key)):
            try:
                await self._rest.get("POST", "/artifacts/", json=body)
                return
            except AnswerLostError:
                lost += 1
                if lost == _LOST_MAX:
                    raise
                await anyio.sleep(_LOST_PAUSE_SECONDS)

    async def put_artifact(
        self,
        item_id: UUID,
        *,
        key: str,
        kind: str,
        data: Any,
        description: str | None = None,
        artifact_id: UUID | None = None,
    ) -> UUID:
        new = {"data": data, "description": description}
        lost = 0
        while True:
            if artifact_id is None:
                found = await self._filter_artifacts({"flow_run_id": {"any_": [str(item_id)]}, "key": {"any_": [key]}})
                artifact_id = UUID(found[0]["id"]) if found else None
            try:
                if artifact_id is None:
                    body = {"key": key, "type": kind, "flow_run_id": str(item_id), **new}
                    return UUID((await self._rest.get("POST", "/artifacts/", json=body))["id"])
                if await self._rest.get("PATCH", f"/artifacts/{artifact_id}", json=new) is not None:
                    return artifact_id
                artifact_id = None  # somebody has deleted it
            except AnswerLostError:
                lost += 1
                if lost == _LOST_MAX:
                    raise
                await anyio.sleep(_LOST_PAUSE_SECONDS)

    async def read_artifacts(self, keys: Collection[str]) -> dict[str, Any]:
        wanted = list(keys)
        newest: dict[str, Any] = {}
        for start in range(0, len(wanted), _ARTIFACTS_PAGE):
            page = {"key": {"any_": wanted[start : start + _ARTIFACTS_PAGE]}}
            for found in await self._filter_artifacts(page):
                newest.setdefault(found["key"], found["data"])
        return newest

    async def _filter_artifacts(self, wanted: Mapping[str, Any]) -> list[dict[str, Any]]:
        """List artifacts, the one that was written last first."""
        body = {"artifacts": wanted, "sort": "UPDATED_DESC"}
        found: list[dict[str, Any]] = await self._rest.get("POST", "/artifacts/filter", json=body)
        return found

    async def list_artifacts(self, item_id: UUID) -> list[dict[str, Any]]:
        return await self._artifacts(item_id)

    async def _artifacts(self, item_id: UUID, key: str | None = None) -> list[dict[str, Any]]:
        wanted: dict[str, Any] = {"flow_run_id": {"any_": [str(item_id)]}, "type": {"not_any_": [RESULT]}}
        if key is not None:
            wanted["key"] = {"any_": [key]}
        found: list[dict[str, Any]] = await self._rest.get("POST", "/artifacts/filter", json={"artifacts": wanted})
        return found

    async def beat_items(self, items: Sequence[Item]) -> None:
        now = datetime.now(timezone.utc).isoformat()
        events = [
            {
                "id": str(uuid4()),
                "occurred": now,
                "event": "prefect.flow-run.heartbeat",
                "resource": {
                    "prefect.resource.id": f"prefect.flow-run.{item.id}",
                    "prefect.resource.name": item.name,
                },
                "related": _pool_of(item),
                "payload": {},
            }
            for item in items
        ]
        await self._rest.get("POST", "/events", json=events)


def is_same_artifact(found: Mapping[str, Any], data: Any, once: str | None) -> bool:
    """Whether an artifact of the right key is the one that is to be made."""
    if once is None:
        return bool(found["data"] == data)
    return bool((found.get("metadata_") or {}).get(ONCE) == once)


def _pool_of(item: Item) -> list[dict[str, str]]:
    """Name an item's queue in an event, as the server's own events about the item do."""
    if item.work_pool_id is None:
        return []
    return [
        {
            "prefect.resource.id": f"prefect.work-pool.{item.work_pool_id}",
            "prefect.resource.role": "work-pool",
            "prefect.resource.name": item.work_pool_name or "",
            "prefect.work-pool.type": POOL_TYPE,
        }
    ]
