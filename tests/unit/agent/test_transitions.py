"""One function moves an item from state to state, against the table; it waits for a server that is away."""

from __future__ import annotations

import asyncio
from itertools import product

import pytest

from prefect_launch.core.states import ItemState, StateType, is_allowed
from prefect_launch.errors import InternalError, ItemGoneError, ServerFailedError, ServerUnavailableError
from prefect_launch.queues.transitions import retry_until_available, transition
from tests.support.bench import Bench

WAITS, CLAIMED, RUNS, STOPS = StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING, StateType.CANCELLING
ENDS = {StateType.COMPLETED, StateType.FAILED, StateType.CRASHED, StateType.CANCELLED}
#: From where each state may be entered, written down anew from the design's table.
TABLE = {
    ItemState.QUEUED: {CLAIMED, RUNS} | ENDS,
    ItemState.AWAITING_RETRY: {CLAIMED, RUNS},
    ItemState.CLAIMED: {WAITS},
    ItemState.BUILDING: {CLAIMED},
    ItemState.PULLING: {CLAIMED},
    ItemState.SUBMITTED: {CLAIMED},
    ItemState.RUNNING: {CLAIMED},
    ItemState.COMPLETED: {CLAIMED, RUNS},
    ItemState.FAILED: {CLAIMED, RUNS},
    ItemState.CRASHED: {CLAIMED, RUNS},
    ItemState.CANCELLING: {WAITS, CLAIMED, RUNS},
    ItemState.CANCELLED: {WAITS, CLAIMED, RUNS, STOPS},
}


@pytest.mark.parametrize("target", list(ItemState))
def test_table_allows_what_the_design_allows_and_nothing_else(target: ItemState) -> None:
    assert {current for current in StateType if is_allowed(current, target)} == TABLE[target]


@pytest.mark.parametrize(
    ("current", "target"),
    [pair for pair in product(StateType, ItemState) if pair[0] not in TABLE[pair[1]]],
)
async def test_move_that_is_not_in_the_table_is_refused_unasked(
    bench: Bench, current: StateType, target: ItemState
) -> None:
    (item,) = await bench.add()
    with pytest.raises(InternalError, match="not allowed"):
        await transition(bench.server, item.id, current, target, "why")
    assert bench.server.calls["propose"] == 0


async def test_move_keeps_the_message_and_the_data(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED, ItemState.RUNNING)
    await transition(bench.server, item.id, RUNS, ItemState.FAILED, "exit code 3", data={"exit_code": 3})
    state = (await bench.read(item.id)).state
    assert state is not None
    assert (state.name, state.message, state.data) == ("Failed", "exit code 3", {"exit_code": 3})


async def test_move_that_the_server_refuses_tells_where_the_item_is(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED, ItemState.CANCELLING)
    state = await transition(bench.server, item.id, CLAIMED, ItemState.RUNNING, "runs")
    assert state.type is STOPS


async def test_nul_in_a_message_is_replaced_as_postgresql_keeps_none(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED)
    await transition(bench.server, item.id, CLAIMED, ItemState.FAILED, "no file a\0b")
    assert (await bench.read(item.id)).message == "no file a\ufffdb"


async def test_move_of_item_that_was_deleted_says_so(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.server.delete_item(item.id)
    with pytest.raises(ItemGoneError):
        await transition(bench.server, item.id, CLAIMED, ItemState.RUNNING, "runs")


async def test_move_waits_for_a_server_that_is_away(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED)
    bench.server.down()
    asyncio.get_running_loop().call_later(0.3, bench.server.up)
    state = await transition(bench.server, item.id, CLAIMED, ItemState.RUNNING, "runs")
    assert state.type is RUNS


async def test_request_that_a_server_fails_over_once_is_sent_again() -> None:
    answers = [ServerFailedError("500"), ServerUnavailableError("away"), None]

    async def call() -> str:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return "done"

    assert await retry_until_available("do it", call, pause_seconds=0.01) == "done"


async def test_server_that_goes_on_to_fail_is_not_asked_for_ever() -> None:
    tries: list[int] = []

    async def call() -> None:
        tries.append(1)
        raise ServerFailedError("500")

    with pytest.raises(ServerFailedError):
        await retry_until_available("do it", call, pause_seconds=0.01)
    assert len(tries) == 5
