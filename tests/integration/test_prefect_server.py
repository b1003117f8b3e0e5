"""The real Prefect server keeps the contract that prefect-launch and its in-memory twin stand on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest

from prefect_launch.server.client import PrefectServer, connect
from tests.contract.server_contract import ServerContract

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess


class TestPrefectServer(ServerContract):
    @pytest.fixture
    async def server(self, prefect_server: PrefectServerProcess) -> AsyncIterator[PrefectServer]:
        async with connect(prefect_server.api_url) as server:
            yield server
