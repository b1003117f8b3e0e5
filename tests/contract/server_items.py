"""The contract's rules for making and finding items."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import ItemGoneError, SpecError
from prefect_launch.server.values import END_OF_TIME, MOVED, ItemFilter, State
from prefect_launch.spec.scheduling import Priority
from tests.contract.server_place import Place, draft

LATER = datetime(2100, 1, 1, tzinfo=timezone.utc)
REFUSED_VARIABLES: list[tuple[dict[str, Any], str]] = [
    ({}, "Validation failed. Failure reason: 'site' is a required property"),
    (
        {"site": "east"},
        "Validation failed for field 'site'. Failure reason: 'east' is not one of ['north', 'south']",
    ),
    (
        {"site": "north", "gpus": 9},
        "Validation failed for field 'gpus'. Failure reason: 9 is greater than the maximum of 8",
    ),
    (
        {"site": "north", "gpus": "two"},
        "Validation failed for field 'gpus'. Failure reason: 'two' is not valid under any of the given schemas",
    ),
    (
        {"site": "north", "gpu": 1},
        "Validation failed. Failure reason: Additional properties are not allowed ('gpu' was unexpected)",
    ),
]


class ItemContract:
    """Items that are made, listed and deleted."""

    # --- making ---

    async def test_item_made_for_a_time_is_due_then(self, place: Place) -> None:
        details = {"scheduled_time": LATER.isoformat()}
        state = State(type=StateType.SCHEDULED, name="AwaitingRetry", message="Later.", state_details=details)
        read = await place.read(await place.add(state=state))
        assert (read.state_name, read.message) == ("AwaitingRetry", "Later.")
        assert read.next_scheduled_start_time == read.expected_start_time == LATER

    async def test_listed_item_has_the_data_of_its_state(self, place: Place) -> None:
        item = await place.add()
        claim = State(type=StateType.PENDING, name="Pending", data={"launch_change": "ann"})
        assert (await place.server.propose(item.id, claim)).accepted
        (listed,) = await place.server.list_items(pool=place.pool, state_names=["Pending"])
        assert listed.state is not None
        assert listed.state.data["launch_change"] == "ann"
        assert listed.state.transition_id is not None

    async def test_items_are_listed_and_counted_by_the_names_of_their_states(self, place: Place) -> None:
        claimed, _ = await place.add("claimed"), await place.add("waits")
        await place.move(claimed, ItemState.CLAIMED)
        for asked in ({}, {"state_types": [StateType.PENDING, StateType.CANCELLED]}):
            wanted = ItemFilter(pool=place.pool, state_names=["Pending"], **asked)  # type: ignore[typeddict-item]
            assert [item.id for item in await place.server.list_items(**wanted)] == [claimed.id]
            assert await place.server.count_items(**wanted) == 1

    async def test_item_that_was_moved_is_listed_only_when_it_is_asked_for(self, place: Place) -> None:
        kept, moved = await place.add("kept"), await place.add("moved")
        await place.move(moved, ItemState.CLAIMED)
        assert (await place.server.propose(moved.id, State(type=StateType.CANCELLED, name=MOVED))).accepted
        await place.move(kept, ItemState.CLAIMED, ItemState.CANCELLED)
        for asked in ({}, {"state_types": [StateType.CANCELLED]}, {"ids": [kept.id, moved.id]}):
            wanted = ItemFilter(pool=place.pool, **asked)  # type: ignore[typeddict-item]
            assert [item.id for item in await place.server.list_items(**wanted)] == [kept.id]
            assert await place.server.count_items(**wanted) == 1
            found = await place.server.list_items(**wanted, moved=True)
            assert {item.id for item in found} == {kept.id, moved.id}

    async def test_item_has_what_it_was_made_of_over_what_its_deployment_says(self, place: Place) -> None:
        labels = {"owner": "me", "attempts": 2}
        made = await place.add("train", parameters={"epochs": 5}, tags=("mine",), labels=labels)
        read = await place.read(made)
        assert read == made.model_copy(update={"flow": "launch"})  # what was made comes without its flow
        assert (read.name, read.deployment_id, read.run_count) == ("train", place.deployment_id, 0)
        assert read.parameters == {"lr": 0.1, "epochs": 5}
        assert read.job_variables == {"site": "north"}  # the defaults of the template are not written
        assert set(read.tags) == {"from-deployment", "mine"}
        assert read.labels.items() >= {"origin": "deployment", "owner": "me", "attempts": 2}.items()
        assert read.labels["prefect.deployment.id"] == str(place.deployment_id)
        assert (read.state_type, read.state_name, read.message) == (StateType.SCHEDULED, "Queued", "")
        assert (read.work_pool_name, read.work_queue_name) == (place.pool, "default")
        assert read.next_scheduled_start_time == read.expected_start_time is not None
        assert (read.start_time, read.end_time, read.infrastructure_pid) == (None, None, None)

    async def test_items_are_found_by_their_idempotency_keys(self, place: Place) -> None:
        first, _, third = [await place.add(idempotency_key=f"{place.pool}-{number}") for number in range(3)]
        found = await place.server.list_items(keys=[f"{place.pool}-0", f"{place.pool}-2", "nobodys"])
        assert {(item.id, item.idempotency_key) for item in found} == {
            (first.id, f"{place.pool}-0"),
            (third.id, f"{place.pool}-2"),
        }

    async def test_item_made_twice_under_one_key_is_one_item(self, place: Place) -> None:
        first = await place.add("first", idempotency_key=f"key-{place.pool}")
        second = await place.add("second", idempotency_key=f"key-{place.pool}")
        assert (second.id, second.name) == (first.id, "first")

    async def test_key_is_the_flow_s_not_the_deployment_s(self, place: Place) -> None:
        key = f"key-{place.pool}"
        first = await place.add("first", idempotency_key=key)
        other = await place.deploy(f"{place.pool}-other")
        second = await place.server.create_item(other, draft("second", idempotency_key=key))
        assert second is not None
        assert second.id == first.id

    async def test_key_of_deleted_item_is_free_again(self, place: Place) -> None:
        first = await place.add("first", idempotency_key=f"key-{place.pool}")
        await place.server.delete_item(first.id)
        assert (await place.add("second", idempotency_key=f"key-{place.pool}")).id != first.id

    @pytest.mark.parametrize(("variables", "reason"), REFUSED_VARIABLES)
    async def test_template_variables_outside_the_queue_s_schema_are_refused(
        self, place: Place, variables: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(SpecError) as refusal:
            await place.add(job_variables=variables)
        assert str(refusal.value) == f"The Prefect server refuses this: Error creating flow run: {reason}"
        assert await place.poll() == []

    async def test_variable_with_a_default_may_be_null(self, place: Place) -> None:
        assert (await place.add(job_variables={"site": "north", "gpus": None})).job_variables is not None

    @pytest.mark.parametrize("lr", ["fast", 0])
    async def test_parameters_outside_the_deployment_s_schema_are_refused_when_it_is_enforced(
        self, place: Place, lr: Any
    ) -> None:
        with pytest.raises(SpecError, match=r"Error creating flow run: Validation failed for field 'lr'\."):
            await place.add(parameters={"lr": lr})
        await place.deploy(enforce=False)
        assert (await place.add(parameters={"lr": lr})).parameters["lr"] == lr

    async def test_parameter_that_the_schema_does_not_know_is_taken(self, place: Place) -> None:
        assert (await place.add(parameters={"unknown": 1})).parameters == {"lr": 0.1, "unknown": 1}

    async def test_parameters_over_half_a_mebibyte_are_refused(self, place: Place) -> None:
        with pytest.raises(SpecError, match="Flow run parameters must be less than 524,288 bytes"):
            await place.add(parameters={"text": "x" * 524_288})

    @pytest.mark.parametrize("value", [2**64, -(2**63) - 1, "a\0", "\ud800", float("nan"), float("inf")])
    async def test_value_that_the_server_could_not_send_again_is_refused_wherever_it_is_written(
        self, place: Place, value: Any
    ) -> None:
        item = await place.add()
        pool = await place.server.read_pool(place.pool)
        assert pool is not None
        template = pool.base_job_template
        odd = {"job_configuration": {**template["job_configuration"], "odd": value}, "variables": template["variables"]}
        running = State(type=StateType.PENDING, name="Pending", data={"odd": value})
        variable = f"v-{place.pool}"
        for write in (
            place.add(parameters={"odd": [value]}),
            place.add(job_variables={"site": "north", "gpus": value}),
            place.add(labels={"odd": value}),
            place.server.create_items(place.deployment_id, [draft("many", parameters={"odd": value})]),
            place.server.propose(item.id, running),
            place.server.create_artifact(item.id, key="odd", kind="table", data=[{"odd": value}]),
            place.server.update_pool(place.pool, base_job_template=odd),
            place.server.write_variable(variable, {"odd": value}),
            place.server.label_item(item.id, {"odd": value}),
        ):
            with pytest.raises(SpecError, match="cannot be kept by the server"):
                await write
        assert [found.name for found in await place.server.list_items(pool=place.pool)] == [item.name]

    async def test_greatest_and_least_integers_are_kept(self, place: Place) -> None:
        ends = {"odd": [2**64 - 1, -(2**63)]}
        await place.add(parameters=ends)
        (listed,) = await place.server.list_items(pool=place.pool)
        assert listed.parameters["odd"] == ends["odd"]

    async def test_item_of_unknown_work_queue_makes_that_queue_the_last(self, place: Place) -> None:
        item = await place.add(work_queue_name="someday")
        queues = await place.server.list_queues(place.pool)
        assert (queues[-1].name, queues[-1].priority) == ("someday", 5)
        assert (await place.read(item)).work_queue_name == "someday"

    async def test_item_of_deployment_that_is_gone_is_none(self, place: Place) -> None:
        assert await place.server.create_item(uuid4(), draft()) is None

    # --- making many ---

    async def test_many_items_are_made_in_order_and_once(self, place: Place) -> None:
        drafts = [draft(f"item-{number}") for number in range(103)]
        told: list[int] = []
        made = await place.server.create_items(place.deployment_id, drafts, progress=told.append)
        assert told == [50, 100, 103]
        again = await place.server.create_items(place.deployment_id, drafts)
        assert [item.name for item in made] == [each.name for each in drafts]
        assert [item.id for item in again] == [item.id for item in made]
        waiting = [StateType.SCHEDULED]
        assert await place.server.count_items(pool=place.pool, state_types=waiting) == 103
        assert (await place.read(made[102])).name == "item-102"

    async def test_one_refused_of_many_is_named_and_the_others_stay(self, place: Place) -> None:
        drafts = [draft("good"), draft("bad", job_variables={"site": "east"}), draft("fine")]
        with pytest.raises(SpecError, match=r"The Prefect server refuses item 'bad': .*'east' is not one of"):
            await place.server.create_items(place.deployment_id, drafts)
        assert sorted(await place.poll()) == ["fine", "good"]

    async def test_many_items_of_deployment_that_is_gone_are_refused(self, place: Place) -> None:
        with pytest.raises(SpecError, match="is gone"):
            await place.server.create_items(uuid4(), [draft()])

    async def test_no_items_are_made_of_no_drafts(self, place: Place) -> None:
        assert await place.server.create_items(place.deployment_id, []) == []

    # --- finding ---

    async def test_items_are_listed_newest_first_and_by_page(self, place: Place) -> None:
        for name in "abc":
            await place.add(name)
        listed = await place.server.list_items(pool=place.pool)
        assert [item.name for item in listed] == ["c", "b", "a"]
        page = await place.server.list_items(pool=place.pool, limit=1, offset=1)
        assert [item.name for item in page] == ["b"]

    async def test_items_are_listed_by_their_ids_whatever_becomes_of_them(self, place: Place) -> None:
        items = [await place.add(name) for name in "abcd"]
        await place.move(items[0], ItemState.CLAIMED, ItemState.RUNNING)
        pages = [await place.server.list_items(pool=place.pool, by_id=True, limit=2, offset=at) for at in (0, 2)]
        assert [item.id for page in pages for item in page] == sorted((item.id for item in items), reverse=True)

    async def test_items_are_found_by_id_name_state_and_tags(self, place: Place) -> None:
        waiting = await place.add("waiting", tags=("x", "y"))
        running = await place.add("running", tags=("x",))
        await place.move(running, ItemState.CLAIMED, ItemState.RUNNING)

        async def names(**which: Any) -> list[str]:
            return [item.name for item in await place.server.list_items(pool=place.pool, **which)]

        assert await names(ids=[waiting.id, uuid4()]) == ["waiting"]
        assert await names(ids=[]) == []
        assert await names(state_types=[StateType.RUNNING, StateType.PENDING]) == ["running"]
        assert await names(names=["running", "nobody"]) == ["running"]
        assert await names(tags=["x"]) == ["running", "waiting"]
        assert await names(tags=["x", "y"]) == ["waiting"]

    async def test_items_are_counted_by_work_queue_and_state(self, place: Place) -> None:
        await place.add(priority=Priority.HIGH)
        await place.move(await place.add(priority=Priority.HIGH), ItemState.CLAIMED)
        await place.add(priority=Priority.LOW)
        count = place.server.count_items
        assert await count(pool=place.pool, state_types=[StateType.SCHEDULED]) == 2
        assert await count(pool=place.pool, queue="high", state_types=[StateType.SCHEDULED]) == 1
        assert await count(pool=place.pool, queue="low", state_types=[StateType.PENDING]) == 0

    async def test_items_that_are_due_by_a_time_are_counted_apart(self, place: Place) -> None:
        first, second = await place.add("first"), await place.add("second")
        later = State(type=StateType.SCHEDULED, name="Scheduled", state_details={"scheduled_time": LATER.isoformat()})
        await place.server.propose((await place.add("third")).id, later)
        due = [(await place.read(item)).next_scheduled_start_time for item in (first, second)]
        count = place.server.count_items
        assert await count(pool=place.pool, state_types=[StateType.SCHEDULED], due_before=due[0]) == 1
        assert await count(pool=place.pool, state_types=[StateType.SCHEDULED], due_before=due[1]) == 2
        assert await count(pool=place.pool, state_types=[StateType.SCHEDULED], due_before=LATER) == 3

    async def test_what_is_due_is_counted_by_pool_and_work_queues(self, place: Place) -> None:
        items = [await place.add(priority=priority) for priority in (Priority.HIGH, Priority.LOW, Priority.LOW)]
        later = State(type=StateType.SCHEDULED, name="Scheduled", state_details={"scheduled_time": LATER.isoformat()})
        await place.server.propose((await place.add()).id, later)
        await place.move(await place.add(), ItemState.CLAIMED)
        await place.move(await place.add(), ItemState.CANCELLED)
        now = (await place.read(items[-1])).next_scheduled_start_time
        assert now is not None
        assert await place.server.count_due(place.pool, before=now) == 3
        assert await place.server.count_due(place.pool, before=now, queues=["high", "critical"]) == 1
        assert await place.server.count_due(place.pool, before=LATER) == 4
        assert await place.server.count_due("elsewhere", before=LATER) == 0

    async def test_all_that_waits_counts_the_same_by_its_due_time_as_by_its_state(self, place: Place) -> None:
        for priority in (Priority.HIGH, Priority.LOW, Priority.LOW):
            await place.add(priority=priority)
        for name in ("Scheduled", "AwaitingRetry"):
            later = State(type=StateType.SCHEDULED, name=name, state_details={"scheduled_time": LATER.isoformat()})
            await place.server.propose((await place.add()).id, later)
        back = await place.add()
        await place.move(back, ItemState.CLAIMED, ItemState.RUNNING, ItemState.QUEUED)
        await place.server.create_item(await place.deploy("sweeps", flow="launch-sweep"), draft())
        for state in (ItemState.CLAIMED, ItemState.CANCELLED):
            await place.move(await place.add(), state)
        await place.server.update_pool(place.pool, is_paused=True)
        waiting = [StateType.SCHEDULED]
        assert await place.server.count_items(pool=place.pool, state_types=waiting) == 7
        assert await place.server.count_due(place.pool, before=END_OF_TIME) == 7
        assert await place.server.count_items(pool=place.pool, queue="low", state_types=waiting) == 2
        assert await place.server.count_due(place.pool, before=END_OF_TIME, queues=["low"]) == 2

    async def test_items_are_listed_that_were_first_due_since_a_time(self, place: Place) -> None:
        await place.add("first")
        since = (await place.read(await place.add("second"))).expected_start_time
        listed = await place.server.list_items(pool=place.pool, expected_after=since)
        assert [item.name for item in listed] == ["second"]
        assert await place.server.list_items(pool=place.pool, expected_after=LATER) == []

    async def test_items_in_a_state_of_a_name_are_counted_apart(self, place: Place) -> None:
        await place.add("queued")
        back = State(
            type=StateType.SCHEDULED, name="AwaitingRetry", state_details={"scheduled_time": LATER.isoformat()}
        )
        await place.server.propose((await place.add("back")).id, back)
        count = place.server.count_items
        assert await count(pool=place.pool, state_types=[StateType.SCHEDULED], state_names=["AwaitingRetry"]) == 1
        assert await count(pool=place.pool, state_types=[StateType.PENDING], state_names=["AwaitingRetry"]) == 0

    async def test_waiting_items_of_a_work_queue_are_listed_in_order_also_while_the_pool_is_paused(
        self, place: Place
    ) -> None:
        for name in ("first", "second", "third"):
            await place.add(name)
        await place.add("urgent", priority=Priority.HIGH)
        await place.move(await place.add("claimed"), ItemState.CLAIMED)
        await place.server.update_pool(place.pool, is_paused=True)
        list_waiting = place.server.list_waiting
        assert [item.name for item in await list_waiting(place.pool, "default", limit=200)] == [
            "first",
            "second",
            "third",
        ]
        assert [item.name for item in await list_waiting(place.pool, "default", limit=2)] == ["first", "second"]
        assert [item.name for item in await list_waiting(place.pool, "high", limit=5)] == ["urgent"]
        assert await list_waiting(f"{place.pool}-none", "default", limit=5) == []

    async def test_page_over_200_is_refused(self, place: Place) -> None:
        with pytest.raises(SpecError, match="Invalid limit: must be less than or equal to 200"):
            await place.server.list_items(limit=201)

    async def test_deleted_item_is_gone_with_its_log_and_may_be_deleted_twice(self, place: Place) -> None:
        item = await place.add()
        await place.server.delete_item(item.id)
        await place.server.delete_item(item.id)
        assert await place.server.read_item(item.id) is None
        assert await place.poll() == []

    async def test_labels_are_added_to_an_item_at_any_time(self, place: Place) -> None:
        item = await place.add(labels={"owner": "me"})
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING)
        await place.server.label_item(item.id, {"owner": "you", "gpu": 3})
        assert (await place.read(item)).labels.items() >= {"owner": "you", "gpu": 3, "origin": "deployment"}.items()

    async def test_parameters_of_an_item_that_has_ended_are_replaced_whole(self, place: Place) -> None:
        item = await place.add(parameters={"lr": 0.1, "epochs": 3})
        await place.move(item, ItemState.CLAIMED, ItemState.FAILED)
        await place.server.replace_parameters(item.id, {"lr": "0.1 as text"})
        found = await place.read(item)
        assert (found.parameters, found.state_type) == ({"lr": "0.1 as text"}, StateType.FAILED)

    async def test_item_is_renamed_and_found_by_its_new_name(self, place: Place) -> None:
        item = await place.add()
        name = f"d2 of {item.id}"
        await place.server.rename_item(item.id, name)
        assert [found.id for found in await place.server.list_items(names=[name])] == [item.id]

    async def test_sweep_is_an_item_of_its_queue_and_a_list_tells_the_flow_of_each(self, place: Place) -> None:
        other = await place.deploy("sweeps", flow="launch-sweep")
        sweep = await place.server.create_item(other, draft())
        assert sweep is not None
        job = await place.add()
        server, pool = place.server, place.pool
        assert {found.id: found.flow for found in await server.list_items(pool=pool)} == {
            sweep.id: "launch-sweep",
            job.id: "launch",
        }
        assert await server.count_items(pool=pool) == 2
        assert [found.id for found in await server.list_items(pool=pool, flow="launch-sweep")] == [sweep.id]
        assert await server.count_items(pool=pool, flow="launch") == 1

    async def test_schedule_that_is_gone_is_deactivated_all_the_same(self, place: Place) -> None:
        item = await place.add()
        await place.server.deactivate_schedule(place.deployment_id, uuid4())
        assert (await place.read(item)).state_type is StateType.SCHEDULED

    async def test_marks_on_deleted_item_do_nothing(self, place: Place) -> None:
        await place.server.replace_parameters(uuid4(), {})
        await place.server.rename_item(uuid4(), "gone")
        await place.server.label_item(uuid4(), {"gpu": 3})
        await place.server.record_infrastructure(uuid4(), "container-1")

    # --- tags and inputs ---

    async def test_tags_of_an_item_are_replaced(self, place: Place) -> None:
        item = await place.add(tags=("mine",))
        await place.server.replace_tags(item.id, ["other"])
        read = await place.read(item)
        assert (read.tags, read.parameters) == (("other",), item.parameters)

    async def test_input_is_taken_once_and_kept_until_it_is_deleted(self, place: Place) -> None:
        item, text = await place.add(), 'ünï 漢字 "\n'
        assert await place.server.read_input(item.id, "a-key") is None
        assert await place.server.put_input(item.id, "a-key", text)
        assert not await place.server.put_input(item.id, "a-key", "another")
        assert await place.server.read_input(item.id, "a-key") == text
        await place.server.delete_input(item.id, "a-key")
        await place.server.delete_input(item.id, "a-key")
        assert await place.server.read_input(item.id, "a-key") is None
        assert await place.server.put_input(item.id, "a-key", "another")

    async def test_input_of_an_item_that_is_gone_is_refused(self, place: Place) -> None:
        item = await place.add()
        await place.server.delete_item(item.id)
        with pytest.raises(ItemGoneError, match="takes no input"):
            await place.server.put_input(item.id, "a-key", "text")
        assert await place.server.read_input(item.id, "a-key") is None

    # --- held ---

    async def test_item_that_was_made_paused_is_given_to_nobody_until_it_is_released(self, place: Place) -> None:
        held = await place.add("held", state=State(type=StateType.PAUSED, name="Held"))
        assert (held.state_type, held.state_name, held.start_time) == (StateType.PAUSED, "Held", None)
        assert await place.poll() == []
        released = State(type=StateType.SCHEDULED, name="Queued")
        assert (await place.server.propose(held.id, released)).accepted
        assert await place.poll() == ["held"]
