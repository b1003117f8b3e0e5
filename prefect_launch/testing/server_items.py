"""Items of the in-memory Prefect server: made, read, polled and moved by the rules of the real one.

The order of the rules for a state change and their words are the server's; the same contract tests run on both. It
lacks what prefect-launch never uses: input for a paused run, retries by the server, limits of deployments, and states
that the server sets by itself after a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from uuid import UUID, uuid4

from prefect_launch.core.states import TERMINAL, ItemState, StateType
from prefect_launch.core.validation import json_fault
from prefect_launch.errors import ItemGoneError, ServerFailedError, SpecError
from prefect_launch.server.values import (
    BULK,
    ITEM_FLOWS,
    MOVED,
    PAGE,
    Answer,
    Item,
    ItemDraft,
    ItemFilter,
    PriorityQueue,
    State,
    Verdict,
)
from prefect_launch.testing.server_store import (
    Calls,
    StoredDeployment,
    StoredItem,
    StoredPool,
    as_json,
    call,
    check_size,
    parameter_fault,
    refused,
    variable_fault,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: What the limits of pools and queues count.
_IN_WORK = frozenset({StateType.PENDING, StateType.RUNNING})
_SENT_AS_EVENTS = frozenset({StateType.SCHEDULED, StateType.PENDING, StateType.CANCELLING})
#: Whether an item fits a filter, by the filter's name.
_FITS: Final[Mapping[str, Callable[[Item, Any], bool]]] = {
    "pool": lambda item, pool: item.work_pool_name == pool,
    "queue": lambda item, queue: item.work_queue_name == queue,
    "ids": lambda item, ids: item.id in ids,
    "state_types": lambda item, types: item.state_type in types,
    "state_names": lambda item, names: item.state_name in names,
    "tags": lambda item, tags: set(tags) <= set(item.tags),
    "keys": lambda item, keys: item.idempotency_key in keys,
    "names": lambda item, names: item.name in names,
    "due_before": lambda item, before: (
        item.next_scheduled_start_time is not None and item.next_scheduled_start_time <= before
    ),
    "expected_after": lambda item, after: item.expected_start_time is not None and item.expected_start_time >= after,
}


class InMemoryItems(Calls):
    """Calls about items."""

    # --- making ---

    @call
    def create_item(self, deployment_id: UUID, draft: ItemDraft) -> Item | None:
        check_size(draft.parameters)
        kept = self._store.deployments.get(deployment_id)
        if kept is None:
            return None
        fault = self._fault(kept, draft)
        if fault is not None:
            raise refused(fault)
        return self._make(kept, draft)

    @call
    def create_items(
        self, deployment_id: UUID, drafts: Sequence[ItemDraft], *, progress: Callable[[int], None] = lambda made: None
    ) -> list[Item]:
        made: list[Item] = []
        for start in range(0, len(drafts), BULK):
            made += self._create_batch(deployment_id, drafts[start : start + BULK])
            progress(len(made))
        return made

    def _create_batch(self, deployment_id: UUID, drafts: Sequence[ItemDraft]) -> list[Item]:
        for draft in drafts:
            check_size(draft.parameters)
        kept = self._store.deployments.get(deployment_id)
        if kept is None:
            raise SpecError(f"The deployment {deployment_id} is gone: was the queue deleted meanwhile?")
        made: list[Item] = []
        refusals: list[str] = []
        for draft in drafts:
            fault = self._fault(kept, draft)
            if fault is None:
                made.append(draft.made(self._make(kept, draft).id, deployment_id))
            else:
                refusals.append(f"The Prefect server refuses item {draft.name!r}: {fault}")
        if refusals:
            raise SpecError(refusals[0])
        return made

    def _make(self, kept: StoredDeployment, draft: ItemDraft) -> Item:
        there = self._find(kept.flow, draft.idempotency_key)
        if there is not None:
            return there.item
        sent = draft.state.model_dump(include={"type", "name", "message", "state_details"})
        first = _due_when_read(State.model_validate(sent), self._store.now())
        deployment = kept.deployment
        pool = self._store.pools[deployment.work_pool_name or ""]
        queue = _queue_of(pool, draft.work_queue_name)
        labels = {**(deployment.labels or {}), "prefect.deployment.id": str(deployment.id), **as_json(draft.labels)}
        item = Item(
            id=uuid4(),
            name=draft.name,
            created=self._store.now(),
            deployment_id=deployment.id,
            flow_id=self._store.flow_ids[kept.flow],
            parameters={**deployment.parameters, **as_json(draft.parameters)},
            job_variables=as_json(draft.job_variables),
            idempotency_key=draft.idempotency_key,
            tags=tuple(sorted({*deployment.tags, *draft.tags})),
            labels=labels,
            work_pool_id=pool.pool.id,
            work_pool_name=pool.pool.name,
            work_queue_name=queue.name,
            work_queue_id=queue.id,
        )
        stored = self._store.items[item.id] = StoredItem(item, kept.flow)
        self._enter_state(stored, first)
        return stored.item

    def _fault(self, kept: StoredDeployment, draft: ItemDraft) -> str | None:
        deployment, fault = kept.deployment, None
        pool = self._store.pools.get(deployment.work_pool_name or "")
        if kept.enforce if draft.enforce_parameter_schema is None else draft.enforce_parameter_schema:
            parameters = {**deployment.parameters, **as_json(draft.parameters)}
            fault = parameter_fault(parameters, deployment.parameter_openapi_schema or {})
        if fault is None and pool is not None:
            fault = variable_fault(pool.pool.base_job_template, as_json(draft.job_variables))
        if fault is not None:
            return f"Error creating flow run: {fault}"
        if pool is not None:
            return None
        return (
            f"Cannot create flow run in work queue {draft.work_queue_name} because deployment {deployment.id}"
            " is not associated with a work pool. Please remove work_pool_name and try again."
        )

    def _find(self, flow: str, key: str) -> StoredItem | None:
        made = self._store.items.values()
        return next((one for one in made if one.flow == flow and one.item.idempotency_key == key), None)

    # --- reading ---

    @call
    def read_item(self, item_id: UUID) -> Item | None:
        stored = self._store.items.get(item_id)
        return None if stored is None else stored.item.model_copy(update={"flow": stored.flow})

    @call
    def delete_item(self, item_id: UUID) -> None:
        self._store.items.pop(item_id, None)
        self._store.logs.pop(item_id, None)

    @call
    def list_items(
        self, *, limit: int = PAGE, offset: int = 0, by_id: bool = False, **wanted: Unpack[ItemFilter]
    ) -> list[Item]:
        _check_page(limit)
        found = self._fitting(wanted)[::-1]
        now = self._store.now()
        found.sort(key=lambda item: item.id if by_id else item.expected_start_time or now, reverse=True)
        return _sent(found[offset : offset + limit])

    @call
    def count_items(self, **wanted: Unpack[ItemFilter]) -> int:
        return len(self._fitting(wanted))

    @call
    def count_due(self, pool: str, *, before: datetime, queues: Collection[str] = ()) -> int:
        return sum(
            item.work_pool_name == pool
            and item.state_type is StateType.SCHEDULED
            and _FITS["due_before"](item, before)
            and (not queues or item.work_queue_name in queues)
            for item in (stored.item for stored in self._store.items.values())
        )

    @call
    def list_waiting(self, pool: str, queue: str, *, limit: int) -> list[Item]:
        _check_page(limit)
        waiting = self._fitting({"pool": pool, "queue": queue, "state_types": [StateType.SCHEDULED]})
        return _sent(sorted(waiting, key=lambda item: item.next_scheduled_start_time or self._store.now())[:limit])

    def _fitting(self, wanted: ItemFilter) -> list[Item]:
        given = [(_FITS[name], value) for name, value in wanted.items() if value is not None and name in _FITS]
        flow = wanted.get("flow")
        flows = ITEM_FLOWS if flow is None else (flow,)
        kept = (stored for stored in self._store.items.values() if stored.flow in flows)
        ours = [stored.item.model_copy(update={"flow": stored.flow}) for stored in kept]
        return [
            item
            for item in ours
            if (wanted.get("moved") or item.state_name != MOVED) and all(fits(item, value) for fits, value in given)
        ]

    @call
    def read_states(self, item_id: UUID) -> list[State]:
        stored = self._store.items.get(item_id)
        return [] if stored is None else stored.history

    @call
    def poll(
        self, pool: str, *, limit: int, before: datetime, after: datetime | None = None, queues: Collection[str] = ()
    ) -> list[Item]:
        _check_page(limit)
        stored = self._store.pools.get(pool)
        if stored is None or stored.pool.is_paused or not stored.queues.keys() >= set(queues):
            return []
        stored_inside = [each for each in self._store.items.values() if each.item.work_pool_name == pool]
        inside = [each.item.model_copy(update={"flow": each.flow}) for each in stored_inside]
        free = min(limit, _free(stored.pool.concurrency_limit, inside))
        due: list[Item] = []
        for queue in sorted(stored.queues.values(), key=lambda queue: queue.priority or 0):
            if not queue.is_paused and (not queues or queue.name in queues):
                due.extend(_due([item for item in inside if item.work_queue_id == queue.id], queue, after, before))
        return [item.model_copy(update={"state": None}) for item in due[:free]]

    # --- moving and marking ---

    @call
    def propose(
        self, item_id: UUID, state: State, *, transition_id: UUID | None = None, force: bool = False
    ) -> Verdict:
        stored = self._store.items.get(item_id)
        if stored is None:
            raise ItemGoneError(f"Item {item_id} is not on the server any more: it was deleted while it was active.")
        details = {**as_json(state.state_details), "transition_id": str(transition_id or uuid4())}
        proposed = state.model_copy(update={"state_details": details, "data": as_json(state.data)})
        ruling = judge(stored.item, proposed, force=force, now=self._store.now())
        if ruling.state is not None:
            self._enter_state(stored, ruling.state)
        return Verdict(status=ruling.answer, state=stored.item.state, details=ruling.details)

    def _enter_state(self, stored: StoredItem, state: State) -> None:
        stored.item = entered(stored.item, state, stored.history, self._store.now())
        if stored.item.state is not None:
            stored.history.append(stored.item.state)
        self._store.notify(stored.item, pools=state.type in _SENT_AS_EVENTS)

    def detach(self, item_id: UUID) -> None:
        """Make an item a flow run that no deployment has made: such as a process makes and runs by itself."""
        with self._store.lock:
            of_pool = dict.fromkeys(("work_pool_id", "work_pool_name", "work_queue_name", "work_queue_id"))
            self._change(item_id, deployment_id=None, **of_pool)

    def _change(self, item_id: UUID, **changes: Any) -> None:
        stored = self._store.items.get(item_id)
        if stored is not None:
            stored.item = stored.item.model_copy(update=changes)

    @call
    def record_infrastructure(self, item_id: UUID, handle: str | None) -> None:
        self._change(item_id, infrastructure_pid=handle)

    @call
    def label_item(self, item_id: UUID, labels: Mapping[str, Any]) -> None:
        stored = self._store.items.get(item_id)
        if stored is not None:
            self._change(item_id, labels={**stored.item.labels, **as_json(dict(labels))})

    @call
    def rename_item(self, item_id: UUID, name: str) -> None:
        self._change(item_id, name=name)

    @call
    def replace_parameters(self, item_id: UUID, parameters: Mapping[str, Any]) -> None:
        self._change(item_id, parameters=as_json(dict(parameters)))

    @call
    def replace_tags(self, item_id: UUID, tags: Collection[str]) -> None:
        self._change(item_id, tags=tuple(tags))

    @call
    def put_input(self, item_id: UUID, key: str, value: str) -> bool:
        stored = self._store.items.get(item_id)
        if stored is None:
            raise ItemGoneError(f"Item {item_id} is not on the server any more, so it takes no input.")
        is_new = key not in stored.inputs
        stored.inputs.setdefault(key, value)
        return is_new

    @call
    def read_input(self, item_id: UUID, key: str) -> str | None:
        stored = self._store.items.get(item_id)
        return None if stored is None else stored.inputs.get(key)

    @call
    def delete_input(self, item_id: UUID, key: str) -> None:
        stored = self._store.items.get(item_id)
        if stored is not None:
            stored.inputs.pop(key, None)


def _sent(items: list[Item]) -> list[Item]:
    """Return a list of items as the server sends it, which fails over an integer beyond 64 bits in any of them."""
    if any(json_fault(item.parameters) or json_fault(item.labels) for item in items):
        raise ServerFailedError("The Prefect server failed with 500 on POST /flow_runs/filter: Internal Server Error")
    return items


def _check_page(limit: int) -> None:
    if limit > PAGE:
        raise refused(f"Invalid limit: must be less than or equal to {PAGE}.")


def _queue_of(pool: StoredPool, name: str) -> PriorityQueue:
    """Return the pool's work queue of that name; one that is not there is made, with the first free priority."""
    if name not in pool.queues:
        taken = {queue.priority for queue in pool.queues.values()}
        free = next(number for number in range(1, len(taken) + 2) if number not in taken)
        pool.queues[name] = PriorityQueue(id=uuid4(), name=name, priority=free)
    return pool.queues[name]


