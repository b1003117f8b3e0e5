"""Items of a real server that are changed while an agent claims them."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from prefect_launch.client.api import Api
from tests.support.changing import race_edits, race_moves

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

COUNT = 20
#: A change holds an item for about a tenth of a second.
LATEST_SECONDS = 0.25


async def _pause(number: int) -> None:
    await asyncio.sleep(random.uniform(0, LATEST_SECONDS))


async def race(server: PrefectServerProcess, queue: str) -> None:
    api, other = Api(url=server.api_url), f"{queue}-other"
    for name in (queue, other):
        await asyncio.to_thread(api.create_run_queue, name, "local-container")
    assert await race_edits(api, queue, COUNT, _pause) <= {"agent", "user"}
    assert await race_moves(api, queue, other, COUNT, _pause) <= {"agent", "user"}


async def test_item_that_is_changed_while_an_agent_claims_it_is_neither_lost_nor_doubled_on_sqlite(
    prefect_server: PrefectServerProcess, unique: str
) -> None:
    await race(prefect_server, unique)


@pytest.mark.postgres
async def test_item_that_is_changed_while_an_agent_claims_it_is_neither_lost_nor_doubled_on_postgresql(
    postgres_prefect_server: PrefectServerProcess, unique: str
) -> None:
    await race(postgres_prefect_server, unique)
