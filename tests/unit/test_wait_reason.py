"""Why an item waits, its place, and when it is expected to start."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest

from prefect_launch import alaunch_add
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.queues.agent_status import AgentInfo, AgentStatus, post_status
from prefect_launch.queues.wait_reason import (
    Past,
    QueueFacts,
    WaitCause,
    WaitFacts,
    WaitReason,
    explain_wait,
    seconds_until_start,
)
from prefect_launch.server.values import SCHEDULER_FLOW, Item, PriorityQueue, State
from prefect_launch.testing import InMemoryApi

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=timezone.utc)
ITEM = Item(id=uuid4(), name="train-1", state_type=StateType.SCHEDULED, work_queue_name="default")


def agent(name: str = "box", **facts: Any) -> AgentInfo:
    return AgentInfo(name=name, queues=("gpu",), online=True, **{"state": "running", "slots": 1, **facts})


def at_work(seconds: float, queue: str = "default") -> Item:
    state = State(type=StateType.RUNNING, name="Running", timestamp=NOW - timedelta(seconds=seconds))
    return Item(id=uuid4(), name="other", state=state, state_type=StateType.RUNNING, work_queue_name=queue)


def why(
    item: Item = ITEM, *, ahead_by_priority: int = 0, ahead_by_time: int = 0, past: Past | None = None, **queue: Any
) -> WaitReason:
    facts = QueueFacts(queue="gpu", now=NOW, **{"agents": (agent(),), **queue})
    waiting = ahead_by_priority + ahead_by_time + 1
    return explain_wait(
        WaitFacts(
            queue=facts,
            item=item,
            ahead_by_priority=ahead_by_priority,
            ahead_by_time=ahead_by_time,
            waiting=waiting,
            past=past,
        )
    )


def test_paused_queue_is_the_reason_before_any_other() -> None:
    told = why(is_paused=True, agents=(), limit=1, in_work=(at_work(1),), ahead_by_time=2)
    assert told.cause is WaitCause.PAUSED
    assert told.reason == "The queue 'gpu' is paused. 'prefect-launch queue resume gpu' resumes it."
    assert (told.position, told.waiting) == ("3rd of 3", 3)


def test_sweep_waits_for_a_place_of_its_own_kind_not_for_a_slot_of_a_job() -> None:
    sweep = ITEM.model_copy(update={"flow": SCHEDULER_FLOW, "work_queue_name": "sweeps"})
    busy = agent(in_work=1, max_schedulers=1)
    told = why(sweep, agents=(busy,), ahead_by_time=3, past=Past(seconds=(100.0,)))
    assert (told.cause, told.reason) == (WaitCause.TURN, "An agent takes it within seconds (box).")
    assert told.expected_start is None
    full = busy.model_copy(update={"schedulers": 1})
    told = why(sweep, agents=(full,))
    assert told.reason.startswith("The queue's agents run as many schedulers of sweeps as they may (box 1 of 1).")
    assert "within seconds" in why(sweep, agents=(full, agent("other", max_schedulers=None))).reason


def test_sweep_that_would_leave_no_place_for_a_trial_waits_for_the_limit() -> None:
    sweep = ITEM.model_copy(update={"flow": SCHEDULER_FLOW})
    running = at_work(1, "sweeps").model_copy(update={"flow": SCHEDULER_FLOW})
    told = why(sweep, limit=2, in_work=(running,))
    assert (told.cause, "1 of them are schedulers" in told.reason) == (WaitCause.LIMIT, True)
    assert why(sweep, limit=3, in_work=(running,)).cause is WaitCause.TURN


def test_paused_priority_is_told_by_its_work_queue() -> None:
    queues = (PriorityQueue(id=uuid4(), name="default", is_paused=True),)
    assert "work queue 'default' of the queue 'gpu' is paused" in why(priorities=queues).reason


def test_engine_that_no_agent_can_reach_is_the_reason() -> None:
    away = agent(problems={"local-container": "The Docker Engine does not answer."})
    told = why(agents=(away,), resource="local-container")
    assert (told.cause, "box: The Docker Engine does not answer." in told.reason) == (WaitCause.AWAY, True)
    assert why(agents=(away,), resource="local-process").cause is not WaitCause.AWAY
    assert why(agents=(away, agent("other")), resource="local-container").cause is not WaitCause.AWAY


def test_item_that_is_due_later_or_awaits_its_retry_says_when() -> None:
    due = NOW + timedelta(minutes=5)
    later = ITEM.model_copy(update={"next_scheduled_start_time": due})
    told = why(later, past=Past(seconds=(1.0,)))
    assert (told.cause, told.reason) == (WaitCause.NOT_DUE, "It is due at 2026-05-04 12:05:00 UTC.")
    assert (told.expected_start, told.basis) == (due, "")
    retried = later.model_copy(update={"state_name": "AwaitingRetry"})
    assert why(retried).reason == "It is run again at 2026-05-04 12:05:00 UTC, as its retry rule says."


def test_queue_without_an_agent_says_how_one_is_started() -> None:
    told = why(agents=())
    assert told.cause is WaitCause.NO_AGENT
    assert told.reason.startswith("No agent is online for the queue 'gpu'. 'prefect-launch agent start -q gpu'")


def test_queue_whose_agents_all_drain_says_so() -> None:
    told = why(agents=(agent("a", state="draining"), agent("b", state="draining")))
    assert told.cause is WaitCause.NO_AGENT
    assert told.reason.startswith("All agents of the queue 'gpu' are draining (a, b)")


def test_limit_of_the_queue_and_of_its_priority_are_told_apart() -> None:
    told = why(limit=2, in_work=(at_work(1), at_work(2)), ahead_by_priority=1)
    assert (told.cause, told.place) == (WaitCause.LIMIT, 2)
    assert told.reason == "The queue's limit is reached: 2 of 2 active. It is behind 1 of higher priority."
    queues = (PriorityQueue(id=uuid4(), name="default", concurrency_limit=1),)
    told = why(priorities=queues, in_work=(at_work(1), at_work(1, "high")))
    assert told.reason == "The limit of its priority (work queue 'default') is reached: 1 of 1 active."
    told = why(priorities=queues, in_work=(at_work(1, "high"),))
    assert told.cause is WaitCause.TURN


def test_item_behind_others_that_wait_for_devices_says_what_those_wait_for() -> None:
    reason = "It asks for 3 GPUs, and this agent has GPU 0."
    box = agent(slots=4, waits={str(uuid4()): reason, str(uuid4()): reason})
    told = why(agents=(box,), ahead_by_time=5000).reason
    assert told == (
        f"Its turn has not come. It is behind 5000 earlier ones. The first of them wait for devices: box: {reason}"
    )


def test_item_without_free_devices_says_what_each_agent_has() -> None:
    reason = "0 of 2 GPUs are free (GPUs 0,1 in use by other items); it asks for 1 GPU."
    box = agent(slots=4, in_work=2, waits={str(ITEM.id): reason}, devices="GPU 0 of 1a2b3c4d; GPU 1 of 5e6f7a8b")
    told = why(agents=(box, agent("full", slots=1, in_work=1)))
    assert told.cause is WaitCause.DEVICES
    assert told.reason == (
        f"No agent has the devices free that it asks for. box: {reason} full: 1 of its 1 slots are in use."
        " Now: box: GPU 0 of 1a2b3c4d; GPU 1 of 5e6f7a8b."
    )
    assert why(agents=(box, agent("free", slots=1))).cause is WaitCause.TURN


def test_item_that_no_agent_has_looked_at_yet_says_which_gpus_it_asks_for() -> None:
    def told(requested_gpus: str, *agents: AgentInfo) -> WaitReason:
        queue = QueueFacts(queue="gpu", now=NOW, agents=agents)
        return explain_wait(WaitFacts(queue=queue, item=ITEM, requested_gpus=requested_gpus, past=Past(seconds=(1.0,))))

    bare, rich = agent("bare", host="a"), agent("rich", host="b", devices="GPU 0 of 1a2b3c4d; GPU 1 free")
    assert told("2 GPUs", bare).cause is WaitCause.DEVICES
    assert told("2 GPUs", bare).reason == "It asks for 2 GPUs, and no agent of the queue 'gpu' has a GPU (bare)."
    assert told("2 GPUs", agent("bare", host="a", in_work=1)).expected_start is None
    assert told("2 GPUs", rich).cause is WaitCause.TURN
    assert "an agent with a free slot and 2 GPUs takes it within" in told("2 GPUs", rich).reason
    assert "(rich: GPU 0 of 1a2b3c4d; GPU 1 free)" in told("2 GPUs", rich).reason
    assert told("", bare).cause is WaitCause.TURN
    silent = agent("silent")  # it has not told yet what it has
    assert told("2 GPUs", silent).cause is WaitCause.TURN


def test_busy_slots_and_who_comes_first_are_reported() -> None:
    told = why(agents=(agent("a", in_work=1), agent("b", slots=2, in_work=2)), ahead_by_priority=3, ahead_by_time=1)
    assert told.cause is WaitCause.TURN
    assert told.reason == (
        "All 3 slots of the queue's agents are busy (a 1 of 1, b 2 of 2)."
        " It is behind 3 of higher priority and 1 earlier one."
    )
    assert why(ahead_by_time=5).reason == "Its turn has not come. It is behind 5 earlier ones."
    assert why().reason == "It is the next: an agent with a free slot takes it within seconds (box)."


@pytest.mark.parametrize(
    ("facts", "seconds"),
    [
        ({"agents": (agent(in_work=1),), "in_work": (at_work(40),)}, 60),
        ({"agents": (agent(in_work=1),), "in_work": (at_work(40),), "ahead_by_time": 1}, 160),
        ({"agents": (agent(slots=8, in_work=1),), "limit": 1, "in_work": (at_work(40),)}, 60),
        ({"agents": (agent(in_work=1),)}, 50),  # at work for another queue
        ({"agents": (agent(slots=None, in_work=3),), "in_work": (at_work(40),) * 3, "ahead_by_time": 9}, 0),
        ({"agents": (agent(slots=8, in_work=1, waits={str(ITEM.id): "…"}),), "in_work": (at_work(40),)}, 60),
    ],
)
def test_start_is_expected_from_past_runs(facts: dict[str, Any], seconds: float) -> None:
    told = why(past=Past(seconds=(100.0, 100.0), job="train"), **facts)
    assert told.expected_start == NOW + timedelta(seconds=seconds)
    assert told.basis == "2 past runs of train"


@pytest.mark.parametrize(
    "facts",
    [
        {"agents": ()},
        {"is_paused": True},
        {"agents": (agent(waits={str(ITEM.id): "It asks for 4 GPUs, and this agent has no GPU."}),)},
    ],
)
def test_no_start_is_expected_where_somebody_must_act_first(facts: dict[str, Any]) -> None:
    assert why(past=Past(seconds=(100.0,)), **facts).expected_start is None
    assert why(in_work=(at_work(1),)).expected_start is None  # nothing is known of past runs


def test_whole_text_has_the_reason_the_place_and_the_start() -> None:
    told = why(
        agents=(agent(in_work=1),), in_work=(at_work(40),), past=Past(seconds=(100.0,), job="train"), ahead_by_time=11
    )
    assert str(told) == (
        "The one slot of the queue's agent is busy (box 1 of 1). It is behind 11 earlier ones."
        " It is the 12th of 12 in the queue."
        " Expected to start at about 2026-05-04 12:19 UTC, from 1 past run of train."
    )


@pytest.mark.parametrize(
    ("place", "word"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (11, "11th"), (112, "112th"), (21, "21st")]
)
def test_places_are_reported_as_ordinal_numbers(place: int, word: str) -> None:
    assert why(ahead_by_time=place - 1).position == f"{word} of {place}"


async def test_handle_of_an_item_tells_its_place_among_priorities_and_earlier_ones(job_api: InMemoryApi) -> None:
    async def add(priority: int) -> Any:
        return await alaunch_add(docker_image="busybox:1", queue_name="gpu", priority=priority)

    low, first, second, urgent = [await add(priority) for priority in (4, 3, 3, 1)]
    told = {run.id: await run.awhy_waiting() for run in (low, first, second, urgent)}
    assert [told[run.id].position for run in (urgent, first, second, low)] == [
        "1st of 4",
        "2nd of 4",
        "3rd of 4",
        "4th of 4",
    ]
    assert told[low.id].cause is WaitCause.NO_AGENT
    assert told[low.id].reason.startswith("No agent is online")
    await job_api.server.beat_worker("gpu", "box", 15)
    await post_status(
        job_api.server, AgentStatus(name="box", host="h", queues=("gpu",), slots=2, state="running", in_work=2)
    )
    told_low = await low.awhy_waiting()
    assert told_low.reason == (
        "All 2 slots of the queue's agents are busy (box 2 of 2). It is behind 3 of higher priority."
    )


async def test_handle_expects_the_start_from_past_runs_of_its_job_then_of_its_queue(job_api: InMemoryApi) -> None:
    async def add(**source: Any) -> Any:
        run = await alaunch_add(queue_name="cpu" if "job" in source else "gpu", **source)
        return run, UUID(run.id)

    config = {"overrides": {"run_config": {"lr": 0.1}}}
    done, done_id = await add(job="train", config=config)
    for state in (ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED):
        await job_api.server.propose(done_id, State.of(state))
    waits, _ = await add(job="train", config=config)
    await job_api.server.beat_worker("cpu", "box", 15)
    told = await waits.awhy_waiting()
    assert told.basis == "1 past run of train"
    assert told.expected_start is not None
    assert await done.awhy_waiting() is None


async def test_item_queued_where_nothing_starts_says_so_in_its_state(job_api: InMemoryApi) -> None:
    alone = await alaunch_add(docker_image="busybox:1", queue_name="gpu")
    assert alone.message.startswith("No agent was online for the queue at ")
    assert alone.message.endswith(" UTC: 'prefect-launch agent start -q gpu' starts one.")
    await job_api.server.beat_worker("cpu", "box", 15)
    await job_api.server.update_pool("cpu", is_paused=True)
    paused = await alaunch_add(job="train", config={"overrides": {"run_config": {"lr": 0.1}}}, queue_name="cpu")
    assert paused.message.startswith("The queue was paused at ")


async def test_item_queued_where_an_agent_is_online_has_no_message(job_api: InMemoryApi) -> None:
    await job_api.server.beat_worker("gpu", "box", 15)
    assert (await alaunch_add(docker_image="busybox:1", queue_name="gpu")).message == ""


def test_author_who_has_nothing_in_work_is_told_of_turns_and_not_of_the_items_before_it() -> None:
    told = why(ahead_by_time=194, per_author=2, past=Past(seconds=(100.0,)))
    assert told.cause is WaitCause.TURN
    assert told.reason == (
        "Its turn has not come. Authors take turns. Items without an author have 0 of 2 in work on this queue."
    )
    assert (told.position, told.expected_start) == ("", None)

    full = why(ahead_by_time=194, per_author=2, limit=1, in_work=(at_work(1),))
    assert "behind" not in full.reason
    assert full.reason.startswith("The queue's limit is reached: 1 of 1 active. Authors take turns. ")


@pytest.mark.parametrize(
    ("ahead", "running", "slots", "seconds"),
    [
        (0, [], 1, 0.0),  # a free slot
        (0, [40.0], 1, 60.0),  # behind what runs
        (0, [40.0], 2, 0.0),
        (2, [40.0], 1, 260.0),  # two whole runs more
        (3, [40.0, 90.0], 2, 160.0),  # slots end at 10 and 60; the three before it take them at 10, 60 and 110
        (0, [10.0, 50.0, 90.0], 2, 50.0),  # the limit was lowered: the first end frees no slot
        (7, [1.0], None, 0.0),  # no limit
        (0, [500.0], 1, 10.0),  # over its time: soon
    ],
)
def test_item_starts_when_those_before_it_have_had_their_turns(
    ahead: int, running: list[float], slots: int | None, seconds: float
) -> None:
    assert seconds_until_start(ahead=ahead, running=running, slots=slots, typical=100.0) == pytest.approx(seconds)


def test_past_runs_say_how_many_they_are_and_of_what() -> None:
    assert Past(seconds=(1.0, 9.0, 2.0), job="train").describe() == "3 past runs of train"
    assert Past(seconds=(1.0, 9.0, 2.0)).typical_seconds == 2.0
    assert Past(seconds=(1.0,)).describe() == "1 past run of the queue"
