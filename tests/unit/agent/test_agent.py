"""`LaunchAgent`, member by member: what the reference's callers find."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.item.ownership import hold_agent_name
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.errors import AgentConfigError, LaunchError, NotFoundError, ServerUnavailableError
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, RESOURCE, Bench


def test_agent_that_was_made_last_gives_its_name(bench: Bench) -> None:
    bench.agent("box-7")
    assert LaunchAgent.initialized()
    assert LaunchAgent.name() == "box-7"


def test_agent_takes_plain_settings_and_refuses_wrong_ones(bench: Bench) -> None:
    assert LaunchAgent(bench.api, {"queues": ["gpu"], "max_jobs": "3"}).config.max_jobs == 3
    with pytest.raises(AgentConfigError, match="max_jobs"):
        LaunchAgent(bench.api, {"max_job": 1})


async def test_agent_without_a_queue_says_how_to_give_one(bench: Bench) -> None:
    with pytest.raises(AgentConfigError, match="please specify a queue or a list of queues"):
        await bench.agent(queues=[]).loop()


async def test_agent_of_an_unknown_queue_names_the_nearest(bench: Bench) -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'gpu'"):
        await bench.agent(queues=["gpuu"]).loop()


async def test_member_that_needs_a_connection_says_so(bench: Bench) -> None:
    with pytest.raises(LaunchError, match="not connected"):
        await bench.agent().pop_from_queue(QUEUE)


async def test_pop_gives_the_claimed_item_or_none(bench: Bench) -> None:
    (item,) = await bench.add()
    async with bench.agent().connected() as agent:
        popped = await agent.pop_from_queue(QUEUE)
        assert popped is not None
        assert (popped.id, popped.state_type) == (item.id, StateType.PENDING)
        assert await agent.pop_from_queue(QUEUE) is None


async def test_pop_raises_when_the_server_does_not_answer(bench: Bench) -> None:
    async with bench.agent().connected() as agent:
        bench.server.down()
        with pytest.raises(ServerUnavailableError):
            await agent.pop_from_queue(QUEUE)


async def test_pop_of_a_queue_that_is_not_the_agents_is_refused(bench: Bench) -> None:
    async with bench.agent().connected() as agent:
        with pytest.raises(NotFoundError, match="Known: gpu"):
            await agent.pop_from_queue("other")


async def test_get_job_and_queue_takes_turns(bench: Bench) -> None:
    await asyncio.to_thread(bench.api.create_run_queue, "second", RESOURCE)
    await bench.add(2)
    await bench.add(2, queue="second")
    async with bench.agent(queues=[QUEUE, "second"]).connected() as agent:
        found = [await agent.get_job_and_queue() for _ in range(5)]
    assert [one[1] for one in found if one] == [QUEUE, "second", QUEUE, "second"]


async def test_run_job_returns_at_once_and_counts_what_runs(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    async with bench.agent(max_jobs=3).connected() as agent:
        for item in await bench.add(2):
            popped = await agent.pop_from_queue(QUEUE)
            assert popped is not None
            await agent.run_job(popped, QUEUE, None)
            await bench.until(item, StateType.RUNNING)
        assert (agent.num_running_jobs, agent.num_running_schedulers, agent.free_slots) == (2, 0, 1)
        assert len(agent.thread_ids) == 2
        await agent.running_items.leave()


async def test_schedulers_are_counted_apart(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    await bench.add_scheduler()
    await bench.add_scheduler()
    async with bench.agent(max_jobs=1).connected() as agent:
        popped = await agent.pop_from_queue(QUEUE)
        assert popped is not None
        await agent.run_job(popped, QUEUE, None)
        assert (agent.num_running_jobs, agent.num_running_schedulers) == (0, 1)
        assert await agent.pop_from_queue(QUEUE) is None  # one scheduler is the most
        await agent.running_items.leave()


def test_status_line_is_the_references(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    agent = bench.agent("box", queues=["a", "b"], max_jobs=2)
    with caplog.at_level(logging.INFO, "prefect_launch.agent"):
        agent.print_status()
    assert caplog.messages == ["agent box polling on queues a,b, running 0 out of a maximum of 2 jobs"]


def test_status_line_of_a_full_agent_polls_on_nothing(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    agent = bench.agent("box", max_jobs=0)
    with caplog.at_level(logging.INFO, "prefect_launch.agent"):
        agent.print_status()
    assert caplog.messages == ["agent box running 0 out of a maximum of 0 jobs"]


async def test_agent_is_on_its_queues_list_until_it_is_killed(bench: Bench) -> None:
    async with bench.agent("box").connected() as agent:
        await bench.server.beat_worker(QUEUE, "box", 15)
        await agent.update_status("RUNNING")
        assert agent.status == "RUNNING"
        assert [worker.name for worker in await bench.server.list_workers(QUEUE)] == ["box"]
        await agent.update_status("KILLED")
        assert await bench.server.list_workers(QUEUE) == []


@pytest.mark.parametrize("phase", ["agent", "build", "run"])
async def test_failed_item_says_why_and_in_which_phase(bench: Bench, phase: str) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED)
    async with bench.agent().connected() as agent:
        await agent.fail_run_queue_item(str(item.id), "no good", phase)
    found = await bench.read(item.id)
    assert (found.state_name, found.message) == ("Failed", f"[{phase}] no good")


async def test_failed_item_keeps_the_files_that_are_given(bench: Bench, tmp_path: Path) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED)
    (tmp_path / "error.log").write_text("why")
    async with bench.agent().connected() as agent:
        await agent.fail_run_queue_item(str(item.id), "no good", "agent", [tmp_path / "error.log"])
        assert await agent.context.session.jobs.read_output(str(item.id), 1, "error.log") == b"why"


async def test_item_that_has_ended_is_not_failed_again(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED)
    async with bench.agent().connected() as agent:
        await agent.fail_run_queue_item(str(item.id), "no good", "agent")
        await agent.fail_run_queue_item(str(uuid4()), "no such item", "agent")
    assert (await bench.read(item.id)).state_name == "Completed"


async def test_item_that_is_asked_to_stop_and_failed_is_cancelled(bench: Bench) -> None:
    (item,) = await bench.add()
    await bench.move(item, ItemState.CLAIMED, ItemState.CANCELLING)
    async with bench.agent().connected() as agent:
        await agent.fail_run_queue_item(str(item.id), "no good", "agent")
    assert (await bench.read(item.id)).state_name == "Cancelled"


async def test_finished_thread_frees_its_slot(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    await bench.add()
    async with bench.agent().connected() as agent:
        popped = await agent.pop_from_queue(QUEUE)
        assert popped is not None
        await agent.run_job(popped, QUEUE, None)
        assert agent.free_slots == 0
        await agent.finish_thread_id(str(popped.id))
        assert (agent.thread_ids, agent.free_slots) == ([], 1)
        await agent.running_items.leave()


async def test_item_that_the_agent_itself_fails_over_ends_as_failed_with_an_error_log(
    bench: Bench, tmp_path: Path
) -> None:
    bench.plays(Script(seconds=60))
    await bench.add()
    async with bench.agent().connected() as agent:
        popped = await agent.pop_from_queue(QUEUE)
        assert popped is not None
        await agent.run_job(popped, QUEUE, tmp_path)
        await bench.until(popped, StateType.RUNNING)
        await agent.finish_thread_id(str(popped.id), ZeroDivisionError("a bug"))
        await agent.running_items.leave()
    found = await bench.read(popped.id)
    assert (found.state_name, found.message) == ("Failed", "[agent] The agent failed over it: ZeroDivisionError: a bug")
    assert (tmp_path / "error.log").read_text() == "ZeroDivisionError: a bug\n"


# --- sweeps ---


async def test_item_of_a_sweep_that_has_ended_is_refused(bench: Bench) -> None:
    (sweep,) = await bench.add()
    await bench.move(sweep, ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED)
    async with bench.agent().connected() as agent:
        with pytest.raises(LaunchError, match="has ended already"):
            await agent.check_sweep_state({"sweep_id": str(sweep.id)}, bench.api)


@pytest.mark.parametrize("sweep", [None, "a-label"])
async def test_item_of_no_sweep_is_not_refused(bench: Bench, sweep: str | None) -> None:
    async with bench.agent().connected() as agent:
        await agent.check_sweep_state({"sweep_id": sweep}, bench.api)


async def test_item_whose_sweep_is_not_on_the_server_is_refused(bench: Bench) -> None:
    async with bench.agent().connected() as agent:
        with pytest.raises(LaunchError, match="not on this Prefect server: it was deleted, or never there"):
            await agent.check_sweep_state({"sweep_id": "8c1f1f0e-6c0b-4a46-9a55-0f4a5d2f3c11"}, bench.api)


async def test_item_of_a_sweep_that_has_ended_is_failed_and_never_started(bench: Bench) -> None:
    (sweep,) = await bench.add()
    await bench.move(sweep, ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED)
    (item,) = await bench.add(sweep_id=str(sweep.id))
    await bench.agent().loop(until_empty=True)
    found = await bench.read(item.id)
    assert found.state_name == "Failed"
    assert found.message.startswith("[agent] The sweep")
    assert bench.machine.started == []


# --- one agent of a name ---


async def test_second_agent_of_a_name_on_one_machine_is_refused(tmp_path: Path) -> None:
    async with hold_agent_name(tmp_path, "box"):
        with pytest.raises(AgentConfigError, match="An agent called 'box' runs on this machine already"):
            async with hold_agent_name(tmp_path, "box", wait_seconds=0.1):
                pass
        async with hold_agent_name(tmp_path, "other", wait_seconds=0.1):
            pass


async def test_agent_that_is_just_leaving_is_waited_for(tmp_path: Path) -> None:
    async with hold_agent_name(tmp_path, "box"):
        waiting = asyncio.create_task(_come_and_go(tmp_path))
        await asyncio.sleep(0.1)
    await asyncio.wait_for(waiting, 60)


async def _come_and_go(folder: Path) -> None:
    async with hold_agent_name(folder, "box"):
        pass
