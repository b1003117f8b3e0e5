"""The server's work pools, work queues and deployments: what queues are made of."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import quote
from uuid import UUID

from prefect_launch.errors import QueueError
from prefect_launch.server.http import Calls, detail, is_taken, raise_refusal
from prefect_launch.server.values import Deployment, Pool, PriorityQueue, Worker

#: The type of the work pools that are ours.
POOL_TYPE = "launch"
_PAGE = 200


class PoolCalls(Calls):
    """Calls about queues."""

    async def read_pool(self, name: str) -> Pool | None:
        found = await self._rest.get("GET", f"/work_pools/{quote(name, safe='')}")
        return None if found is None else Pool.model_validate(found)

    async def list_pools(self) -> list[Pool]:
        body = {"limit": _PAGE, "work_pools": {"type": {"any_": [POOL_TYPE]}}}
        return [Pool.model_validate(pool) for pool in await self._rest.get("POST", "/work_pools/filter", json=body)]

    async def create_pool(
        self, name: str, *, base_job_template: dict[str, Any], description: str | None, concurrency_limit: int | None
    ) -> Pool | None:
        body = {
            "name": name,
            "type": POOL_TYPE,
            "base_job_template": base_job_template,
            "description": description,
            "concurrency_limit": concurrency_limit,
        }
        response = await self._rest.call("POST", "/work_pools/", json=body)
        if is_taken(response):
            return None
        _raise_queue_error(name, response)
        return Pool.model_validate(response.json())

    async def update_pool(self, name: str, **changes: Any) -> None:
        response = await self._rest.call("PATCH", f"/work_pools/{quote(name, safe='')}", json=changes)
        _raise_queue_error(name, response)

    async def delete_pool(self, name: str) -> bool:
        return await self._rest.get("DELETE", f"/work_pools/{quote(name, safe='')}") is not None

    async def list_queues(self, pool: str) -> list[PriorityQueue]:
        found = await self._rest.get("POST", f"/work_pools/{quote(pool, safe='')}/queues/filter", json={"limit": _PAGE})
        queues = [PriorityQueue.model_validate(queue) for queue in found or ()]
        return sorted(queues, key=lambda queue: queue.priority or 0)

    async def create_queue(self, pool: str, name: str, priority: int) -> None:
        path = f"/work_pools/{quote(pool, safe='')}/queues"
        response = await self._rest.call("POST", path, json={"name": name, "priority": priority})
        if response.status_code == 404:
            raise QueueError(f"There is no queue {pool!r} on the Prefect server (any more): was it deleted meanwhile?")
        if not is_taken(response):
            raise_refusal(response)

    async def read_deployment(self, deployment_id: UUID) -> Deployment | None:
        found = await self._rest.get("GET", f"/deployments/{deployment_id}")
        return None if found is None else Deployment.model_validate(found)

    async def find_deployment(self, name: str, *, flow: str = "launch") -> Deployment | None:
        found = await self._rest.get("GET", _deployment_path(flow, name))
        return None if found is None else Deployment.model_validate(found)

    async def list_deployments(self, pool: str) -> list[Deployment]:
        body = {"limit": _PAGE, "work_pools": {"name": {"any_": [pool]}}}
        return [
            Deployment.model_validate(found) for found in await self._rest.get("POST", "/deployments/filter", json=body)
        ]

    async def upsert_deployment(
        self,
        name: str,
        *,
        flow: str = "launch",
        pool: str,
        parameters: dict[str, Any],
        parameter_schema: dict[str, Any],
        description: str,
        tags: Collection[str],
        labels: Mapping[str, Any],
        enforce: bool,
        version: str | None = None,
    ) -> UUID:
        fields: dict[str, Any] = {
            "work_pool_name": pool,
            "work_queue_name": "default",
            "parameters": parameters,
            "parameter_openapi_schema": parameter_schema,
            "description": description,
            "tags": list(tags),
            "labels": dict(labels),
            "enforce_parameter_schema": enforce,
            "version": version,
        }
        there = await self._rest.get("GET", _deployment_path(flow, name))
        same_labels = there is not None and {**(there.get("labels") or {}), **labels} == there.get("labels")
        if there is not None and same_labels and there["work_pool_name"] == pool:
            fields.pop("labels")  # what is left can be patched, which leaves the schedules alone
            await self._rest.get("PATCH", f"/deployments/{there['id']}", json=fields)
            return UUID(there["id"])
        if there is not None:  # labels cannot be patched; making it again would drop its schedules
            fields |= {"paused": there["paused"], "schedules": [_schedule(entry) for entry in there["schedules"]]}
        flow_id = (await self._rest.get("POST", "/flows/", json={"name": flow}))["id"]
        made = await self._rest.get("POST", "/deployments/", json={"name": name, "flow_id": flow_id, **fields})
        if made is None:
            raise QueueError(f"The queue {pool!r} was deleted while its deployment {name!r} was made.")
        return UUID(made["id"])

    async def delete_deployment(self, deployment_id: UUID) -> None:
        await self._rest.get("DELETE", f"/deployments/{deployment_id}")

    async def beat_worker(self, pool: str, name: str, interval_seconds: int) -> None:
        body = {"name": name, "heartbeat_interval_seconds": interval_seconds}
        await self._rest.get("POST", f"/work_pools/{quote(pool, safe='')}/workers/heartbeat", json=body)

    async def list_workers(self, pool: str) -> list[Worker]:
        found = await self._rest.get(
            "POST", f"/work_pools/{quote(pool, safe='')}/workers/filter", json={"limit": _PAGE}
        )
        return [Worker.model_validate(worker) for worker in found or ()]

    async def delete_worker(self, pool: str, name: str) -> None:
        await self._rest.get("DELETE", f"/work_pools/{quote(pool, safe='')}/workers/{quote(name, safe='')}")


def _deployment_path(flow: str, name: str) -> str:
    return f"/deployments/name/{quote(flow, safe='')}/{quote(name, safe='')}"


def _schedule(entry: Mapping[str, Any]) -> dict[str, Any]:
    kept = ("schedule", "active", "max_scheduled_runs", "parameters", "slug")
    return {key: entry[key] for key in kept if entry.get(key) is not None}


def _raise_queue_error(name: str, response: Any) -> None:
    if response.status_code >= 400:
        raise QueueError(f"The Prefect server refuses the queue {name!r}: {detail(response)}")
