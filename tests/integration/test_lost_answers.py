"""Requests whose answers are lost on the way: what they ask for is done, and done once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.client import PrefectServer, connect
from prefect_launch.server.values import State
from tests.contract.server_place import Place, make_place
from tests.support.live import Site
from tests.support.relay import Relay, relay_to

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.prefect_server import PrefectServerProcess

TELLS_ALL = 'for n in 1 2 3; do echo line $n; done; echo \'{"a": 1}\' > "$LAUNCH_OUTPUT_DIR/outputs.json"; exit 5'


@pytest.fixture
def relay(prefect_server: PrefectServerProcess) -> Iterator[Relay]:
    """A way to the server that loses answers when told to."""
    with relay_to(prefect_server.port) as relay:
        yield relay


@pytest.fixture
async def server(relay: Relay) -> AsyncIterator[PrefectServer]:
    """The client, connected through the relay."""
    async with connect(relay.api_url) as server:
        yield server


@pytest.fixture
async def place(server: PrefectServer, unique: str) -> Place:
    """A queue of the test's own."""
    return await make_place(server, unique)


async def test_state_whose_answer_was_lost_is_set_once(relay: Relay, server: PrefectServer, place: Place) -> None:
    item = await place.add()
    await place.move(item, ItemState.CLAIMED)
    relay.lose_answers("/set_state", 2)
    verdict = await server.propose(item.id, State.of(ItemState.RUNNING))
    assert verdict.accepted
    assert len(relay.lost) == 1  # the second was not asked for: the first had taken effect
    states = await server.read_states(item.id)
    assert [state.type for state in states] == [StateType.SCHEDULED, StateType.PENDING, StateType.RUNNING]
    assert (await place.read(item)).run_count == 1


async def test_item_given_back_is_not_taken_from_the_agent_that_has_claimed_it_since(
    relay: Relay, server: PrefectServer, place: Place, prefect_server: PrefectServerProcess
) -> None:
    item = await place.add()
    await place.move(item, ItemState.CLAIMED)
    back = State.of(ItemState.QUEUED, "back")
    relay.lose_answers("/set_state", 1)
    send = server._send

    async def send_and_be_late(*args: object, **kwargs: object) -> object:
        try:
            return await send(*args, **kwargs)  # type: ignore[arg-type]
        finally:
            async with connect(prefect_server.api_url) as other:
                await other.propose(item.id, State.of(ItemState.CLAIMED, "by another"))

    server._send = send_and_be_late  # type: ignore[method-assign, assignment]
    assert (await server.propose(item.id, back)).accepted
    state = (await place.read(item)).state
    assert state is not None
    assert (state.type, state.message) == (StateType.PENDING, "by another")


async def test_artifact_whose_answer_was_lost_is_there_once(relay: Relay, server: PrefectServer, place: Place) -> None:
    item = await place.add()
    relay.lose_answers("/artifacts/", 1)
    await server.create_artifact(item.id, key="report", kind="markdown", data="# one")
    assert relay.lost == ["POST /api/artifacts/"]
    assert len(await server.list_artifacts(item.id)) == 1


def test_items_whole_life_is_reported_once_though_every_kind_of_answer_is_lost(
    relay: Relay, prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    near = Site(prefect_server.api_url, tmp_path, unique)
    near.job(TELLS_ALL)
    far = near.by(relay.api_url)
    relay.lose_answers("/create_flow_run", 1)
    relay.lose_answers("/bulk", 1)
    (run,) = far.add()
    for path_end in ("/set_state", "/logs/", "/artifacts/", "/get_scheduled_flow_runs", "/count", "/filter"):
        relay.lose_answers(path_end, 2)
    far.work_off()
    lost = {request.rpartition("/api/")[2].split("/")[0] for request in relay.lost}
    assert {"flow_runs", "logs", "artifacts", "work_pools"} <= lost, relay.lost
    assert len(near.api.items(queue=near.name, limit=None)) == 1
    states = [state for state in near.states(run) if state != "Building"]
    assert states == ["Queued", "Pending", "Running", "Failed"]
    assert near.flow_run(run).run_count == 1
    assert near.log(run).splitlines() == ["line 1", "line 2", "line 3"]
    assert sorted(artifact.type for artifact in near.artifacts(run) if artifact.key) == ["markdown", "table"]
