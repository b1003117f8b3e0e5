"""A bulk request of which a busy server leaves items out: what is left is asked again, for a minute without progress.

The time is virtual: the server is busy for as long as SQLite was seen to be.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import httpx
import pytest
from prefect.client.orchestration import PrefectClient

from prefect_launch.errors import ServerUnavailableError, SpecError
from prefect_launch.server.http import Rest
from prefect_launch.server.items import ItemCalls
from prefect_launch.server.values import ItemDraft
from tests.support.virtual_time import virtual_time

_DRAFTS = [ItemDraft(name=f"item-{number}", parameters={}, idempotency_key=f"key-{number}") for number in range(4)]
_LOCKED = {"flow_run_id": None, "status": "FAILED", "error": "(sqlite3.OperationalError) database is locked\n[SQL: …]"}


@asynccontextmanager
async def item_calls(
    takes: Callable[[], int], left_out: Mapping[str, Any] = _LOCKED
) -> AsyncIterator[tuple[ItemCalls, list[str]]]:
    """Calls to a server that takes so many of the items of each request, and the keys that it took."""
    taken: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked, room = json.loads(request.content), takes()
        taken.extend(one["idempotency_key"] for one in asked[:room])
        made: list[dict[str, Any]] = [{"flow_run_id": str(uuid4()), "status": "CREATED"} for _ in asked[:room]]
        return httpx.Response(200, json={"results": made + [left_out for _ in asked[room:]]})

    async with httpx.AsyncClient(base_url="http://prefect.example", transport=httpx.MockTransport(answer)) as client:
        calls = ItemCalls()
        calls._rest = Rest(cast("PrefectClient", client))
        yield calls, taken


@pytest.mark.parametrize("busy_seconds", [0.0, 59.0])
async def test_items_that_a_busy_server_leaves_out_are_sent_again_until_it_takes_them(
    busy_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    with virtual_time(monkeypatch):
        free_at = time.monotonic() + busy_seconds
        async with item_calls(lambda: 1 if time.monotonic() >= free_at else 0) as (calls, taken):
            items = await calls.create_items(uuid4(), _DRAFTS)
    assert taken == [draft.idempotency_key for draft in _DRAFTS]
    assert [item.name for item in items] == [draft.name for draft in _DRAFTS]


async def test_server_that_takes_an_item_now_and_then_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with virtual_time(monkeypatch):
        last = time.monotonic()

        def takes() -> int:
            nonlocal last
            if time.monotonic() - last < 50.0:
                return 0
            last = time.monotonic()
            return 1

        async with item_calls(takes) as (calls, taken):
            await calls.create_items(uuid4(), _DRAFTS)
    assert len(taken) == len(_DRAFTS)


async def test_server_that_takes_no_item_for_a_minute_is_given_up_and_the_error_counts_what_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room = iter([1])
    with virtual_time(monkeypatch):
        started = time.monotonic()
        async with item_calls(lambda: next(room, 0)) as (calls, _):
            wanted = r"too busy to take 3 of 4 items for 60 s \(.*is locked\)\. Asked again"
            with pytest.raises(ServerUnavailableError, match=wanted):
                await calls.create_items(uuid4(), _DRAFTS)
        assert 60.0 <= time.monotonic() - started < 61.0


_ASYNCPG = "(sqlalchemy.dialects.postgresql.asyncpg.Error) <class 'asyncpg.exceptions."


@pytest.mark.parametrize(
    "error",
    [
        "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00",
        f"{_ASYNCPG}DeadlockDetectedError'>: deadlock detected",
        f"{_ASYNCPG}_base.InterfaceError'>: connection is closed",
        "Can't operate on closed transaction inside context manager.  Please complete the context manager",
        "",
    ],
)
async def test_request_whose_transaction_a_busy_database_ended_is_sent_again_whole(
    error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = iter([3])  # Three items get ids, and are gone with the transaction.
    with virtual_time(monkeypatch):
        async with item_calls(lambda: next(room, 4), {"status": "FAILED", "error": error}) as (calls, taken):
            await calls.create_items(uuid4(), _DRAFTS)
    keys = [draft.idempotency_key for draft in _DRAFTS]
    assert taken == [*keys[:3], *keys]


async def test_item_that_the_server_refuses_is_refused_at_once_whatever_words_the_refusal_quotes() -> None:
    refusal = {"status": "FAILED", "error": "Parameter validation failed: 'timeout: database is locked' is too long"}
    async with item_calls(lambda: 1, refusal) as (calls, taken):
        with pytest.raises(SpecError, match="refuses item 'item-1': Parameter validation failed"):
            await calls.create_items(uuid4(), _DRAFTS)
    assert len(taken) == 1
