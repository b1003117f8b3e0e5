"""Work pools, work queues and deployments of the in-memory Prefect server."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from prefect_launch.core.states import StateType
from prefect_launch.errors import QueueError
from prefect_launch.server.values import POOL_TYPE, Deployment, DeploymentFields, Pool, PriorityQueue, Worker
from prefect_launch.testing.server_store import (
    Calls,
    StoredDeployment,
    StoredPool,
    as_json,
    call,
    check_parameter_schema,
    check_placeholders,
    check_template_defaults,
    queue_refused,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

#: An agent that was not heard of for this many of its intervals is offline.
_MISSED_BEATS: Final = 3
_DEFAULT_QUEUE: Final = "default"


class InMemoryPools(Calls):
    """Calls about queues and agents."""

    # --- work pools ---

    @call
    def read_pool(self, name: str) -> Pool | None:
        stored = self._store.pools.get(name)
        return None if stored is None else self._shown(stored)

    @call
    def list_pools(self) -> list[Pool]:
        ours = (stored for _, stored in sorted(self._store.pools.items()) if stored.pool.type == POOL_TYPE)
        return [self._shown(stored) for stored in ours]

    def add_pool(self, name: str, kind: str, base_job_template: dict[str, Any] | None = None) -> None:
        """Make a work pool of a type of Prefect's, as a user does in the UI."""
        with self._store.lock:
            pool = Pool(
                id=uuid4(),
                name=name,
                type=kind,
                created=self._store.now(),
                base_job_template=as_json(base_job_template or {}),
            )
            queue = PriorityQueue(id=uuid4(), name=_DEFAULT_QUEUE, priority=1)
            self._store.pools[name] = StoredPool(pool, {queue.name: queue})

    @call
    def create_pool(
        self, name: str, *, base_job_template: dict[str, Any], description: str | None, concurrency_limit: int | None
    ) -> Pool | None:
        fields = {
            "base_job_template": as_json(base_job_template),
            "description": description,
            "concurrency_limit": concurrency_limit,
        }
        check_placeholders(name, fields["base_job_template"])
        check_template_defaults(name, fields["base_job_template"])
        if name in self._store.pools:
            return None
        pool = Pool(id=uuid4(), name=name, type=POOL_TYPE, created=self._store.now(), **fields)
        queue = PriorityQueue(id=uuid4(), name=_DEFAULT_QUEUE, priority=1)
        self._store.pools[name] = StoredPool(pool, {queue.name: queue})
        return self._shown(self._store.pools[name])

    async def update_pool(self, name: str, **changes: Any) -> None:
        await self._update_pool(name, changes)

    @call
    def _update_pool(self, name: str, changes: dict[str, Any]) -> None:
        stored = self._store.pools.get(name)
        if stored is None:
            raise queue_refused(name, f'Work pool "{name}" not found.')
        changes = as_json(changes)
        if "base_job_template" in changes:
            check_placeholders(name, changes["base_job_template"])
        stored.pool = stored.pool.model_copy(update=changes)
        self._store.notify_setting(name)

    @call
    def delete_pool(self, name: str) -> bool:
        if self._store.pools.pop(name, None) is None:
            return False
        for kept in self._store.deployments.values():
            if kept.deployment.work_pool_name == name:
                kept.deployment = kept.deployment.model_copy(update={"work_pool_name": None})
        for item in self._store.items.values():
            if item.item.work_pool_name == name:
                gone = dict.fromkeys(("work_pool_id", "work_pool_name", "work_queue_id"))
                item.item = item.item.model_copy(update=gone)
        return True

    def _shown(self, stored: StoredPool) -> Pool:
        online = any(self._status(worker) == "ONLINE" for worker in stored.workers.values())
        status = "PAUSED" if stored.pool.is_paused else "READY" if online else "NOT_READY"
        return stored.pool.model_copy(update={"status": status})

    # --- work queues ---

    @call
    def list_queues(self, pool: str) -> list[PriorityQueue]:
        stored = self._store.pools.get(pool)
        return sorted(stored.queues.values(), key=_priority) if stored else []

    @call
    def create_queue(self, pool: str, name: str, priority: int) -> None:
        stored = self._store.pools.get(pool)
        if stored is None:
            raise _gone(pool)
        if name not in stored.queues:
            others = sorted(stored.queues.values(), key=_priority)
            at = sum(_priority(queue) < priority for queue in others)
            others.insert(at, PriorityQueue(id=uuid4(), name=name, priority=priority))
            stored.queues = {queue.name: queue for queue in _without_ties(others)}

    # --- deployments ---

    @call
    def read_deployment(self, deployment_id: UUID) -> Deployment | None:
        kept = self._store.deployments.get(deployment_id)
        return None if kept is None else kept.deployment

    @call
    def find_deployment(self, name: str, *, flow: str = "launch") -> Deployment | None:
        kept = self._named(name, flow)
        return None if kept is None else kept.deployment

    @call
    def list_deployments(self, pool: str) -> list[Deployment]:
        kept = (kept.deployment for kept in self._store.deployments.values())
        return [deployment for deployment in kept if deployment.work_pool_name == pool]

    @call
    def deactivate_schedule(self, deployment_id: UUID, schedule_id: UUID) -> None:
        for stored in list(self._store.items.values()):
            item = stored.item
            by_schedule = item.created_by is not None and item.created_by.type == "SCHEDULE"
            due = item.next_scheduled_start_time
            waits = item.state_type is StateType.SCHEDULED and due is not None and due > self._store.now()
            if item.deployment_id == deployment_id and by_schedule and waits:
                del self._store.items[item.id]

    @call
    def upsert_deployment(
        self,
        name: str,
        *,
        flow: str = "launch",
        work_queue: str = _DEFAULT_QUEUE,
        version: str | None = None,
        **fields: Unpack[DeploymentFields],
    ) -> UUID:
        pool, labels = fields["pool"], fields["labels"]
        check_parameter_schema(fields["parameters"], fields["parameter_schema"], enforce=fields["enforce"])
        if pool not in self._store.pools:
            raise _gone(pool)
        there = self._named(name, flow)
        flow_id = self._store.flow_ids.setdefault(flow, uuid4())
        there_labels = (there.deployment.labels or {}) if there else {}
        kept = {**there_labels, **labels} == there_labels
        deployment = Deployment(
            id=there.deployment.id if there else uuid4(),
            name=name,
            parameters=as_json(fields["parameters"]),
            parameter_openapi_schema=as_json(fields["parameter_schema"]),
            tags=tuple(fields["tags"]),
            labels=there_labels if there and kept else {"prefect.flow.id": str(flow_id), **as_json(dict(labels))},
            work_pool_name=pool,
            work_queue_name=work_queue,
            version=version,
        )
        self._store.deployments[deployment.id] = StoredDeployment(deployment, flow, fields["enforce"])
        return deployment.id

    @call
    def delete_deployment(self, deployment_id: UUID) -> None:
        if self._store.deployments.pop(deployment_id, None) is None:
            return
        for item_id, stored in list(self._store.items.items()):
            item = stored.item
            never_ran = item.state_type == "SCHEDULED" and item.run_count == 0
            if item.deployment_id == deployment_id and never_ran and item.state_name != "AwaitingConcurrencySlot":
                del self._store.items[item_id]

    def _named(self, name: str, flow: str) -> StoredDeployment | None:
        kept = self._store.deployments.values()
        return next((one for one in kept if one.deployment.name == name and one.flow == flow), None)

    # --- agents ---

    @call
    def beat_worker(self, pool: str, name: str, interval_seconds: int) -> None:
        stored = self._store.pools.get(pool)
        if stored is not None:
            beat = {"last_heartbeat_time": self._store.now(), "heartbeat_interval_seconds": interval_seconds}
            stored.workers[name] = Worker(name=name, **beat)

    @call
    def list_workers(self, pool: str) -> list[Worker]:
        stored = self._store.pools.get(pool)
        workers = stored.workers.values() if stored else ()
        return [worker.model_copy(update={"status": self._status(worker)}) for worker in workers]

    @call
    def delete_worker(self, pool: str, name: str) -> None:
        stored = self._store.pools.get(pool)
        if stored is not None:
            stored.workers.pop(name, None)

    def _status(self, worker: Worker) -> str:
        if worker.last_heartbeat_time is None or worker.heartbeat_interval_seconds is None:
            return "OFFLINE"
        quiet = self._store.now() - worker.last_heartbeat_time
        limit = timedelta(seconds=worker.heartbeat_interval_seconds * _MISSED_BEATS)
        return "ONLINE" if quiet <= limit else "OFFLINE"


def _priority(queue: PriorityQueue) -> int:
    return queue.priority or 0


def _without_ties(queues: Iterable[PriorityQueue]) -> Iterable[PriorityQueue]:
    last = 0
    for queue in queues:
        last = _priority(queue) if _priority(queue) > last else last + 1
        yield queue.model_copy(update={"priority": last})


def _gone(pool: str) -> QueueError:
    return QueueError(f"There is no queue {pool!r} on the Prefect server (any more): was it deleted meanwhile?")
