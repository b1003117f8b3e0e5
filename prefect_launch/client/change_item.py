"""Changes of an item that waits: its inputs in place, its priority or queue by an item that takes its place.

An agent may claim the item at any moment. So a change claims it first, as agents do (`prefect_launch.queues.claim`):
either the agent has it, and the change is refused, or the change has it, and no agent takes it meanwhile. Then the item
goes back to its place in the queue. A change that dies in between leaves the claim, which an agent of the queue undoes
(`prefect_launch.agent.recovery.abandoned_changes`).

A move ends the item before it makes the other one. A move that dies in between is completed by the same command.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import anyio

from prefect_launch.client.item_check import NamedJob, check_item, draft_item
from prefect_launch.core.names import name_and_id, short_id
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import LaunchError, QueueError, ServerUnavailableError, SpecError
from prefect_launch.inputs.config_files import deep_merge
from prefect_launch.queues.author_shares import check_waiting
from prefect_launch.queues.claim import CHANGE, CHANGED_LATER, claim, finish_cancelling, waiting_state
from prefect_launch.queues.moved import is_moved, key_after
from prefect_launch.queues.session import queue_tag
from prefect_launch.queues.transitions import transition_id_for
from prefect_launch.server.values import MOVED, Item, ItemDraft, State
from prefect_launch.spec.item_parameters import FORM_LABEL, JOB_LABEL, OPTIONS_PARAMETER, is_scheduler, spec_of
from prefect_launch.spec.launch_spec import parse_spec
from prefect_launch.spec.scheduling import Priority

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.jobs.model import Job
    from prefect_launch.queues.session import CachedQueue, Session
    from prefect_launch.server.protocol import Server

#: The longest that a change holds an item: an agent takes one that is held for longer than this for abandoned.
HOLD_SECONDS: Final = 20.0
_RELEASE_SECONDS: Final = 20.0
#: Labels that the server sets by itself.
_OF_SERVER: Final = "prefect."


@dataclass(frozen=True)
class Changer:
    """Who changes an item.

    Attributes:
        who: a user on a machine.
    """

    who: str

    def claimed_state(self) -> State:
        """Return the state that holds an item for the time of the change."""
        state = State.of(ItemState.CLAIMED, f"Held by {self.who} to change it.")
        return state.model_copy(update={"data": {CHANGE: self.who}})


async def edit_item(api: Api, session: Session, item: Item, inputs: Mapping[str, Any], who: str) -> Item:
    """Give an item that waits other inputs; see `QueuedRun.edit`."""
    _refuse_unless_waiting(item)
    job, queue = await _job_of(session, item), await session.queue(item.work_pool_name or "")
    _edited(api, queue, job, item, inputs)  # What is refused holds nothing.
    async with _held(session.server, item, who) as held:
        await session.server.replace_parameters(held.id, _edited(api, queue, job, held, inputs))
    return await _again(session, item)


async def move_item(
    api: Api, session: Session, item: Item, who: str, *, queue_name: str | None = None, priority: Priority | None = None
) -> Item:
    """Put an item that waits on another queue, or give it another priority; see `QueuedRun.move`."""
    if not is_moved(item):  # Else an earlier move has ended it, and made nothing in its place.
        _refuse_unless_waiting(item)
        _refuse_attempted(item)
    was = Priority.of_work_queue(item.work_queue_name)
    target, urgency = queue_name or item.work_pool_name or "", was if priority is None else priority
    if not is_moved(item) and (target, urgency) == (item.work_pool_name, was):
        raise SpecError(
            f"Item {name_and_id(item)} is on the queue {target!r} with priority {was.name.lower()} already."
        )
    session.forget_queue(target)
    queue, draft = await _draft_elsewhere(api, session, item, target, urgency)
    if target != item.work_pool_name:
        await check_waiting(session.server, queue, [draft])
    if not is_moved(item):
        async with _held(session.server, item, who) as held:
            draft = draft.model_copy(update={"parameters": _kept_parameters(held, draft, queue)})
            await _end_as_moved(
                session.server, held, f"Moved to the queue {target!r}, priority {urgency.name.lower()}."
            )
    made = await session.server.create_item(queue.deployment_id, draft)
    if made is None or made.work_pool_name != queue.name:
        raise QueueError(
            f"The queue {target!r} was deleted while item {name_and_id(item)} was moved to it: the item waits nowhere"
            f" now. Move it again: 'prefect-launch item move {item.id} -q QUEUE'."
        )
    return made


# --- what a change makes ---


def _edited(api: Api, queue: CachedQueue, job: Job | None, item: Item, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return an item's parameters with other inputs, checked as when it was added."""
    spec = spec_of(item)
    overrides = spec.overrides.model_copy(update={"run_config": deep_merge(spec.overrides.run_config, inputs)})
    changed = parse_spec(spec.model_copy(update={"overrides": overrides}).dump())
    checked = draft_item(api, queue, changed, job).parameters.get("overrides", {}).get("run_config", {})
    if item.labels.get(FORM_LABEL):
        return {**checked, **{key: item.parameters[key] for key in (OPTIONS_PARAMETER,) if key in item.parameters}}
    return {**item.parameters, "overrides": {**(item.parameters.get("overrides") or {}), "run_config": checked}}


