"""The contract's rules for polling: what an agent is shown of a queue, and in which order."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.server.values import State
from prefect_launch.spec.scheduling import Priority
from tests.contract.server_place import Place, draft, soon


class PollContract:
    """Items that wait, as polls show them."""

    async def test_poll_gives_the_urgent_first_and_then_the_oldest(self, place: Place) -> None:
        for priority in (Priority.LOW, Priority.MEDIUM, Priority.CRITICAL, Priority.MEDIUM, Priority.HIGH):
            await place.add(f"{priority.name.lower()}-{len(await place.poll())}", priority=priority)
        assert await place.poll() == ["critical-2", "high-4", "medium-1", "medium-3", "low-0"]
        assert await place.poll(limit=2) == ["critical-2", "high-4"]

    async def test_poll_that_looks_ahead_shows_later_items_behind_those_of_their_priority_that_are_due(
        self, place: Place
    ) -> None:
        due = datetime.now(timezone.utc) + timedelta(minutes=10)
        later = State(type=StateType.SCHEDULED, name="Scheduled", state_details={"scheduled_time": due.isoformat()})
        for name, priority in (("usual", Priority.MEDIUM), ("urgent", Priority.CRITICAL)):
            item = await place.add(f"{name}-later", priority=priority)
            assert (await place.server.propose(item.id, later)).accepted
        await place.add("usual")
        assert await place.poll() == ["usual"]
        shown = await place.server.poll(place.pool, limit=50, before=due + timedelta(seconds=1))
        assert [item.name for item in shown] == ["urgent-later", "usual", "usual-later"]
        assert [item.next_scheduled_start_time == due for item in shown] == [True, False, True]

    async def test_polled_item_has_all_but_its_state_s_message(self, place: Place) -> None:
        item = await place.add("train", labels={"owner": "me"})
        polled = (await place.server.poll(place.pool, limit=1, before=soon()))[0]
        assert (polled.state, polled.work_pool_id, polled.work_pool_name) == (None, place.pool_id, place.pool)
        assert polled == (await place.read(item)).model_copy(update={"state": None})

    async def test_item_tells_the_name_of_the_flow_that_its_deployment_is_of(self, place: Place) -> None:
        deployment = await place.deploy("sweep", flow="launch-sweep")
        sweep = await place.server.create_item(deployment, draft("sweep", parameters={"lr": 1, "flow": "launch"}))
        assert sweep is not None
        await place.add("train")
        polled = await place.server.poll(place.pool, limit=50, before=soon())
        assert {item.name: item.flow for item in polled} == {"sweep": "launch-sweep", "train": "launch"}
        assert (await place.read(sweep)).flow == "launch-sweep"
        assert len({item.flow_id for item in polled}) == 2

    async def test_poll_gives_only_what_waits_under_whatever_name(self, place: Place) -> None:
        await place.move(await place.add("claimed"), ItemState.CLAIMED)
        await place.move(await place.add("stopped"), ItemState.CANCELLING)
        await place.add("from-the-ui", state=State(type=StateType.SCHEDULED, name="Scheduled"))
        assert await place.poll() == ["from-the-ui"]

    async def test_item_queued_again_stands_behind_those_that_wait(self, place: Place) -> None:
        again = await place.add("again")
        await place.add("waiting")
        await place.move(again, ItemState.CLAIMED, ItemState.FAILED, ItemState.QUEUED)
        assert await place.poll() == ["waiting", "again"]

    async def test_poll_of_some_work_queues_from_a_time_on_shows_what_is_behind(self, place: Place) -> None:
        first = await place.add("first", priority=Priority.HIGH)
        for name, priority in (("low", Priority.LOW), ("second", Priority.HIGH), ("usual", Priority.MEDIUM)):
            await place.add(name, priority=priority)
        due = (await place.read(first)).next_scheduled_start_time
        assert due is not None

        async def shown(*queues: str, after: datetime | None = None, limit: int = 50) -> list[str]:
            found = await place.server.poll(place.pool, limit=limit, before=soon(), after=after, queues=queues)
            return [item.name for item in found]

        assert await shown("high", after=due) == ["first", "second"]
        assert await shown("high", after=due + timedelta(microseconds=1)) == ["second"]
        assert await shown("low", "default") == ["usual", "low"]
        assert await shown(after=due + timedelta(microseconds=1)) == ["second", "usual", "low"]
        assert await shown("high", "gone") == []
        await place.server.update_pool(place.pool, concurrency_limit=1)
        assert await shown("low", "default") == ["usual"]
        await place.server.update_pool(place.pool, concurrency_limit=None, is_paused=True)
        assert await shown("high") == []

    async def test_poll_of_pool_that_is_gone_gives_nothing(self, place: Place) -> None:
        assert await place.server.poll(f"{place.pool}-gone", limit=5, before=soon()) == []

    async def test_pool_s_limit_counts_claimed_and_running_but_not_stopping_items(self, place: Place) -> None:
        items = [await place.add(f"item-{number}") for number in range(5)]
        await place.server.update_pool(place.pool, concurrency_limit=3)
        await place.move(items[0], ItemState.CLAIMED)
        await place.move(items[1], ItemState.CLAIMED, ItemState.RUNNING)
        assert await place.poll() == ["item-2"]
        await place.move(items[1], ItemState.CANCELLING)
        assert await place.poll() == ["item-2", "item-3"]
        assert (await place.move(items[4], ItemState.CLAIMED)).accepted  # the limit holds for polls only

    async def test_paused_pool_gives_nothing_until_it_is_resumed(self, place: Place) -> None:
        await place.add()
        await place.server.update_pool(place.pool, is_paused=True)
        assert await place.poll() == []
        await place.server.update_pool(place.pool, is_paused=False)
        assert await place.poll() == ["item"]
