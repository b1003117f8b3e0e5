"""Agents that claim from the same old poll result, on real databases: each item runs once, and keeps its end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import pytest

from prefect_launch import Api, launch_add_many
from prefect_launch.core.states import ItemState
from prefect_launch.queues.claim import claim
from prefect_launch.server.values import Item, State
from tests.support.bench import holder_called

if TYPE_CHECKING:
    from prefect_launch.server.protocol import Server
    from tests.support.prefect_server import PrefectServerProcess

COUNT: Final = 24
AGENTS: Final = 4
#: From these the server lets an item be claimed again.
ENDS: Final = (ItemState.COMPLETED, ItemState.FAILED, ItemState.CRASHED)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def server_process(request: pytest.FixtureRequest) -> PrefectServerProcess:
    """The run's server on each database."""
    name = {"sqlite": "prefect_server", "postgresql": "postgres_prefect_server"}[request.param]
    server: PrefectServerProcess = request.getfixturevalue(name)
    return server


@pytest.mark.timeout(300)
async def test_item_that_four_agents_claim_from_old_polls_runs_once(
    server_process: PrefectServerProcess, unique: str
) -> None:
    api = Api(url=server_process.api_url)
    api.create_run_queue(unique, "local-container")
    specs: list[dict[str, Any]] = [{"docker": {"docker_image": "busybox:1"}} for _ in range(COUNT)]
    launch_add_many(specs, unique, api=api)
    ran: Counter[UUID] = Counter()
    async with api.open() as session:
        soon = datetime.now(timezone.utc) + timedelta(seconds=5)
        polled = await session.server.poll(unique, limit=COUNT, before=soon)
        assert len(polled) == COUNT
        for _ in range(2):  # In the second round all have ended.
            await asyncio.gather(*(_work(session.server, polled, f"box-{agent}", ran) for agent in range(AGENTS)))
        items = await session.server.list_items(pool=unique)
    assert ran == Counter(item.id for item in polled)
    wanted = {item.id: (_end_of(number).label, 1) for number, item in enumerate(polled)}
    assert {item.id: (item.state_name, item.run_count) for item in items} == wanted


async def _work(server: Server, polled: Sequence[Item], agent: str, ran: Counter[UUID]) -> None:
    """Claim each item, and take those that are this agent's to their end."""
    for number, item in enumerate(polled):
        if await claim(server, item, holder=holder_called(agent)) is not None:
            ran[item.id] += 1
            assert (await server.propose(item.id, State.of(ItemState.RUNNING))).accepted
            assert (await server.propose(item.id, State.of(_end_of(number)))).accepted


def _end_of(number: int) -> ItemState:
    return ENDS[number % len(ENDS)]
