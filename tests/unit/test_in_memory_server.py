"""The in-memory server keeps the contract of the real one, and does what only a twin can."""

from __future__ import annotations

import pytest

from prefect_launch.testing import InMemoryServer
from tests.contract.server_contract import ServerContract


class TestInMemoryServer(ServerContract):
    @pytest.fixture
    def server(self) -> InMemoryServer:
        return InMemoryServer()
