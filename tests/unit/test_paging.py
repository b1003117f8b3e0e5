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


@pytest.mark.parametrize(("page", "requests"), [(2, 5), (4, 2), (5, 2), (6, 1)])
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


@pytest.mark.parametrize("leaving", [1, 3, 4, 7])
async def test_items_that_leave_the_list_between_two_pages_hide_no_other(bench: Bench, leaving: int) -> None:
    added = sorted((item.id for item in await bench.add(count=11)), reverse=True)
    found = []
    async for item in all_items(bench.server, page=4, pool=QUEUE):
        found.append(item.id)
        if len(found) == 4:
            for gone in added[:leaving]:
                await bench.server.delete_item(gone)
    assert found == [item_id for item_id in added if item_id in added[leaving:] or item_id in added[:4]]


async def test_list_that_all_items_leave_comes_to_an_end(bench: Bench) -> None:
    added = await bench.add(count=6)
    found = []
    async for item in all_items(bench.server, page=3, pool=QUEUE):
        found.append(item.id)
        if len(found) == 3:
            for gone in added:
                await bench.server.delete_item(gone.id)
    assert len(found) == 3
