"""Contract of a client of a Prefect server: the tests that the real server and the in-memory one both pass.

A test class derives from `ServerContract` and gives it a fixture `server`.
"""

from __future__ import annotations

from uuid import uuid4

import pytest

from prefect_launch.server.protocol import Server
from tests.contract.server_items import ItemContract
from tests.contract.server_moves import MoveContract
from tests.contract.server_place import Place, make_place
from tests.contract.server_polls import PollContract
from tests.contract.server_queues import QueueContract
from tests.contract.server_telemetry import TelemetryContract
from tests.contract.server_variables import VariableContract


class ServerContract(QueueContract, ItemContract, PollContract, MoveContract, TelemetryContract, VariableContract):
    """All of it."""

    @pytest.fixture
    async def place(self, server: Server) -> Place:
        """A queue of the test's own."""
        return await make_place(server, f"q-{uuid4().hex[:8]}")