def _free(limit: int | None, items: Collection[Item]) -> int:
    in_work = sum(item.state_type in _IN_WORK for item in items)
    return PAGE if limit is None else max(0, limit - in_work)


def _due(items: Collection[Item], queue: PriorityQueue, after: datetime | None, before: datetime) -> list[Item]:
    waiting = [
        (item.next_scheduled_start_time, item)
        for item in items
        if item.state_type is StateType.SCHEDULED and item.next_scheduled_start_time is not None
    ]
    inside = (each for each in waiting if each[0] <= before and (after is None or each[0] >= after))
    due = sorted(inside, key=lambda each: each[0])
    return [item for _, item in due][: _free(queue.concurrency_limit, items)]


# --- rules of a state change ---

_MICROSECOND: Final = timedelta(microseconds=1)
_NO_RETURN = frozenset({StateType.CANCELLING, StateType.PAUSED, StateType.CRASHED})
_UNCLAIMABLE = frozenset({StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.CANCELLED})
_NOTHING_TO_STOP = "Scheduled flow run has no infrastructure to terminate."
_SUSPENDED = "Suspended flow run has no infrastructure to terminate."
_STOPPING = "Cannot transition flows that are cancelling to a state other than Cancelled."


class Ruling(NamedTuple):
    """What the server says to a proposal.

    Attributes:
        answer: its word.
        state: the state that the item enters; `None` when it stays in the one it is in.
        reason: why it does not enter the proposed one.
        delay_seconds: after which time to ask again.
    """

    answer: Answer
    state: State | None = None
    reason: str = ""
    delay_seconds: int | None = None

    @property
    def details(self) -> dict[str, Any]:
        """The details of the server's answer."""
        details: dict[str, Any] = {"type": f"{self.answer.value.lower()}_details"}
        if self.reason:
            details["reason"] = self.reason
        if self.delay_seconds is not None:
            details["delay_seconds"] = self.delay_seconds
        return details


