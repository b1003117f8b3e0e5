"""The door to a real Prefect server: `connect` opens it, `PrefectServer` is what it opens.

Everything goes through Prefect's own client, so that keys, headers, certificates and CSRF tokens are its business; the
transport under it is ours (`prefect_launch.server.transport`).
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from prefect_launch.errors import OperatorError
from prefect_launch.server.events import EventCalls
from prefect_launch.server.items import ItemCalls
from prefect_launch.server.pools import PoolCalls
from prefect_launch.server.proposals import ProposalCalls
from prefect_launch.server.rest import Rest
from prefect_launch.server.telemetry import TelemetryCalls
from prefect_launch.server.transport import (
    CONNECT_TIMEOUT_SECONDS,
    DEFAULT_PATIENCE_SECONDS,
    HEALTH_TIMEOUT_SECONDS,
    READ_TIMEOUT_SECONDS,
    ServerTransport,
)
from prefect_launch.server.variables import VariableCalls

if TYPE_CHECKING:
    from prefect.client.orchestration import PrefectClient


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
