"""The contract's rules for logs, artifacts, heartbeats and the event stream."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from uuid import uuid4

import anyio

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.items import RESULT
from prefect_launch.server.values import Item, ItemChange, LogRecord, State
from prefect_launch.spec.scheduling import Priority
from tests.contract.server_place import Place, draft, make_place

#: An event takes about 40 ms; a loaded machine gets its time.
PATIENCE_SECONDS = 20.0


class TelemetryContract:
    """What is told about items."""

    # --- the server itself ---

    async def test_server_says_its_version_and_what_its_clock_says(self, place: Place) -> None:
        about = await place.server.about()
        assert about.version.startswith("3.")
        assert about.time is not None
        assert abs((datetime.now(timezone.utc) - about.time).total_seconds()) < 60

    # --- logs ---

    async def test_records_since_a_time_include_those_of_that_time(self, place: Place) -> None:
        item = await place.add()
        start = datetime(2026, 1, 1, tzinfo=timezone.utc)
        times = [start + timedelta(microseconds=number) for number in range(3)]
        await place.server.write_logs(item.id, [LogRecord(message=str(time), timestamp=time) for time in times])
        found = await place.server.read_logs(item.id, since=times[1])
        assert [record.timestamp for record in found] == times[1:]

    async def test_log_is_read_in_the_order_of_its_times(self, place: Place) -> None:
        item, now = await place.add(), datetime.now(timezone.utc)
        late, early = _record("late", now), _record("early", now - timedelta(seconds=2))
        await place.server.write_logs(item.id, [late, early])
        await place.server.write_logs(item.id, [_record("between", now - timedelta(seconds=1), level=40)])
        records = await place.server.read_logs(item.id)
        assert [record.message for record in records] == ["early", "between", "late"]
        assert (records[0], records[1].level, records[1].name) == (early, 40, "launch")
        page = await place.server.read_logs(item.id, limit=1, offset=1)
        assert [record.message for record in page] == ["between"]

    async def test_what_is_no_character_in_a_log_line_is_replaced(self, place: Place) -> None:
        item = await place.add()
        await place.server.write_logs(item.id, [_record("a\0b\udcff", datetime.now(timezone.utc))])
        assert [record.message for record in await place.server.read_logs(item.id)] == ["a\ufffdb\ufffd"]

    async def test_log_of_an_item_that_is_not_there_is_taken(self, place: Place) -> None:
        await place.server.write_logs(uuid4(), [_record("late", datetime.now(timezone.utc))])
        await place.server.write_logs(uuid4(), [])
        assert await place.server.read_logs(uuid4()) == []

    async def test_lines_of_several_items_go_to_the_log_of_each(self, place: Place) -> None:
        first, second = await place.add(), await place.add()
        now = datetime.now(timezone.utc)
        lines = [(first.id, "a"), (second.id, "b"), (first.id, "c")]
        await place.server.write_lines(
            [(of, _record(text, now + timedelta(seconds=number))) for number, (of, text) in enumerate(lines)]
        )
        read = place.server.read_logs
        assert [record.message for record in await read(first.id)] == ["a", "c"]
        assert [record.message for record in await read(second.id)] == ["b"]

    # --- artifacts ---

    async def test_artifacts_of_an_item_are_all_kept(self, place: Place) -> None:
        item, other = await place.add(), await place.add()
        create = place.server.create_artifact
        await create(item.id, key="report", kind="markdown", data="# one", description="why")
        await create(item.id, key="report", kind="table", data=[{"accuracy": 0.9}])
        await create(other.id, key="report", kind="markdown", data="other")
        artifacts = await place.server.list_artifacts(item.id)
        seen = {artifact["type"]: (artifact["key"], artifact["data"]) for artifact in artifacts}
        assert seen == {"markdown": ("report", "# one"), "table": ("report", [{"accuracy": 0.9}])}
        assert {artifact["description"] for artifact in artifacts} == {"why", None}
        assert {artifact["flow_run_id"] for artifact in artifacts} == {str(item.id)}

    async def test_data_of_a_state_shows_as_no_artifact(self, place: Place) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING)
        end = ItemState.FAILED
        verdict = await place.server.propose(item.id, State(type=end.type, name=end.label, data={"exit_code": 3}))
        assert verdict.accepted
        read = await place.read(item)
        assert read.state is not None
        assert read.state.data == {"exit_code": 3}
        assert await place.server.list_artifacts(item.id) == []

    async def test_artifact_that_the_item_has_is_not_made_again(self, place: Place) -> None:
        item = await place.add()
        create = place.server.create_artifact
        for data in ("same", "same", "other"):
            await create(item.id, key="outputs", kind="markdown", data=data)
        for once, data in (("first", "a"), ("first", "b"), ("second", "b")):
            await create(item.id, key="end", kind="markdown", data=data, once=once)
        seen = sorted((one["key"], one["data"]) for one in await place.server.list_artifacts(item.id))
        assert seen == [("end", "a"), ("end", "b"), ("outputs", "other"), ("outputs", "same")]

    async def test_artifact_that_is_put_again_is_written_in_place(self, place: Place) -> None:
        item, other = await place.add(), await place.add()
        put, key = place.server.put_artifact, f"live-{uuid4()}"
        first = await put(item.id, key=key, kind="markdown", data="one")
        assert await put(item.id, key=key, kind="markdown", data="two", artifact_id=first) == first
        assert await put(item.id, key=key, kind="markdown", data="three", description="why") == first
        assert await put(other.id, key=f"{key}-2", kind="markdown", data="other") != first
        found = await place.server.list_artifacts(item.id)
        assert [(one["id"], one["data"], one["description"]) for one in found] == [(str(first), "three", "why")]
        read = await place.server.read_artifacts([key, f"{key}-2", f"{key}-3"])
        assert read == {key: "three", f"{key}-2": "other"}

    async def test_artifact_that_was_deleted_is_made_anew_under_its_key(self, place: Place) -> None:
        item, key = await place.add(), f"live-{uuid4()}"
        made = await place.server.put_artifact(item.id, key=key, kind="markdown", data="one", artifact_id=uuid4())
        assert await place.server.put_artifact(item.id, key=key, kind="markdown", data="two") == made

    async def test_artifact_of_a_result_is_read_by_its_key_and_not_shown(self, place: Place) -> None:
        item, key = await place.add(), f"hidden-{uuid4()}"
        await place.server.put_artifact(item.id, key=key, kind=RESULT, data={"a": [1, "NaN"]})
        assert await place.server.list_artifacts(item.id) == []
        assert await place.server.read_artifacts([key]) == {key: {"a": [1, "NaN"]}}
        assert await place.server.read_artifacts([]) == {}

    async def test_heartbeats_of_items_are_taken(self, place: Place) -> None:
        await place.server.beat_items([await place.add(), await place.add()])
        await place.server.beat_items([])

    # --- events ---

    async def test_item_queued_once_the_watch_is_open_is_reported(self, place: Place) -> None:
        watch = await _open(place)
        items = [await place.add(), await place.add(priority=Priority.HIGH)]
        items += await place.server.create_items(place.deployment_id, [draft(), draft()])
        assert await _changes(watch, until=items[-1]) == [_change(item, place) for item in items]

    async def test_claim_request_to_stop_and_new_turn_are_reported_and_nothing_else(self, place: Place) -> None:
        watch = await _open(place)
        first = await place.add()
        await place.move(first, ItemState.CLAIMED, ItemState.RUNNING, ItemState.CANCELLING, ItemState.CANCELLED)
        await place.move(first, ItemState.QUEUED, ItemState.CANCELLING)
        last = await place.add()
        told = (StateType.SCHEDULED, StateType.PENDING, StateType.CANCELLING, StateType.SCHEDULED)
        changes = [_change(first, place, one, is_new=number == 0) for number, one in enumerate(told)]
        assert await _changes(watch, until=last) == [*changes, _change(last, place)]

    async def test_only_items_of_the_pools_asked_for_are_reported(self, place: Place) -> None:
        other = await make_place(place.server, f"{place.pool}-2")
        third = await make_place(place.server, f"{place.pool}-3")
        watch = await _open(place, other)
        await third.add()
        items = [await other.add(), await place.add()]
        assert await _changes(watch, until=items[-1]) == [_change(items[0], other), _change(items[1], place)]

    async def test_every_change_of_state_of_an_item_with_the_tag_is_reported(self, place: Place) -> None:
        tag = f"sweep:{uuid4()}"
        watch = place.server.watch_items(tag)
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await anext(watch) == ""
        item, _ = await place.add(tags=(tag,)), await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED)
        last = await place.add(tags=(tag, "more"))
        assert await _told(watch, until=last) == [str(item.id)] * 4 + [str(last.id)]

    async def test_change_of_state_of_an_item_that_is_watched_by_its_id_is_reported(self, place: Place) -> None:
        item, other = await place.add(), await place.add()
        watch = place.server.watch_items(f"sweep:{uuid4()}", item.id)
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await anext(watch) == ""
        await place.move(other, ItemState.CLAIMED)
        await place.move(item, ItemState.CLAIMED)
        told = await _told(watch, until=item)
        assert str(other.id) not in told

    async def test_only_changes_to_the_types_of_states_asked_for_are_reported(self, place: Place) -> None:
        tag = f"sweep:{uuid4()}"
        watch = place.server.watch_items(tag, state_types=[StateType.COMPLETED, StateType.CANCELLED])
        with anyio.fail_after(PATIENCE_SECONDS):
            assert await anext(watch) == ""
        items = [await place.add(tags=(tag,)), await place.add(tags=(tag,))]
        await place.move(items[0], ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED)
        await place.move(items[1], ItemState.CANCELLING, ItemState.CANCELLED)
        assert await _told(watch, until=items[1]) == [str(item.id) for item in items]

    async def test_two_watchers_are_both_told(self, place: Place) -> None:
        watches = [await _open(place), await _open(place)]
        item = await place.add()
        assert [await _changes(watch, until=item) for watch in watches] == [[_change(item, place)]] * 2


def _record(message: str, timestamp: datetime, level: int = 20) -> LogRecord:
    return LogRecord(message=message, timestamp=timestamp, level=level)


def _change(item: Item, place: Place, state: StateType = StateType.SCHEDULED, *, is_new: bool = True) -> ItemChange:
    return ItemChange(str(item.id), place.pool, state, item.work_queue_name or "", is_new)


async def _open(*places: Place) -> AsyncIterator[ItemChange]:
    watch = places[0].server.watch_pools([place.pool_id for place in places])
    with anyio.fail_after(PATIENCE_SECONDS):
        assert await anext(watch) == ItemChange()
    return watch


async def _changes(watch: AsyncIterator[ItemChange], *, until: Item) -> list[ItemChange]:
    told: list[ItemChange] = []
    with anyio.fail_after(PATIENCE_SECONDS):
        while not told or told[-1].item_id != str(until.id):
            told.append(await anext(watch))
    await watch.aclose()  # type: ignore[attr-defined]
    return told


async def _told(watch: AsyncIterator[str], *, until: Item) -> list[str]:
    told: list[str] = []
    with anyio.fail_after(PATIENCE_SECONDS):
        while str(until.id) not in told:
            told.append(await anext(watch))
    await watch.aclose()  # type: ignore[attr-defined]
    return told