_Rule = Callable[[Item, State, State, datetime], "Ruling | None"]


def judge(item: Item, proposed: State, *, force: bool, now: datetime) -> Ruling:
    """Return the server's ruling on a proposed state.

    Args:
        item: the item as it is.
        proposed: the state that is asked for.
        force: whether to pass over all rules but those that the server keeps even then.
        now: the server's clock.
    """
    current = item.state
    if current is None:
        return Ruling(Answer.ACCEPT, proposed)
    for rule in _FORCED if force else _RULES:
        ruling = rule(item, current, proposed, now)
        if ruling is not None:
            return ruling
    return Ruling(Answer.ACCEPT, proposed if force else _with_scheduled_time_of(current, proposed))


def entered(item: Item, state: State, history: Collection[State], now: datetime) -> Item:
    """Return the item in a new state, with all that the server keeps about it: times, run count, next start."""
    stamp = now
    taken = {past.timestamp for past in history}
    while stamp in taken:
        stamp += _MICROSECOND
    state = _due_when_read(state, stamp)
    details = {**state.state_details, "flow_run_id": str(item.id)}
    state = state.model_copy(update={"timestamp": stamp, "state_details": details})
    changes: dict[str, Any] = {"state": state, "state_type": state.type, "state_name": state.name}
    changes.update(_times(item, state, stamp))
    if state.type is StateType.RUNNING:
        changes["run_count"] = item.run_count + 1
    return item.model_copy(update=changes)


