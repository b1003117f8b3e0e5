"""The real Prefect server passes the contract that the in-memory server passes too."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio
import pytest
from prefect.client.orchestration import PrefectClient

from prefect_launch.errors import ServerUnavailableError
from prefect_launch.server.client import PrefectServer, connect
from tests.contract.server_contract import ServerContract
from tests.contract.server_items import ItemContract
from tests.contract.server_moves import MoveContract
from tests.contract.server_place import Place, make_place
from tests.contract.server_polls import PollContract
from tests.support.ports import free_port

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess


class TestPrefectServer(ServerContract):
    @pytest.fixture
    async def server(self, prefect_server: PrefectServerProcess) -> AsyncIterator[PrefectServer]:
        async with connect(prefect_server.api_url) as server:
            yield server


@pytest.mark.postgres
class TestPrefectServerOnPostgres(ItemContract, PollContract, MoveContract):
    """Polls and claims are other SQL and other locks there."""

    @pytest.fixture
    async def place(self, postgres_prefect_server: PrefectServerProcess) -> AsyncIterator[Place]:
        async with connect(postgres_prefect_server.api_url) as server:
            yield await make_place(server, f"q-{uuid4().hex[:8]}")


async def test_server_that_is_not_there_is_reported_within_15_seconds() -> None:
    started = time.monotonic()
    with pytest.raises(ServerUnavailableError, match="'prefect server start'"):
        async with connect(f"http://127.0.0.1:{free_port()}/api"):
            pass
    assert time.monotonic() - started < 15


async def test_event_stream_of_server_that_is_not_there_is_reported() -> None:
    server = PrefectServer(PrefectClient(f"http://127.0.0.1:{free_port()}/api"))
    with pytest.raises(ServerUnavailableError, match="event stream"):
        await anext(server.watch_pools([uuid4()]))


async def test_restart_ends_the_event_stream_and_is_waited_out_by_calls(
    own_prefect_server: PrefectServerProcess,
) -> None:
    async with connect(own_prefect_server.api_url, patience_seconds=60) as server:
        place = await make_place(server, "gpu")
        item = await place.add()
        watch = server.watch_pools([place.pool_id])
        assert (await anext(watch)).item_id == ""
        await anyio.to_thread.run_sync(own_prefect_server.stop)
        with anyio.fail_after(20):
            assert await _end_of(watch) in ("ended", "broke")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, own_prefect_server.start)
            assert (await place.read(item)).id == item.id  # asked while it is away


async def _end_of(watch: AsyncIterator[object]) -> str:
    try:
        async for _ in watch:
            pass
    except ServerUnavailableError:
        return "broke"
    return "ended"
