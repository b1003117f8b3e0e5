"""Client of a Prefect server: `connect` opens it, `PrefectServer` is what it opens.

Everything goes through Prefect's own client, so that keys, headers, certificates and CSRF tokens are its business; the
transport under it is ours (`prefect_launch.server.http`).

The event stream wakes an agent long before its next poll. An event only triggers a read: the server sends it before it
has committed the change, and one can be missed while there is no connection.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote
from uuid import UUID

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import OperatorError, QueueError, ServerUnavailableError
from prefect_launch.server.http import (
    CONNECT_TIMEOUT_SECONDS,
    DEFAULT_PATIENCE_SECONDS,
    HEALTH_PATH,
    HEALTH_TIMEOUT_SECONDS,
    READ_TIMEOUT_SECONDS,
    Calls,
    Rest,
    ServerTransport,
    detail,
    is_taken,
    raise_refusal,
)
from prefect_launch.server.items import ItemCalls, ProposalCalls, TelemetryCalls
from prefect_launch.server.values import (
    PAGE,
    POOL_TYPE,
    Deployment,
    DeploymentFields,
    ItemChange,
    Pool,
    PriorityQueue,
    ServerAbout,
    Worker,
)

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.events import Event
    from prefect.events.filters import EventFilter
    from typing_extensions import Unpack


#: Connections that stay open at rest. The client looks through all of them at each request: with 16 left by a burst, a
#: request takes 1.1 to 1.3 ms of a core, with four 0.8. Writes go one at a time, so that more are seldom of use.
_KEPT_CONNECTIONS: Final = 4

# --- events ---

_ITEM_RESOURCE: Final = "prefect.flow-run."
_SETTING_EVENTS: Final = (
    *("prefect.variable.created", "prefect.variable.updated", "prefect.variable.deleted"),
    *("prefect.work-pool.updated", "prefect.work-pool.paused"),
    *("prefect.work-pool.ready", "prefect.work-pool.not-ready"),  # One of them, when a pause ends.
)


class EventCalls(Calls):
    """Streams of events; each is a connection of its own."""

    api_url: str

    async def watch_pools(self, pool_ids: Collection[UUID]) -> AsyncIterator[ItemChange]:
        from prefect.events import ResourceSpecification
        from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter, EventResourceFilter

        wanted = EventFilter(
            event=EventNameFilter(prefix=["prefect.flow-run."]),
            any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{pool_id}" for pool_id in pool_ids]),
            resource=EventResourceFilter(
                labels=ResourceSpecification({"prefect.state-type": ["SCHEDULED", "PENDING", "CANCELLING"]})
            ),
        )
        async for event in self._watch(wanted):
            yield ItemChange() if event is None else _change_in(event)

    async def watch_items(
        self, tag: str, *item_ids: UUID, state_types: Collection[StateType] = ()
    ) -> AsyncIterator[str]:
        from prefect.events import ResourceSpecification
        from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter, EventResourceFilter

        types = {"prefect.state-type": [one.value for one in state_types]} if state_types else {}
        wanted = EventFilter(
            event=EventNameFilter(prefix=["prefect.flow-run."]),
            any_resource=EventAnyResourceFilter(
                id=[f"prefect.tag.{tag}", *(f"{_ITEM_RESOURCE}{item_id}" for item_id in item_ids)]
            ),
            resource=EventResourceFilter(labels=ResourceSpecification(types)) if types else None,
        )
        async for event in self._watch(wanted):
            yield "" if event is None else event.resource.id.removeprefix(_ITEM_RESOURCE)

    async def watch_settings(self, *names: str) -> AsyncIterator[str]:
        from prefect.events import ResourceSpecification
        from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

        wanted = EventFilter(
            event=EventNameFilter(name=list(_SETTING_EVENTS)),
            resource=EventResourceFilter(labels=ResourceSpecification({"prefect.resource.name": list(names)})),
        )
        async for event in self._watch(wanted):
            if event is None:
                yield ""
            elif event.resource.name:
                yield event.resource.name

    async def _watch(self, wanted: EventFilter) -> AsyncIterator[Event | None]:
        """Yield `None` once the stream is open, then each event."""
        from prefect.events.clients import PrefectEventSubscriber
        from websockets.exceptions import WebSocketException

        try:
            async with PrefectEventSubscriber(
                api_url=self.api_url, filter=wanted, reconnection_attempts=0
            ) as subscriber:
                yield None
                async for event in subscriber:
                    yield event
        except (OSError, WebSocketException) as error:
            raise ServerUnavailableError(
                f"The event stream of the Prefect server at {self.api_url} cannot be read"
                f" ({type(error).__name__}: {error}). Connect again, and ask the server for what waits meanwhile."
            ) from error


def _change_in(event: Event) -> ItemChange:
    pool, work_queue = (event.resource_in_role.get(role) for role in ("work-pool", "work-queue"))
    was = event.payload.get("intended", {}).get("from", "unknown")
    return ItemChange(
        event.resource.id.removeprefix(_ITEM_RESOURCE),
        (pool.name if pool else None) or "",
        StateType(event.resource["prefect.state-type"]),
        (work_queue.name if work_queue else None) or "",
        was is None and event.resource.get("prefect.state-name") == ItemState.QUEUED.label,
    )


# --- variables ---


class VariableCalls(Calls):
    """Calls about variables; a name is of `[a-z0-9_-]`, a value JSON of at most 5 000 characters."""

    async def read_variable(self, name: str) -> Any:
        found = await self._rest.get("GET", f"/variables/name/{name}")
        return None if found is None else found["value"]

    async def write_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> None:
        body = {"value": value, "tags": list(tags)}
        if await self._rest.get("PATCH", f"/variables/name/{name}", json=body) is not None:
            return
        response = await self._rest.call("POST", "/variables/", json={"name": name, **body})
        if is_taken(response):  # somebody else has made it just now
            await self._rest.get("PATCH", f"/variables/name/{name}", json=body)
            return
        raise_refusal(response)

    async def create_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> bool:
        response = await self._rest.call("POST", "/variables/", json={"name": name, "value": value, "tags": list(tags)})
        if is_taken(response):
            return False
        raise_refusal(response)
        return True

    async def delete_variable(self, name: str) -> bool:
        return await self._rest.get("DELETE", f"/variables/name/{name}") is not None

    async def list_variables(self, *tags: str) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while True:
            body = {"variables": {"tags": {"all_": list(tags)}}, "limit": PAGE, "offset": len(values)}
            page = await self._rest.get("POST", "/variables/filter", json=body)
            values.update({variable["name"]: variable["value"] for variable in page})
            if len(page) < PAGE:
                return values


# --- work pools, work queues and deployments ---


class PoolCalls(Calls):
    """Calls about queues."""

    async def read_pool(self, name: str) -> Pool | None:
        found = await self._rest.get("GET", f"/work_pools/{quote(name, safe='')}")
        return None if found is None else Pool.model_validate(found)

    async def list_pools(self) -> list[Pool]:
        body = {"limit": PAGE, "work_pools": {"type": {"any_": [POOL_TYPE]}}}
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
        found = await self._rest.get("POST", f"/work_pools/{quote(pool, safe='')}/queues/filter", json={"limit": PAGE})
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
        body = {"limit": PAGE, "work_pools": {"name": {"any_": [pool]}}}
        return [
            Deployment.model_validate(found) for found in await self._rest.get("POST", "/deployments/filter", json=body)
        ]

    async def deactivate_schedule(self, deployment_id: UUID, schedule_id: UUID) -> None:
        await self._rest.get("PATCH", f"/deployments/{deployment_id}/schedules/{schedule_id}", json={"active": False})

    async def upsert_deployment(
        self,
        name: str,
        *,
        flow: str = "launch",
        work_queue: str = "default",
        version: str | None = None,
        **given: Unpack[DeploymentFields],
    ) -> UUID:
        pool, labels = given["pool"], given["labels"]
        fields: dict[str, Any] = {
            "work_pool_name": pool,
            "work_queue_name": work_queue,
            "parameters": given["parameters"],
            "parameter_openapi_schema": given["parameter_schema"],
            "description": given["description"],
            "tags": list(given["tags"]),
            "labels": dict(labels),
            "enforce_parameter_schema": given["enforce"],
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
        found = await self._rest.get("POST", f"/work_pools/{quote(pool, safe='')}/workers/filter", json={"limit": PAGE})
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


class PrefectServer(PoolCalls, ItemCalls, ProposalCalls, TelemetryCalls, EventCalls, VariableCalls):
    """All that we ask of a Prefect server, over one open client.

    Attributes:
        client: Prefect's own client, for what else a caller needs of the server.
        api_url: address of the API, such as `http://127.0.0.1:4200/api`.
        ui_url: address of the UI.
    """

    def __init__(self, client: PrefectClient) -> None:
        self.client = client
        self.api_url = str(client.api_url).rstrip("/")
        self.ui_url = self.api_url.removesuffix("/api")
        self._rest = Rest(client)
        self._unanswered = set()
        self._flow_names = {}

    async def about(self) -> ServerAbout:
        response = await self._rest.call("GET", "/admin/version")
        raise_refusal(response)
        date = response.headers.get("Date")
        return ServerAbout(version=str(response.json()), time=date and parsedate_to_datetime(date))


@asynccontextmanager
async def connect(
    url: str | None = None, *, patience_seconds: float = DEFAULT_PATIENCE_SECONDS
) -> AsyncIterator[PrefectServer]:
    """Open a client of a server.

    Args:
        url: address of its API; by default Prefect's own setting `PREFECT_API_URL`.
        patience_seconds: for how long a request is tried again while the server is busy or away.

    Raises:
        OperatorError: when no address is known.
        ServerUnavailableError: when nothing answers there.
    """
    import httpx
    from prefect.client.orchestration import PrefectClient
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_KEY, PREFECT_API_URL

    address = url or PREFECT_API_URL.value()
    if not address:
        raise OperatorError(
            "No Prefect server is known. Start one with 'prefect server start' and set PREFECT_API_URL to its address,"
            " such as http://127.0.0.1:4200/api."
        )
    tls = _tls()
    limits = httpx.Limits(max_connections=16, max_keepalive_connections=_KEPT_CONNECTIONS, keepalive_expiry=25)
    transport = ServerTransport(
        httpx.AsyncHTTPTransport(verify=tls, limits=limits),
        address=address,
        patience_seconds=patience_seconds,
    )
    timeout = httpx.Timeout(READ_TIMEOUT_SECONDS, connect=CONNECT_TIMEOUT_SECONDS)
    client = PrefectClient(
        address,
        auth_string=PREFECT_API_AUTH_STRING.value(),
        api_key=PREFECT_API_KEY.value(),
        # Prefect's client would load the certificates once more, though our transport is the one that is used.
        httpx_settings={"transport": transport, "timeout": timeout, "verify": tls},
    )
    async with client:
        # A server that accepts connections and never answers is reported as soon as one that is not there.
        await client.request("GET", HEALTH_PATH, timeout=HEALTH_TIMEOUT_SECONDS)
        yield PrefectServer(client)


def _tls() -> ssl.SSLContext:
    import certifi
    from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_TLS_INSECURE_SKIP_VERIFY

    certificates = PREFECT_API_SSL_CERT_FILE.value() or certifi.where()
    return _tls_with(certificates, not PREFECT_API_TLS_INSECURE_SKIP_VERIFY.value())


@lru_cache(maxsize=4)
def _tls_with(certificates: str, verifies: bool) -> ssl.SSLContext:
    """Load certificates, once a process: that takes 30 ms."""
    context = ssl.create_default_context(cafile=certificates)
    if not verifies:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
