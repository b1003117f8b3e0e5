"""Client of a Prefect server: `connect` opens it, `PrefectServer` is what it opens.

Everything goes through Prefect's own client, so that keys, headers, certificates and CSRF tokens are its business; the
transport under it is ours (`prefect_launch.server.http`).

The event stream wakes an agent long before its next poll. An event says "look", never what is so: it is sent before the
server has committed the change, and one can be missed while there is no connection.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from prefect_launch.errors import OperatorError, ServerUnavailableError
from prefect_launch.server.http import (
    CONNECT_TIMEOUT_SECONDS,
    DEFAULT_PATIENCE_SECONDS,
    HEALTH_TIMEOUT_SECONDS,
    READ_TIMEOUT_SECONDS,
    Calls,
    Rest,
    ServerTransport,
    is_taken,
    raise_refusal,
)
from prefect_launch.server.items import ItemCalls, ProposalCalls, TelemetryCalls
from prefect_launch.server.pools import PoolCalls

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient
    from prefect.events.filters import EventFilter


# --- events ---

_ITEM_RESOURCE: Final = "prefect.flow-run."
_VARIABLE_EVENTS: Final = ("prefect.variable.created", "prefect.variable.updated", "prefect.variable.deleted")


class EventCalls(Calls):
    """Streams of events; each is a connection of its own."""

    api_url: str

    async def watch_pools(self, pool_ids: Collection[UUID]) -> AsyncIterator[str]:
        from prefect.events import ResourceSpecification
        from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter, EventResourceFilter

        wanted = EventFilter(
            event=EventNameFilter(prefix=["prefect.flow-run."]),
            any_resource=EventAnyResourceFilter(id=[f"prefect.work-pool.{pool_id}" for pool_id in pool_ids]),
            resource=EventResourceFilter(
                labels=ResourceSpecification({"prefect.state-type": ["SCHEDULED", "CANCELLING"]})
            ),
        )
        async for event in self._watch(wanted):
            yield "" if event is None else event.resource.id.removeprefix(_ITEM_RESOURCE)

    async def watch_variable(self, name: str) -> AsyncIterator[str]:
        from prefect.events import ResourceSpecification
        from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter

        wanted = EventFilter(
            event=EventNameFilter(name=list(_VARIABLE_EVENTS)),
            resource=EventResourceFilter(labels=ResourceSpecification({"prefect.resource.name": [name]})),
        )
        async for event in self._watch(wanted):
            yield "" if event is None else name

    async def _watch(self, wanted: EventFilter) -> AsyncIterator[Any]:
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


# --- variables ---

_VARIABLES_PAGE: Final = 200


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
            body = {"variables": {"tags": {"all_": list(tags)}}, "limit": _VARIABLES_PAGE, "offset": len(values)}
            page = await self._rest.get("POST", "/variables/filter", json=body)
            values.update({variable["name"]: variable["value"] for variable in page})
            if len(page) < _VARIABLES_PAGE:
                return values


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


@asynccontextmanager
async def connect(
    url: str | None = None, *, patience_seconds: float = DEFAULT_PATIENCE_SECONDS
) -> AsyncIterator[PrefectServer]:
    """Open the door to a server.

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
    transport = ServerTransport(
        httpx.AsyncHTTPTransport(verify=tls, limits=httpx.Limits(max_connections=16, keepalive_expiry=25)),
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
        # A server that takes connections and never answers is told within the same time as one that is not there.
        await client.request("GET", "/health", timeout=HEALTH_TIMEOUT_SECONDS)
        yield PrefectServer(client)


def _tls() -> ssl.SSLContext:
    import certifi
    from prefect.settings import PREFECT_API_SSL_CERT_FILE, PREFECT_API_TLS_INSECURE_SKIP_VERIFY

    context = ssl.create_default_context(cafile=PREFECT_API_SSL_CERT_FILE.value() or certifi.where())
    if PREFECT_API_TLS_INSECURE_SKIP_VERIFY.value():
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
