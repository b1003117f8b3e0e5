"""Session of an open `Api`: the server, the job registry, and a short-lived cache of queues with their deployments."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect_launch.core.names import check_name
from prefect_launch.core.units import utc_time
from prefect_launch.errors import NotFoundError, QueueError, unknown_name
from prefect_launch.jobs.schema import value_definitions, within_64_bits
from prefect_launch.policy.template import QueueConfig
from prefect_launch.queues.agent_status import AgentInfo, online_agents
from prefect_launch.registries.digest_cache import DigestCache
from prefect_launch.runners.base import Labels
from prefect_launch.server.protocol import Server
from prefect_launch.server.secrets import ReadSecret, read_secret
from prefect_launch.server.values import POOL_TYPE, Pool
from prefect_launch.spec.launch_spec import LaunchSpec

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry

#: For how long a queue that was read is not read again. The server checks each item against the queue as it is, so what
#: is old costs a better message, never a wrong item.
QUEUE_MEMORY_SECONDS: Final = 30.0
#: Prefect's word for a work pool that no worker beats for.
_NOT_READY: Final = "NOT_READY"


@dataclass(frozen=True)
class CachedQueue:
    """A queue as it was when it was last read.

    Attributes:
        pool_id: id of the work pool.
        deployment_id: id of the deployment that its items are made from.
        blocked_reason: why nothing would start on it then; empty when something would.
    """

    name: str
    pool_id: UUID
    deployment_id: UUID
    config: QueueConfig
    blocked_reason: str = ""
    read_at: float = field(default_factory=time.monotonic)


class Session:
    """An open connection.

    Attributes:
        server: the client of the Prefect server.
        jobs: the jobs that are kept.
        read_secret: reads a Secret block of the server by its name.
        digest_cache: recent answers of registries about images.
    """

    def __init__(
        self,
        server: Server,
        jobs: JobRegistry,
        digest_cache: DigestCache,
        read_secret: ReadSecret = read_secret,
    ) -> None:
        self.server = server
        self.jobs = jobs
        self.read_secret = read_secret
        self.digest_cache = digest_cache
        self._queues: dict[str, CachedQueue] = {}
        self._online: dict[str, tuple[float, tuple[AgentInfo, ...]]] = {}

    async def queue(self, name: str) -> CachedQueue:
        """Return a queue by its name.

        Raises:
            NotFoundError: when there is none of that name; names the nearest one.
            QueueError: when the work pool of that name is not a launch queue.
        """
        known = self._queues.get(check_name("queue", name))
        if known is not None and time.monotonic() - known.read_at < QUEUE_MEMORY_SECONDS:
            return known
        self._queues[name] = known = await self._read_queue(name)
        return known

    async def pool(self, name: str) -> Pool:
        """Read a queue's work pool; nothing is made or remembered.

        Raises:
            NotFoundError: when there is no queue of that name; names the nearest one.
        """
        pool = await self.server.read_pool(check_name("queue", name))
        if pool is not None and pool.type != POOL_TYPE:
            raise NotFoundError(
                f"The work pool {name!r} is no queue: it is of the type {pool.type!r}, and a queue is of the type"
                f" {POOL_TYPE!r}. 'prefect-launch queue create' makes one, under another name."
            )
        if pool is None:
            raise unknown_name("queue", name, [known.name for known in await self.server.list_pools()])
        return pool

    async def online_agents(self, queue: str) -> tuple[AgentInfo, ...]:
        """Return the agents that are online for a queue, as they were within the last half minute."""
        read_at, online = self._online.get(queue, (float("-inf"), ()))
        if time.monotonic() - read_at > QUEUE_MEMORY_SECONDS:
            online = tuple(await online_agents(self.server, queue))
            self._online[queue] = (time.monotonic(), online)
        return online

    def forget_queue(self, name: str) -> None:
        """Drop a queue from the cache."""
        self._queues.pop(name, None)

    def note_pool(self, pool: Pool) -> None:
        """Update the cache with a work pool that was read for another purpose.

        A queue that is no launch queue any more is dropped.
        """
        known = self._queues.pop(pool.name, None)
        if known is not None and known.pool_id == pool.id:
            with suppress(QueueError):
                config = QueueConfig.from_template(pool.name, pool.base_job_template)
                self._queues[pool.name] = replace(
                    known, config=config, blocked_reason=blocked_reason_of(pool), read_at=time.monotonic()
                )

    async def _read_queue(self, name: str) -> CachedQueue:
        pool = await self.pool(name)
        config = QueueConfig.from_template(name, pool.base_job_template)
        deployment_id = await ensure_deployment(self.server, name, config)
        return CachedQueue(
            name=name,
            pool_id=pool.id,
            deployment_id=deployment_id,
            config=config,
            blocked_reason=blocked_reason_of(pool),
        )


def blocked_reason_of(pool: Pool) -> str:
    """Say why nothing would start on a queue now, as far as its work pool tells; an empty text when something would.

    The text names the time: the cache serves it for a while.
    """
    now = utc_time(datetime.now(timezone.utc))
    if pool.is_paused:
        return f"The queue was paused at {now}: 'prefect-launch queue resume {pool.name}' resumes it."
    if pool.status == _NOT_READY:
        return f"No agent was online for the queue at {now}: 'prefect-launch agent start -q {pool.name}' starts one."
    return ""


# --- the deployment of a queue ---

#: Label of deployments and items: the queue that they belong to.
QUEUE_LABEL: Final = Labels.QUEUE


def deployment_name(queue: str) -> str:
    """Return the name of the deployment (of the flow `launch`) that a queue's items are made from."""
    return f"queue-{queue}"


def queue_tag(queue: str) -> str:
    """Return the tag of what belongs to a queue: its deployment, and the agents that serve it."""
    return f"queue:{queue}"


async def ensure_deployment(server: Server, name: str, config: QueueConfig) -> UUID:
    """Return the id of the deployment that a queue's items are made from; it is made when it is missing."""
    wanted = deployment_name(name)
    there = await server.find_deployment(wanted)
    if there is not None and there.work_pool_name == name:
        return there.id
    return await server.upsert_deployment(
        wanted,
        pool=name,
        parameters={},
        parameter_schema=_item_schema(),
        description=f"Any job on the queue **{name}** ({config.resource}). `launch_add` makes its items from it.",
        tags=["launch", queue_tag(name)],
        labels={QUEUE_LABEL: name},
        enforce=True,
    )


def _item_schema() -> dict[str, Any]:
    """Return the schema of an item's parameters, its numbers bounded by what the server can send.

    The server checks by it what comes straight to it, such as by `prefect deployment run`.
    """
    schema = within_64_bits(LaunchSpec.model_json_schema())
    for given_elsewhere in ("priority", "template_variables"):  # By the work queue, and as job variables.
        schema["properties"].pop(given_elsewhere)
    parts = {name: within_64_bits(part) for name, part in schema.pop("$defs").items()}
    return {**schema, "$defs": parts, "definitions": value_definitions()}