def _times(item: Item, state: State, stamp: datetime) -> dict[str, Any]:
    due = state.scheduled_time
    waits = state.type is StateType.SCHEDULED
    changes: dict[str, Any] = {"next_scheduled_start_time": due if waits else None}
    if item.expected_start_time is None:
        changes["expected_start_time"] = due if waits else stamp
    ends = state.type in TERMINAL
    if item.start_time is None and (ends or state.type is StateType.RUNNING):
        changes["start_time"] = stamp
    if not ends:
        changes["end_time"] = None
    elif item.end_time is None:
        changes["end_time"] = stamp
    if item.state is not None and item.state.type is StateType.RUNNING and item.state.timestamp is not None:
        changes["total_run_time"] = item.total_run_time + (stamp - item.state.timestamp).total_seconds()
    return changes


def _due_when_read(state: State, now: datetime) -> State:
    """Give a waiting state that names no time the moment at which the server reads it: it is due at once."""
    if state.type is not StateType.SCHEDULED or state.state_details.get("scheduled_time"):
        return state
    return state.model_copy(update={"state_details": {**state.state_details, "scheduled_time": now.isoformat()}})


def _time(text: object) -> datetime:
    return datetime.fromisoformat(str(text).replace("Z", "+00:00"))


def _with_scheduled_time_of(current: State, proposed: State) -> State:
    """A claim keeps the time that the item was scheduled for."""
    if proposed.type is not StateType.PENDING or current.type not in (StateType.SCHEDULED, StateType.PENDING):
        return proposed
    due = current.state_details.get("scheduled_time")
    if current.type is StateType.SCHEDULED:
        due = proposed.state_details.get("scheduled_time") or due
    return proposed.model_copy(update={"state_details": {**proposed.state_details, "scheduled_time": due}})


