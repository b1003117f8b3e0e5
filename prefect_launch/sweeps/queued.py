"""Sweeps as items of a queue: an agent of the queue runs the scheduler, and the item is the sweep itself.

The item is a run of the flow `launch-sweep`, made from a deployment of that flow in the queue's pool. The flow decides
what an agent runs for it, so no job's deployment, and no parameter, can make a scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from prefect_launch.errors import QueueError
from prefect_launch.jobs.schema import value_definitions, within_64_bits
from prefect_launch.queues.session import QUEUE_LABEL, deployment_name, queue_tag
from prefect_launch.server.values import SCHEDULER_FLOW, SWEEPS_WORK_QUEUE, ItemDraft
from prefect_launch.sweeps.flow import pinned_parameters, sweep_flow
from prefect_launch.sweeps.program import ENTITY_LABEL, PROJECT_LABEL
from prefect_launch.sweeps.subflow import key_of_sweep
from prefect_launch.sweeps.sweep_check import check_sweep_request
from prefect_launch.sweeps.sweep_run import sweep_config
from prefect_launch.sweeps.trial_queue import queue_of

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.queues.session import Session

#: A limit of active items counts the scheduler too.
_LEAST_LIMIT: Final = 2


async def queue_sweep(api: Api, parameters: Mapping[str, Any]) -> UUID:
    """Check a sweep and put it on the queue of its trials, for an agent to run; once for each call in a flow's tries.

    Args:
        api: the Prefect server.
        parameters: those of `sweep_config`.

    Returns:
        The sweep's id, which is the item's.

    Raises:
        LaunchError: as `check_sweep_request` does; then nothing was made.
        QueueError: when the queue's limit leaves no place for a trial next to the scheduler.
    """
    config = sweep_config(**parameters)
    async with api.open() as session:
        named = await check_sweep_request(api, session, config)
        queue = queue_of(config)
        await _check_limit(session, queue)
        draft = ItemDraft(
            name=config.name or _new_name(),
            parameters=await pinned_parameters(session, parameters, named),
            tags=("launch", "sweep", queue_tag(queue)),
            labels={QUEUE_LABEL: queue, ENTITY_LABEL: api.entity, PROJECT_LABEL: api.project},
            work_queue_name=SWEEPS_WORK_QUEUE,
            idempotency_key=key_of_sweep(parameters) or uuid4().hex,
        )
        deployment = await ensure_sweep_deployment(session, queue)
        made = await session.server.create_item(deployment, draft)
        if made is None:
            raise QueueError(f"The queue {queue!r} was deleted while the sweep was put on it.")
        return made.id


async def ensure_sweep_deployment(session: Session, queue: str) -> UUID:
    """Return the id of the deployment that a queue's sweeps are made from; it is made, or brought up to date.

    Args:
        session: an open connection.
        queue: its name.
    """
    name = deployment_name(queue)
    schema = _schema()
    there = await session.server.find_deployment(name, flow=SCHEDULER_FLOW)
    wanted = (queue, SWEEPS_WORK_QUEUE, schema)
    if there and (there.work_pool_name, there.work_queue_name, there.parameter_openapi_schema) == wanted:
        return there.id
    # Behind all others: a sweep that no agent has a place for must hide no job from a queue at its limit.
    await session.server.create_queue(queue, SWEEPS_WORK_QUEUE, len(await session.server.list_queues(queue)) + 1)
    return await session.server.upsert_deployment(
        name,
        flow=SCHEDULER_FLOW,
        pool=queue,
        work_queue=SWEEPS_WORK_QUEUE,
        parameters={},
        parameter_schema=schema,
        description=f"A sweep on the queue **{queue}**: an agent runs its scheduler.",
        tags=["launch", "sweep", queue_tag(queue)],
        labels={QUEUE_LABEL: queue},
        enforce=True,
    )


def _schema() -> dict[str, Any]:
    """Return the schema of a sweep's parameters, its numbers bounded by what the server can send."""
    schema = within_64_bits(sweep_flow().parameters.model_dump_for_openapi())
    return {**schema, "additionalProperties": False, "definitions": value_definitions()}


async def _check_limit(session: Session, queue: str) -> None:
    """Refuse a queue whose limit the scheduler alone would use up: no trial could ever run."""
    limit = (await session.pool(queue)).concurrency_limit
    if limit is not None and limit < _LEAST_LIMIT:
        raise QueueError(
            f"The queue {queue!r} has a limit of {limit} active items, and a sweep's scheduler is one of them: no"
            f" trial would ever run. Raise the limit to {_LEAST_LIMIT} or more, or run the sweep from here:"
            " 'prefect-launch sweep run'."
        )


def _new_name() -> str:
    from prefect.utilities.names import generate_slug

    return generate_slug(2)
