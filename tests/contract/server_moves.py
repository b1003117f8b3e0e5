"""The contract's rules for how an item goes from state to state, the trap of the claim among them."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import anyio
import pytest

from prefect_launch.agent.item.ownership import holder_of
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import InternalError
from prefect_launch.queues.claim import claim
from prefect_launch.queues.presence import Holder
from prefect_launch.server.values import Answer, State, Verdict
from tests.contract.server_place import Place, soon
from tests.support.bench import holder_called

CLAIM = State.of(ItemState.CLAIMED)
ENDS = (ItemState.COMPLETED, ItemState.FAILED, ItemState.CRASHED)
ON_THE_WAY = (ItemState.BUILDING, ItemState.PULLING, ItemState.SUBMITTED)


def paused(name: str = "Paused", *, data: Any = None, **details: Any) -> State:
    """Return Prefect's state of a paused or suspended run."""
    return State(type=StateType.PAUSED, name=name, data=data, state_details=details)


class MoveContract:
    """Every proposal's answer."""

    # --- the claim ---

    async def test_claim_of_waiting_item_is_accepted_and_names_its_state(self, place: Place) -> None:
        item = await place.add()
        verdict = await place.server.propose(item.id, State.of(ItemState.CLAIMED, "claimed by box-1"))
        assert verdict.status is Answer.ACCEPT
        read = await place.read(item)
        assert (read.state_type, read.state_name, read.message) == (StateType.PENDING, "Pending", "claimed by box-1")
        assert read.next_scheduled_start_time is None

    async def test_second_claim_is_aborted_and_shows_the_first(self, place: Place) -> None:
        item = await place.add()
        await place.server.propose(item.id, State.of(ItemState.CLAIMED, "claimed by box-1"))
        verdict = await place.server.propose(item.id, State.of(ItemState.CLAIMED, "claimed by box-2"))
        assert verdict.status is Answer.ABORT
        assert verdict.reason == "This run is in a PENDING state and cannot transition to a PENDING state."
        assert verdict.state is not None
        assert verdict.state.message == "claimed by box-1"

    async def test_item_that_waits_in_a_cluster_keeps_its_first_reason_and_its_claim(self, place: Place) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED)
        assert (await place.server.propose(item.id, State.of(ItemState.SUBMITTED, "no node is free"))).accepted
        again = await place.server.propose(item.id, State.of(ItemState.SUBMITTED, "the image cannot be pulled"))
        assert again.status is Answer.ABORT
        assert (await place.server.propose(item.id, State.of(ItemState.CLAIMED))).status is Answer.ABORT
        read = await place.read(item)
        assert (read.state_name, read.message, read.run_count) == ("Submitted", "no node is free", 0)
        assert (await place.move(item, ItemState.RUNNING)).accepted
        assert (await place.read(item)).run_count == 1

    async def test_holder_stands_in_the_data_of_the_claim_and_outlives_the_later_phases(self, place: Place) -> None:
        item, holder, token = await place.add(), holder_called("box"), uuid4()
        await place.server.propose(item.id, holder.claimed_state(), transition_id=token)
        late = await place.server.propose(item.id, holder_called("late").claimed_state())
        claimed = (await place.read(item)).state
        assert claimed is not None
        assert late.state is not None
        assert late.status is Answer.ABORT
        assert Holder.of(claimed) == Holder.of(late.state) == holder
        assert claimed.transition_id == str(token)
        for phase in (*ON_THE_WAY, ItemState.RUNNING, ItemState.COMPLETED):
            await place.move(item, phase)
            assert holder_of(await place.server.read_states(item.id)) == Holder.of(claimed)
        assert await place.server.list_artifacts(item.id) == []

    async def test_item_claimed_by_many_at_once_has_one_winner(self, place: Place) -> None:
        item = await place.add()
        verdicts: list[Verdict] = []

        async def claim() -> None:
            verdicts.append(await place.server.propose(item.id, CLAIM))

        async with anyio.create_task_group() as agents:
            for _ in range(8):
                agents.start_soon(claim)
        assert sum(verdict.accepted for verdict in verdicts) == 1

    async def test_claim_has_the_time_of_the_state_that_it_was_made_from(self, place: Place) -> None:
        item = await place.add()
        first = (await place.read(item)).next_scheduled_start_time
        assert item.created is not None
        assert first is not None
        assert first <= item.created
        made = await place.server.propose(item.id, CLAIM)
        assert (made.accepted, made.state and made.state.scheduled_time) == (True, first)
        due = first + timedelta(microseconds=1)
        later = State.of(ItemState.QUEUED).model_copy(update={"state_details": {"scheduled_time": due.isoformat()}})
        await place.server.propose(item.id, later)
        made = await place.server.propose(item.id, CLAIM)
        assert (made.accepted, made.state and made.state.scheduled_time) == (True, due)

    @pytest.mark.parametrize("end", [ItemState.COMPLETED, ItemState.FAILED, ItemState.CRASHED])
    @pytest.mark.parametrize("before", [(), (ItemState.RUNNING,)])
    async def test_claim_of_an_item_that_has_ended_has_no_time(
        self, place: Place, before: tuple[ItemState, ...], end: ItemState
    ) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, *before, end)
        made = await place.server.propose(item.id, CLAIM)
        assert (made.accepted, made.state and made.state.scheduled_time) == (True, None)

    async def test_item_is_known_from_its_poll_and_its_claim_as_it_would_be_read(self, place: Place) -> None:
        await place.add(labels={"owner": "me"})
        (polled,) = await place.server.poll(place.pool, limit=1, before=soon())
        claimed = await claim(place.server, polled, holder=holder_called("box"))
        assert claimed == await place.read(polled)

    @pytest.mark.parametrize("moved", [(), (ItemState.RUNNING,)])
    async def test_item_that_is_put_back_for_a_retry_waits_for_its_time(
        self, place: Place, moved: tuple[ItemState, ...]
    ) -> None:
        item = await place.add()
        for state in (ItemState.CLAIMED, *moved):
            await place.server.propose(item.id, State.of(state))
        due = datetime.now(timezone.utc) + timedelta(seconds=600)
        wanted = State.of(ItemState.AWAITING_RETRY, "again").model_copy(
            update={"state_details": {"scheduled_time": due.isoformat()}}
        )
        assert (await place.server.propose(item.id, wanted)).accepted
        read = await place.read(item)
        assert (read.state_name, read.run_count) == ("AwaitingRetry", len(moved))
        assert read.next_scheduled_start_time == due

    async def test_own_claim_sent_twice_is_told_apart_by_its_transition_id(self, place: Place) -> None:
        item, transition = await place.add(), uuid4()
        await place.server.propose(item.id, CLAIM, transition_id=transition)
        again = await place.server.propose(item.id, CLAIM, transition_id=transition)
        assert again.status is Answer.REJECT
        assert again.reason == "This run has already made this state transition."
        assert again.state is not None
        assert again.state.state_details["transition_id"] == str(transition)

    @pytest.mark.parametrize("state", ON_THE_WAY)
    async def test_claimed_item_goes_on_under_another_name_and_stays_claimed(
        self, place: Place, state: ItemState
    ) -> None:
        item = await place.add()
        assert (await place.move(item, ItemState.CLAIMED, state)).accepted
        assert (await place.read(item)).state_name == state.label
        assert (await place.move(item, ItemState.CLAIMED)).status is Answer.ABORT
        assert (await place.move(item, state)).status is Answer.ABORT

    @pytest.mark.parametrize("end", ENDS)
    async def test_ended_item_may_be_claimed_again_which_is_the_trap(self, place: Place, end: ItemState) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING, end)
        assert (await place.move(item, ItemState.CLAIMED)).accepted
        assert (await place.read(item)).run_count == 1  # what tells the claimer that it was late

    @pytest.mark.parametrize("state", [ItemState.RUNNING, ItemState.CANCELLED])
    async def test_running_or_cancelled_item_cannot_be_claimed(self, place: Place, state: ItemState) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, state)
        verdict = await place.move(item, ItemState.CLAIMED)
        assert verdict.status is Answer.ABORT
        assert verdict.reason == f"This run is in a {state.type.value} state and cannot transition to a PENDING state."

    async def test_claimed_item_can_be_given_back(self, place: Place) -> None:
        item = await place.add()
        assert (await place.move(item, ItemState.CLAIMED, ItemState.QUEUED)).accepted
        assert await place.poll() == ["item"]

    # --- running and ending ---

    async def test_each_entry_to_running_counts_as_an_attempt(self, place: Place) -> None:
        item = await place.add()
        counts = []
        for _ in range(2):
            await place.move(item, ItemState.CLAIMED, ItemState.RUNNING)
            counts.append((await place.read(item)).run_count)
            await place.move(item, ItemState.FAILED, ItemState.QUEUED)
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.RUNNING)
        assert [*counts, (await place.read(item)).run_count] == [1, 2, 4]

    async def test_ended_item_has_its_times_and_its_states_in_order(self, place: Place) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED)
        read = await place.read(item)
        assert read.is_terminal
        assert read.start_time is not None
        assert read.end_time is not None
        assert read.end_time > read.start_time
        assert read.total_run_time == pytest.approx((read.end_time - read.start_time).total_seconds(), abs=1e-3)
        states = await place.server.read_states(item.id)
        assert [state.name for state in states] == ["Queued", "Pending", "Running", "Completed"]

    async def test_item_that_ends_before_it_runs_starts_and_ends_at_once(self, place: Place) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.FAILED)
        read = await place.read(item)
        assert read.start_time == read.end_time is not None
        assert read.run_count == 0

    @pytest.mark.parametrize("state", [ItemState.CRASHED, ItemState.CANCELLING])
    async def test_ended_item_neither_crashes_nor_stops(self, place: Place, state: ItemState) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED)
        verdict = await place.move(item, state)
        assert verdict.status is Answer.ABORT
        assert verdict.reason == "Run is already in terminal state COMPLETED."

    @pytest.mark.parametrize("end", [*ENDS, ItemState.CANCELLED])
    async def test_ended_item_can_be_queued_again_and_has_no_end_time_then(self, place: Place, end: ItemState) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING, end)
        assert (await place.move(item, ItemState.QUEUED)).accepted
        assert (await place.read(item)).end_time is None
        assert await place.poll() == ["item"]

    async def test_ended_item_takes_another_end(self, place: Place) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED)
        assert (await place.move(item, ItemState.FAILED)).accepted

    async def test_completed_item_with_a_result_keeps_it(self, place: Place) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING)
        result = State.of(ItemState.COMPLETED).model_copy(update={"data": {"type": "launch", "exit_code": 0}})
        assert (await place.server.propose(item.id, result)).accepted
        claim, again = await place.move(item, ItemState.CLAIMED), await place.move(item, ItemState.COMPLETED)
        assert (claim.status, claim.reason) == (Answer.REJECT, "Run is already COMPLETED.")
        assert (again.status, (await place.read(item)).state_name) == (Answer.REJECT, "Completed")
        state = (await place.read(item)).state
        assert state is not None
        assert state.data == {"type": "launch", "exit_code": 0}

    # --- stopping ---

    async def test_waiting_item_asked_to_stop_is_cancelled_at_once(self, place: Place) -> None:
        item = await place.add()
        verdict = await place.move(item, ItemState.CANCELLING)
        assert verdict.status is Answer.REJECT
        assert verdict.reason == "Scheduled flow run has no infrastructure to terminate."
        assert verdict.state is not None
        assert (verdict.state.type, verdict.state.message) == (StateType.CANCELLED, None)
        assert (await place.read(item)).is_terminal
        # Who has stopped it says so afterwards.
        said = await place.server.propose(item.id, State.of(ItemState.CANCELLED, "Cancelled by somebody."))
        assert (said.status, (await place.read(item)).message) == (Answer.ACCEPT, "Cancelled by somebody.")

    @pytest.mark.parametrize("state", [ItemState.CLAIMED, ItemState.RUNNING])
    async def test_item_in_work_asked_to_stop_is_stopping(self, place: Place, state: ItemState) -> None:
        item = await place.add()
        assert (await place.move(item, ItemState.CLAIMED, *([state] * (state is ItemState.RUNNING)))).accepted
        assert (await place.move(item, ItemState.CANCELLING)).accepted

    async def test_waiting_item_with_infrastructure_asked_to_stop_is_stopping(self, place: Place) -> None:
        item = await place.add()
        await place.server.record_infrastructure(item.id, "container-1")
        assert (await place.move(item, ItemState.CANCELLING)).accepted
        assert (await place.read(item)).infrastructure_pid == "container-1"

    @pytest.mark.parametrize(
        "state", [ItemState.RUNNING, *ENDS, ItemState.QUEUED, ItemState.CLAIMED, ItemState.CANCELLING]
    )
    async def test_stopping_item_goes_nowhere_but_to_cancelled(self, place: Place, state: ItemState) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.CANCELLING)
        verdict = await place.move(item, state)
        assert verdict.status is Answer.REJECT
        assert verdict.reason == "Cannot transition flows that are cancelling to a state other than Cancelled."
        assert (await place.move(item, ItemState.CANCELLED)).accepted

    # --- time, force, and what is not there ---

    async def test_item_queued_for_later_is_not_due_and_may_not_run_yet(self, place: Place) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.FAILED)
        later = datetime.now(timezone.utc) + timedelta(hours=1)
        queued = State.of(ItemState.QUEUED).model_copy(update={"state_details": {"scheduled_time": later.isoformat()}})
        assert (await place.server.propose(item.id, queued)).accepted
        assert (await place.read(item)).next_scheduled_start_time == later
        assert await place.poll() == []
        early = await place.move(item, ItemState.CLAIMED, ItemState.SUBMITTED, ItemState.RUNNING)
        assert early.status is Answer.WAIT
        assert early.details["delay_seconds"] == pytest.approx(3600, abs=30)
        assert (await place.read(item)).state_name == "Submitted"

    async def test_item_that_was_claimed_before_its_time_by_a_clock_that_is_ahead_may_run(self, place: Place) -> None:
        item = await place.add()
        await place.server.propose(item.id, CLAIM)
        due = datetime.now(timezone.utc) + timedelta(seconds=600)
        later = State.of(ItemState.AWAITING_RETRY).model_copy(
            update={"state_details": {"scheduled_time": due.isoformat()}}
        )
        await place.server.propose(item.id, later)
        (polled,) = await place.server.poll(place.pool, limit=1, before=due)
        claimed = await claim(place.server, polled, holder=holder_called("box"))
        assert claimed is not None
        assert (await place.server.propose(item.id, State.of(ItemState.RUNNING))).status is Answer.ACCEPT

    # --- pausing ---

    async def test_running_item_is_paused_with_data_and_runs_on_without_the_time_of_the_pause(
        self, place: Place
    ) -> None:
        item = await place.add()
        await place.move(item, ItemState.CLAIMED, ItemState.RUNNING)
        verdict = await place.server.propose(item.id, paused(data={"now": True}))
        assert verdict.accepted
        read = await place.read(item)
        assert read.state is not None
        assert (read.state_type, read.state_name, read.is_terminal) == (StateType.PAUSED, "Paused", False)
        assert isinstance(read.state.data, dict)
        assert read.state.data["now"] is True
        assert read.total_run_time > 0
        assert await place.poll() == []
        assert (await place.move(item, ItemState.RUNNING)).accepted
        again = await place.read(item)
        assert (again.run_count, again.total_run_time, again.start_time) == (2, read.total_run_time, read.start_time)

    @pytest.mark.parametrize("moved", [(), (ItemState.CLAIMED,), (ItemState.CLAIMED, ItemState.RUNNING)])
    async def test_only_a_running_item_is_paused_unless_by_force(
        self, place: Place, moved: tuple[ItemState, ...]
    ) -> None:
        item = await place.add()
        for state in moved:
            await place.move(item, state)
        if ItemState.RUNNING in moved:
            await place.server.propose(item.id, paused())
        verdict = await place.server.propose(item.id, paused())
        assert (verdict.status, verdict.reason) == (
            Answer.REJECT,
            "Cannot pause flows that are not currently running.",
        )
        assert (await place.server.propose(item.id, paused(), force=True)).accepted
        assert (await place.read(item)).state_type is StateType.PAUSED
        assert await place.poll() == []

    @pytest.mark.parametrize("state", [ItemState.CLAIMED, ItemState.SUBMITTED])
    async def test_paused_item_cannot_be_claimed(self, place: Place, state: ItemState) -> None:
        item = await place.add()
        await place.server.propose(item.id, paused(), force=True)
        assert (await place.move(item, state)).status is Answer.REJECT
        assert (await place.read(item)).state_type is StateType.PAUSED

    @pytest.mark.parametrize("reschedule", [True, False])
    async def test_paused_item_goes_back_into_its_queue_or_ends(self, place: Place, reschedule: bool) -> None:
        waiting, ended = await place.add(), await place.add()
        for item in (waiting, ended):
            await place.move(item, ItemState.CLAIMED, ItemState.RUNNING)
            pause = paused("Suspended", pause_reschedule=reschedule)
            assert (await place.server.propose(item.id, pause)).accepted
        assert (await place.move(waiting, ItemState.QUEUED)).accepted
        assert await place.poll() == ["item"]
        assert (await place.move(ended, ItemState.COMPLETED)).accepted
        assert (await place.server.propose(ended.id, paused())).status is Answer.ABORT

    async def test_paused_item_is_asked_to_stop_and_a_suspended_one_is_cancelled_at_once(self, place: Place) -> None:
        blocked, suspended = await place.add(), await place.add()
        for item, pause in ((blocked, paused()), (suspended, paused("Suspended", pause_reschedule=True))):
            await place.move(item, ItemState.CLAIMED, ItemState.RUNNING)
            await place.server.propose(item.id, pause)
        assert (await place.move(blocked, ItemState.CANCELLING)).accepted
        verdict = await place.move(suspended, ItemState.CANCELLING)
        assert verdict.reason == "Suspended flow run has no infrastructure to terminate."
        read = await place.read(suspended)
        assert (read.state_type, read.message) == (StateType.CANCELLED, "")

    async def test_item_whose_pause_has_timed_out_fails_when_it_is_resumed_and_can_be_asked_to_stop(
        self, place: Place
    ) -> None:
        past = (datetime.now(timezone.utc) - timedelta(seconds=60)).isoformat()
        failed, stopped = await place.add(), await place.add()
        for item in (failed, stopped):
            await place.move(item, ItemState.CLAIMED, ItemState.RUNNING)
            await place.server.propose(item.id, paused(pause_timeout=past))
        verdict = await place.move(failed, ItemState.RUNNING)
        assert verdict.status is Answer.REJECT
        read = await place.read(failed)
        assert (read.state_type, read.message) == (StateType.FAILED, "The flow was running and never resumed.")
        assert (await place.move(stopped, ItemState.CANCELLING)).accepted

    async def test_force_overrides_every_rule_but_that_nothing_is_stopped(self, place: Place) -> None:
        item = await place.add()
        assert (await place.move(item, ItemState.CLAIMED, ItemState.CLAIMED, force=True)).accepted
        await place.move(item, ItemState.RUNNING, ItemState.CANCELLING)
        assert (await place.move(item, ItemState.COMPLETED, force=True)).accepted
        assert (await place.move(item, ItemState.CRASHED, force=True)).accepted
        waiting = await place.add()
        assert (await place.move(waiting, ItemState.CANCELLING, force=True)).status is Answer.REJECT
        assert (await place.read(waiting)).state_type is StateType.CANCELLED

    async def test_move_of_deleted_item_is_refused_plainly(self, place: Place) -> None:
        item = await place.add()
        await place.server.delete_item(item.id)
        with pytest.raises(InternalError, match=str(item.id)):
            await place.move(item, ItemState.CLAIMED)
        assert await place.server.read_states(item.id) == []
