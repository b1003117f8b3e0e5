"""Paging of items: all that fit, each once, in as few requests as there are pages."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.core.states import ItemState
from prefect_launch.server.paging import all_items
from prefect_launch.server.values import State
from tests.support.bench import QUEUE, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A server in memory, and a queue on it."""
    return Bench(tmp_path)


@pytest.mark.parametrize(("page", "requests"), [(2, 3), (5, 2), (6, 1)])
async def test_all_items_are_listed_page_by_page(bench: Bench, page: int, requests: int) -> None:
    added = await bench.add(count=5)
    found = [item.id async for item in all_items(bench.server, page=page, pool=QUEUE)]
    assert sorted(found) == sorted(item.id for item in added)
    assert bench.server.calls["list_items"] == requests


async def test_item_that_starts_between_two_pages_is_not_left_out(bench: Bench) -> None:
    added = await bench.add(count=5)
    found = []
    async for item in all_items(bench.server, page=2, pool=QUEUE):
        found.append(item.id)
        if len(found) == 1:
            for late in added:
                for state in (ItemState.CLAIMED, ItemState.RUNNING):
                    await bench.server.propose(late.id, State.of(state))
    assert sorted(found) == sorted(item.id for item in added)


async def test_item_that_is_queued_between_two_pages_repeats_no_other(bench: Bench) -> None:
    added = await bench.add(count=4)
    found = []
    async for item in all_items(bench.server, page=2, pool=QUEUE):
        found.append(item.id)
        if len(found) == 1:
            await bench.add()
    assert len(found) == len(set(found))
    assert {item.id for item in added} <= set(found)