def _has_result(state: State) -> bool:
    return isinstance(state.data, dict) and bool(state.data) and state.data.get("type") != "unpersisted"


def _made_already(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    made, asked = current.state_details.get("transition_id"), proposed.state_details.get("transition_id")
    if made is None or asked is None or str(made) != str(asked):
        return None
    return Ruling(Answer.REJECT, reason="This run has already made this state transition.")


def _leaves_an_end(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if current.type not in TERMINAL:
        return None
    if proposed.type in _NO_RETURN:
        return Ruling(Answer.ABORT, reason=f"Run is already in terminal state {current.type.value}.")
    if current.type is StateType.COMPLETED and _has_result(current) and proposed.type not in TERMINAL:
        return Ruling(Answer.REJECT, reason="Run is already COMPLETED.")
    return _loses_a_result(item, current, proposed, now)


def _loses_a_result(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if current.type is not StateType.COMPLETED or proposed.type is not StateType.COMPLETED:
        return None
    if not _has_result(current) or _has_result(proposed):
        return None
    text = "Cannot overwrite a COMPLETED state that carries persisted result data with one that does not."
    return Ruling(Answer.REJECT, reason=text)


def _is_stopping(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if current.type is not StateType.CANCELLING or proposed.type is StateType.CANCELLED:
        return None
    return Ruling(Answer.REJECT, reason=_STOPPING)


def _has_nothing_to_stop(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if proposed.type is not StateType.CANCELLING:
        return None
    if current.type is StateType.SCHEDULED and (not item.infrastructure_pid or current.name == "Resuming"):
        return Ruling(Answer.REJECT, State.of(ItemState.CANCELLED), _NOTHING_TO_STOP)
    if current.type is StateType.PAUSED and current.state_details.get("pause_reschedule"):
        return Ruling(Answer.REJECT, State.of(ItemState.CANCELLED), _SUSPENDED)
    return None


def _is_claimed(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    """The trap is here: a run that completed, failed or crashed may be claimed again."""
    if proposed.type is not StateType.PENDING or current.type not in _UNCLAIMABLE:
        return None
    if current.type is StateType.PENDING and proposed.name not in ("Pending", current.name):
        return None
    text = f"This run is in a {current.type.value} state and cannot transition to a PENDING state."
    return Ruling(Answer.ABORT, reason=text)


def _cannot_pause(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if proposed.type is not StateType.PAUSED:
        return None
    verb = "suspend" if proposed.name == "Suspended" else "pause"
    if current.type is not StateType.RUNNING:
        return Ruling(Answer.REJECT, reason=f"Cannot {verb} flows that are not currently running.")
    if proposed.state_details.get("pause_reschedule") and item.deployment_id is None:
        return Ruling(Answer.ABORT, reason=f"Cannot {verb} flows without a deployment.")
    return None


def _cannot_resume(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if current.type is not StateType.PAUSED:
        return None
    goes_on = {StateType.RUNNING, StateType.SCHEDULED, StateType.CANCELLING, *TERMINAL}
    if proposed.type not in goes_on:
        types = (f"StateType.{one.type.value}" for one in (proposed, current))
        text = "This run cannot transition to the {} state from the {} state.".format(*types)
        return Ruling(Answer.REJECT, reason=text)
    if current.state_details.get("pause_reschedule") and item.deployment_id is None:
        text = f"Cannot reschedule a {proposed.name.lower()} flow run without a deployment."
        return Ruling(Answer.REJECT, reason=text)
    until = current.state_details.get("pause_timeout")
    if proposed.type is StateType.CANCELLING or not until or _time(until) >= now:
        return None
    failed = State.of(ItemState.FAILED, f"The flow was {proposed.name.lower()} and never resumed.")
    return Ruling(Answer.REJECT, failed, "The flow run pause has timed out and can no longer resume.")


def _is_too_early(item: Item, current: State, proposed: State, now: datetime) -> Ruling | None:
    if proposed.type is not StateType.RUNNING or current.type not in (StateType.SCHEDULED, StateType.PENDING):
        return None
    due = current.scheduled_time
    delay = 0.0 if due is None else (due - now).total_seconds()
    if delay < 0.5:  # the server rounds to seconds
        return None
    return Ruling(Answer.WAIT, None, "Scheduled time is in the future", math.floor(delay + 0.5))


_RULES: Final[tuple[_Rule, ...]] = (
    _made_already,
    _leaves_an_end,
    _is_stopping,
    _has_nothing_to_stop,
    _is_claimed,
    _cannot_pause,
    _cannot_resume,
    _is_too_early,
)
_FORCED: Final[tuple[_Rule, ...]] = (_loses_a_result, _has_nothing_to_stop)
