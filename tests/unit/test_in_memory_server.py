"""The in-memory server passes the contract of the real one, and does what only a fake can."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta, timezone
from uuid import uuid4

import anyio
import pytest

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ServerUnavailableError
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import Answer, ItemChange, State
from prefect_launch.testing import InMemoryServer
from tests.contract.server_contract import ServerContract
from tests.contract.server_place import make_place


class TestInMemoryServer(ServerContract):
    @pytest.fixture
    def server(self) -> Server:
        return InMemoryServer()


async def test_every_call_to_a_server_that_is_down_says_so_and_nothing_is_lost() -> None:
    server = InMemoryServer()
    place = await make_place(server, "gpu")
    item = await place.add()
    server.down()
    for attempt in (server.list_pools(), server.read_item(item.id), place.move(item, ItemState.CLAIMED)):
        with pytest.raises(ServerUnavailableError, match="does not answer"):
            await attempt
    server.up()
    assert (await place.read(item)).state_type is StateType.SCHEDULED


async def test_event_stream_ends_when_the_server_goes_down_and_cannot_be_opened_then() -> None:
    server = InMemoryServer()
    place = await make_place(server, "gpu")
    watch = server.watch_pools([place.pool_id])
    assert await anext(watch) == ItemChange()
    server.down()
    assert [change async for change in watch] == []
    with pytest.raises(ServerUnavailableError):
        await anext(server.watch_pools([place.pool_id]))


async def test_item_queued_between_the_watch_and_its_first_step_is_reported() -> None:
    server = InMemoryServer()
    place = await make_place(server, "gpu")
    watch = server.watch_pools([place.pool_id])
    assert server.watching == 1
    item = await place.add()
    assert [await anext(watch), await anext(watch)] == [
        ItemChange(),
        ItemChange(str(item.id), "gpu", StateType.SCHEDULED, "default", is_new=True),
    ]


async def test_test_comes_between_before_any_call_takes_effect() -> None:
    server = InMemoryServer()
    place = await make_place(server, "gpu")
    item = await place.add()

    async def claim_first(method: str) -> None:
        if method == "propose":
            server.before_call = None
            await place.move(item, ItemState.CLAIMED)

    server.before_call = claim_first
    assert (await place.move(item, ItemState.CLAIMED)).status is Answer.ABORT


async def test_answer_lost_after_the_call_took_effect_is_known_by_its_transition_id() -> None:
    server = InMemoryServer()
    place = await make_place(server, "gpu")
    item, transition = await place.add(), uuid4()

    async def lose(method: str) -> None:
        server.after_call = None
        raise ServerUnavailableError("the answer was lost")

    server.after_call = lose
    claim = State.of(ItemState.CLAIMED)
    with pytest.raises(ServerUnavailableError, match="lost"):
        await server.propose(item.id, claim, transition_id=transition)
    again = await server.propose(item.id, claim, transition_id=transition)
    assert again.status is Answer.REJECT
    assert again.state is not None
    assert again.state.state_details["transition_id"] == str(transition)


async def test_calls_are_counted_by_name() -> None:
    server = InMemoryServer()
    place = await make_place(server, "gpu")
    server.calls.clear()
    await place.poll()
    await place.poll()
    await server.update_pool("gpu", is_paused=True)
    assert server.calls == {"poll": 2, "update_pool": 1}


async def test_answer_is_a_copy_that_changes_nothing_on_the_server() -> None:
    place = await make_place(InMemoryServer(), "gpu")
    item = await place.add(parameters={"epochs": 3})
    item.parameters["epochs"] = 99
    assert (await place.read(item)).parameters["epochs"] == 3


async def test_agent_not_heard_of_for_three_intervals_is_offline() -> None:
    now = [datetime(2026, 1, 1, tzinfo=timezone.utc)]
    server = InMemoryServer(now=lambda: now[0])
    await make_place(server, "gpu")
    await server.beat_worker("gpu", "box-1", 15)
    now[0] += timedelta(seconds=46)
    pool, (worker,) = await server.read_pool("gpu"), await server.list_workers("gpu")
    assert pool is not None
    assert (pool.status, worker.status) == ("NOT_READY", "OFFLINE")


async def test_heartbeats_of_items_are_kept_with_their_time() -> None:
    now = datetime(2026, 1, 1, tzinfo=timezone.utc)
    server = InMemoryServer(now=lambda: now)
    item = await (await make_place(server, "gpu")).add()
    await server.beat_items([item])
    assert server.heartbeats == {item.id: now}


async def test_item_made_from_another_thread_wakes_a_watcher_here() -> None:
    server = InMemoryServer()
    place = await make_place(server, "gpu")
    watch = server.watch_pools([place.pool_id])
    assert await anext(watch) == ItemChange()
    thread = threading.Thread(target=anyio.run, args=(place.add,))
    thread.start()
    with anyio.fail_after(60):
        told = await anext(watch)
    thread.join()
    assert [str(item.id) for item in await server.list_items(pool="gpu")] == [told.item_id]


async def test_claims_from_many_threads_have_one_winner_each() -> None:
    server = InMemoryServer()
    place = await make_place(server, "gpu")
    items = [await place.add() for _ in range(20)]
    won: list[bool] = []

    async def claim_all() -> None:
        for item in items:
            won.append((await place.move(item, ItemState.CLAIMED)).accepted)

    threads = [threading.Thread(target=anyio.run, args=(claim_all,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await anyio.to_thread.run_sync(thread.join)
    assert (len(won), sum(won)) == (80, 20)
