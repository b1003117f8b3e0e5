"""Work pool of a run queue: created with four priorities and a deployment, updated, and deleted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from prefect_launch.core.names import MAX_QUEUE_NAME_CHARS, check_name
from prefect_launch.core.states import StateType
from prefect_launch.errors import QueueError
from prefect_launch.policy.template import QueueConfig
from prefect_launch.queues.deployment import refresh_forms
from prefect_launch.queues.session import ensure_deployment
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Pool
from prefect_launch.spec.scheduling import Priority

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

#: The queue that is made on first use; every other one must be made by its owner.
DEFAULT_QUEUE: Final = "default"
#: Prefect keeps these names to itself.
_RESERVED_PREFIX: Final = "prefect"


def check_concurrency(limit: object) -> int | None:
    """Return a good limit of a queue.

    Raises:
        QueueError: when it is no whole number of at least 1.
    """
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise QueueError(f"A queue's concurrency limit must be 1 or more, not {limit!r}. Pause the queue to stop it.")
    return limit


def check_queue_name(name: object) -> str:
    """Return a good name for a queue.

    Raises:
        InvalidNameError: when it is none.
        QueueError: when Prefect keeps it to itself.
    """
    good = check_name("queue", name, max_chars=MAX_QUEUE_NAME_CHARS)
    if good.lower().startswith(_RESERVED_PREFIX):
        raise QueueError(
            f"Queue names that begin with 'prefect' are reserved by Prefect: choose another than {good!r}."
        )
    return good


async def create_queue(
    session: Session, name: str, config: QueueConfig, *, concurrency: int | None = None, replace: bool = False
) -> Pool:
    """Make a queue: its work pool, its priorities, its deployment; with `replace`, bring an existing one up to date.

    Raises:
        QueueError: when it exists already, or its resource would change under waiting items.
    """
    check_queue_name(name)
    server = session.server
    template = config.to_template()
    text = _description(name, config.resource)
    pool = await server.create_pool(name, base_job_template=template, description=text, concurrency_limit=concurrency)
    if pool is None:
        pool = await _replace(server, name, config, concurrency) if replace else None
    if pool is None:
        raise QueueError(
            f"The queue {name!r} is there already. Choose another name, or change it: 'queue edit {name}'."
        )
    if config.prioritization_mode != "DISABLED":
        for priority in Priority:
            if priority is not Priority.MEDIUM:
                await server.create_queue(name, priority.work_queue, int(priority))
    session.forget_queue(name)
    await ensure_deployment(server, name, config)
    if replace:
        await refresh_forms(session, name)
    return pool


def _description(name: str, resource: str) -> str:
    return (
        f"Launch queue on {resource}. Nothing of it runs without an agent: start one on a machine with"
        f" 'prefect-launch agent start -q {name}'."
    )


async def _replace(server: Server, name: str, config: QueueConfig, concurrency: int | None) -> Pool | None:
    pool = await server.read_pool(name)
    if pool is None:
        return None
    try:
        resource = QueueConfig.from_template(name, pool.base_job_template).resource
    except QueueError:
        resource = config.resource
    if resource != config.resource:
        waiting = await server.count_items(pool=name, state_types=[StateType.SCHEDULED])
        if waiting:
            raise QueueError(
                f"The queue {name!r} has {waiting} waiting items for {resource}; its resource cannot become"
                f" {config.resource}. Make a new queue, or wait until it is empty."
            )
    changes: dict[str, Any] = {"base_job_template": config.to_template()}
    if pool.description == _description(name, resource):  # else somebody has written another
        changes["description"] = _description(name, config.resource)
    if concurrency is not None:
        changes["concurrency_limit"] = concurrency
    await server.update_pool(name, **changes)
    return await server.read_pool(name)


async def delete_queue(session: Session, name: str) -> int:
    """Delete a queue with its deployments and waiting items; running items continue.

    Returns:
        How many waiting items went with it.

    Raises:
        NotFoundError: when there is none of that name.
    """
    await session.queue(name)
    waiting = await session.server.count_items(pool=name, state_types=[StateType.SCHEDULED])
    for deployment in await session.server.list_deployments(name):
        await session.server.delete_deployment(deployment.id)
    await session.server.delete_pool(name)
    session.forget_queue(name)
    return waiting