async def _draft_elsewhere(
    api: Api, session: Session, item: Item, queue_name: str, priority: Priority
) -> tuple[CachedQueue, ItemDraft]:
    """Check an item for another queue or priority as if it was added there; return the queue and what to make."""
    job = await _job_of(session, item)
    spec = spec_of(item).model_copy(update={"priority": priority, "job": job.reference if job else None, "uri": None})
    spec = spec.model_copy(update={"docker": spec.docker.model_copy(update={"resolved": False})})
    checked = await check_item(api, session, spec, queue_name, NamedJob(job), is_move=True)
    draft, queue = checked.draft, checked.queue
    own_labels = {key: value for key, value in item.labels.items() if not key.startswith(_OF_SERVER)}
    own_labels.pop(FORM_LABEL, None)  # The item is made from its queue's deployment, by its parameters.
    changes = {
        "name": item.name,
        "parameters": _kept_parameters(item, draft, queue),
        "job_variables": dict(item.job_variables or {}),
        "tags": tuple({*item.tags, *draft.tags} - {queue_tag(item.work_pool_name or "")} | {queue_tag(queue.name)}),
        "labels": {**own_labels, **draft.labels},
        "idempotency_key": key_after(item.id),
        "state": draft.state if is_moved(item) else _waiting_state(item, draft, queue.name),
    }
    return queue, draft.model_copy(update=changes)


def _kept_parameters(item: Item, draft: ItemDraft, queue: CachedQueue) -> dict[str, Any]:
    """Return an item's own parameters: what was looked up for it stays. Those of a job's form become a spec."""
    if item.labels.get(FORM_LABEL):
        return draft.parameters
    pinned = {name: value for name, value in draft.parameters.items() if name == "docker" and queue.config.pin}
    return {**item.parameters, **pinned}


def _waiting_state(item: Item, draft: ItemDraft | None = None, queue: str | None = None) -> State:
    """Return the state in which an item waits, which keeps its place in line and the time at which it is due."""
    message = item.message if draft is None or queue == item.work_pool_name else draft.state.message
    return waiting_state(item.state_name, message, due=item.next_scheduled_start_time)


async def _job_of(session: Session, item: Item) -> Job | None:
    reference = item.labels.get(JOB_LABEL) or spec_of(item).job
    return await session.jobs.resolve(reference) if reference else None


# --- holding it ---


@asynccontextmanager
async def _held(server: Server, item: Item, who: str) -> AsyncIterator[Item]:
    """Hold an item that waits: no agent takes it inside. After it the item waits as before, unless it was ended."""
    held = None
    try:
        with anyio.fail_after(HOLD_SECONDS):
            held = await claim(server, item, holder=Changer(who))
            if held is None:
                raise LaunchError(
                    f"Item {name_and_id(item)} was not changed: an agent has taken it at this moment, or another"
                    f" change, or it was cancelled. 'prefect-launch item show {short_id(item.id)}' shows it."
                )
            yield held
    except TimeoutError:
        raise ServerUnavailableError(
            f"The Prefect server took longer than {HOLD_SECONDS:g} s to change item {name_and_id(item)}. It is in its"
            " queue again within three minutes if an agent is online; see then whether it has changed."
        ) from None
    finally:
        if held is not None:
            with anyio.move_on_after(_RELEASE_SECONDS, shield=True):
                await _release(server, item, held)


async def _release(server: Server, was: Item, held: Item) -> None:
    """Let an item wait as before, unless it is not in the state in which it was held any more."""
    now = await server.read_item(held.id)
    if now is None or now.state is None or held.state is None:
        return
    if now.state.transition_id == held.state.transition_id:
        once = transition_id_for(held, "changed")
        verdict = await server.propose(held.id, _waiting_state(_changed(was)), transition_id=once)
        now = now.model_copy(update={"state_type": verdict.state.type if verdict.state else None})
    await finish_cancelling(server, now)


def _changed(was: Item) -> Item:
    """Return an item that is due a microsecond later: by that, a claim from an older poll shows that it has changed."""
    due = was.next_scheduled_start_time
    return was if due is None else was.model_copy(update={"next_scheduled_start_time": due + CHANGED_LATER})


async def _end_as_moved(server: Server, held: Item, why: str) -> None:
    moved = State(type=StateType.CANCELLED, name=MOVED, message=why)
    verdict = await server.propose(held.id, moved, transition_id=transition_id_for(held, "moved"))
    if not verdict.accepted:
        raise LaunchError(f"Item {name_and_id(held)} was not moved: {verdict.reason}")


async def _again(session: Session, item: Item) -> Item:
    return await session.server.read_item(item.id) or item


def _refuse_unless_waiting(item: Item) -> None:
    if is_scheduler(item):
        raise SpecError(
            f"Item {name_and_id(item)} is a sweep, and no job: 'prefect-launch sweep --help' shows its commands."
        )
    if item.state_type is not StateType.SCHEDULED:
        raise LaunchError(
            f"Item {name_and_id(item)} is {item.state_name}: only an item that waits can be changed."
            f" 'prefect-launch item rerun {short_id(item.id)}' queues another one with changes."
        )
    if not item.work_pool_name:
        raise LaunchError(f"Item {name_and_id(item)} is on no queue: it was deleted. Queue its spec on another.")


def _refuse_attempted(item: Item) -> None:
    """Refuse an item that has run before: its attempts, its log and what it has kept to continue belong to it."""
    if item.run_count:
        raise LaunchError(
            f"Item {name_and_id(item)} has run before ({item.run_count} times) and waits to run again: its attempts and"
            f" outputs stay with it. Cancel it, and queue another: 'prefect-launch item rerun {short_id(item.id)}'."
        )
