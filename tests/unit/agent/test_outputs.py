"""Outputs: kept off the slot of their run, within limits, and told of in its log when they are not."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from datetime import datetime, timezone

import pytest
from prefect.filesystems import RemoteFileSystem

from prefect_launch.agent.item.outputs import copy_previous_outputs, keep_outputs
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.code_changes import CodeChanges
from prefect_launch.core.masking import Mask
from prefect_launch.core.output_limits import OutputLimits
from prefect_launch.core.states import StateType
from prefect_launch.runners.base import ExitStatus, RunPlan
from prefect_launch.server.values import Item, LogRecord
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.testing import Script
from tests.support.bench import Bench, eventually

ONE = {"outputs.json": b'{"accuracy": 0.9}'}


class _SlowStorage(RemoteFileSystem):
    """A storage that takes no folder before it is told to."""

    _block_type_name = "Slow Storage"
    _block_type_slug = "slow-storage"
    basepath: str = "memory://slow-outputs"

    def put_directory(self, *args: object, **options: object) -> int:  # type: ignore[override]
        copies.asked += 1
        assert copies.go_on.wait(60)
        return super().put_directory(*args, **options)  # type: ignore[arg-type,return-value]


class _Copies:
    asked = 0
    go_on = threading.Event()


copies = _Copies()


@pytest.fixture
def held_up(bench: Bench) -> Iterator[None]:
    """The job store's copies stand still until they are let go on."""
    copies.asked = 0
    copies.go_on.clear()
    bench.api.store.storage = _SlowStorage()
    yield
    copies.go_on.set()


async def outputs_of(bench: Bench, item: Item) -> dict[str, object]:
    return await asyncio.to_thread(QueuedRun(bench.api, item).outputs)


async def state_types(bench: Bench, items: list[Item]) -> list[StateType | None]:
    return [(await bench.read(item.id)).state_type for item in items]


@pytest.mark.usefixtures("held_up")
async def test_slot_is_free_for_the_next_item_while_outputs_are_copied_and_the_end_comes_after(bench: Bench) -> None:
    bench.plays(Script(outputs=ONE))
    items = await bench.add(4)

    async with bench.running(bench.agent(max_jobs=1)) as agent:
        await eventually(lambda: asyncio.sleep(0, len(bench.machine.started)), lambda started: started == 4)
        await eventually(lambda: asyncio.sleep(0, copies.asked), lambda asked: asked == 2)  # two at a time
        assert await state_types(bench, items) == [StateType.RUNNING] * 4
        await eventually(lambda: asyncio.sleep(0, agent.num_running_jobs), lambda running: running == 0)
        assert len(agent.thread_ids) == 4
        copies.go_on.set()
        for item in items:
            await bench.until(item, StateType.COMPLETED)
            assert await outputs_of(bench, item) == {"accuracy": 0.9}


@pytest.mark.usefixtures("held_up")
async def test_runs_whose_outputs_wait_keep_their_slots_once_they_are_many(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefect_launch.agent.item.running_items.MOST_COPYING", 2)
    bench.plays(Script(outputs=ONE))
    await bench.add(6)

    async with bench.running(bench.agent(max_jobs=1)) as agent:
        await eventually(lambda: asyncio.sleep(0, len(agent.thread_ids)), lambda held: held == 3)
        await asyncio.sleep(0.3)
        assert (agent.num_running_jobs, len(bench.machine.started)) == (1, 3)
        copies.go_on.set()
        await eventually(lambda: asyncio.sleep(0, len(bench.machine.removed)), lambda removed: removed == 6)


@pytest.mark.usefixtures("held_up")
async def test_draining_agent_leaves_when_the_last_outputs_are_kept(bench: Bench) -> None:
    bench.plays(Script(outputs=ONE))
    (item,) = await bench.add()
    agent = bench.agent()
    loop = asyncio.create_task(agent.loop())
    await eventually(lambda: asyncio.sleep(0, copies.asked), lambda asked: asked == 1)

    agent.shutdown.drain()
    await asyncio.sleep(0.3)
    assert not loop.done()
    copies.go_on.set()
    await asyncio.wait_for(loop, 60)

    assert (await bench.read(item.id)).state_type is StateType.COMPLETED


@pytest.mark.usefixtures("held_up")
async def test_copy_that_an_agent_did_not_finish_is_made_by_the_next(bench: Bench) -> None:
    bench.plays(Script(outputs=ONE))
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        await eventually(lambda: asyncio.sleep(0, copies.asked), lambda asked: asked == 1)
    assert (await bench.read(item.id)).state_type is StateType.RUNNING
    copies.go_on.set()

    async with bench.running(bench.agent()):
        await bench.until(item, StateType.COMPLETED)

    assert bench.machine.started == bench.machine.removed
    assert len(bench.machine.started) == 1
    assert await outputs_of(bench, item) == {"accuracy": 0.9}


async def test_outputs_over_the_limit_are_named_in_the_log_and_counted_in_the_message(bench: Bench) -> None:
    bench.plays(Script(outputs={**ONE, "big.bin": b"x" * 5000, "small.txt": b"x"}))
    (item,) = await bench.add()

    await bench.agent(outputs={"max_bytes": "2k"}).loop(until_empty=True)

    ended = await bench.read(item.id)
    assert ended.state_type is StateType.COMPLETED
    assert ended.message.endswith("Note: 1 of the run's outputs is not kept; its log names it.")
    (record,) = await bench.server.read_logs(item.id, limit=100)
    assert record.level == logging.WARNING
    assert record.message.splitlines() == [
        "1 of the run's outputs is not kept:",
        "  big.bin: it has 4.9 KiB, and 17 B are kept already",
        "At most 2.0 KiB and 10,000 files are kept of a run: 'outputs' in the agent's and in the queue's config.",
    ]
    async with bench.api.open() as session:
        assert await session.jobs.read_output(str(item.id), 1, "small.txt") == b"x"
        assert await session.jobs.read_output(str(item.id), 1, "big.bin") is None
    assert await outputs_of(bench, item) == {"accuracy": 0.9}


async def test_files_changed_in_the_code_folder_are_named_in_the_log_beside_what_is_left_out(bench: Bench) -> None:
    (item,) = await bench.add()
    site = MachineSettings(home=bench.folder)
    plan = RunPlan(item_id=str(item.id), run_id="x", run_dir=site.run_dir(str(item.id), 1))
    plan = plan.model_copy(update={"output_limits": OutputLimits(max_files=0), "mask": Mask(["hidden"])})
    plan.output_dir.mkdir(parents=True)
    (plan.output_dir / "a").write_text("x")
    end = ExitStatus(
        exit_code=0, code_changes=CodeChanges.of(["loss.csv", "hidden.txt"]), ended_at=datetime.now(timezone.utc)
    )
    last_line = LogRecord(message="the last line", timestamp=datetime.now(timezone.utc))
    await bench.server.write_logs(item.id, [last_line])  # Its time is when it was read.

    async with bench.api.open() as session:
        notes = [await keep_outputs(session, item.id, plan, end) for _ in range(2)]

    assert (
        notes
        == [
            [
                "1 of the run's outputs is not kept; its log names it.",
                "2 files changed in the code folder are not kept; its log names them.",
            ]
        ]
        * 2
    )
    told = await bench.log(item)
    assert told.startswith("the last line")
    assert told.count("a: it is over the limit of 0 files") == 1
    assert told.count("2 files changed in the code folder are not kept: ********.txt, loss.csv. Write to") == 1


async def test_narrower_limit_of_the_queue_holds(bench: Bench) -> None:
    await asyncio.to_thread(
        lambda: bench.api.upsert_run_queue("gpu", "local-container", config={"outputs": {"max_files": 1}})
    )
    bench.plays(Script(outputs={**ONE, "small.txt": b"x"}))
    (item,) = await bench.add()

    await bench.agent().loop(until_empty=True)

    assert "small.txt: it is over the limit of 1 file" in await bench.log(item)


async def test_what_is_left_out_is_reported_once_though_two_agents_keep_the_outputs(bench: Bench) -> None:
    bench.plays(Script(outputs={"a": b"x"}))
    (item,) = await bench.add()
    told = asyncio.Event()

    async def stand_still_once_told(call: str) -> None:
        if call == "write_logs":
            told.set()
        elif call == "propose" and told.is_set():
            await asyncio.Event().wait()

    bench.server.before_call = stand_still_once_told
    async with bench.running(bench.agent(outputs={"max_files": 0})):
        await eventually(lambda: bench.log(item), lambda log: "not kept" in log)
    bench.server.before_call = None
    async with bench.running(bench.agent(outputs={"max_files": 0})):
        await bench.until(item, StateType.COMPLETED)

    assert (await bench.log(item)).count("not kept:") == 1


async def test_next_attempt_gets_the_last_ones_outputs_within_the_limits_and_its_log_tells_what_not(
    bench: Bench,
) -> None:
    (item,) = await bench.add()
    site = MachineSettings(home=bench.folder)
    for attempt in (1, 2):
        site.run_dir(str(item.id), attempt).mkdir(parents=True)
    last = RunPlan(item_id=str(item.id), run_id="x", run_dir=site.run_dir(str(item.id), 1))
    last.output_dir.mkdir()
    (last.output_dir / "checkpoint").write_bytes(b"x" * 100)
    (last.output_dir / "huge").write_bytes(b"x" * 5000)
    following = {"attempt": 2, "run_dir": site.run_dir(last.item_id, 2), "output_limits": OutputLimits(max_bytes=1000)}
    plan = last.model_copy(update=following)

    async with bench.api.open() as session:
        assert await copy_previous_outputs(session, plan, site) == 1
        assert await copy_previous_outputs(session, plan, site) is None, "it is there already"

    assert [path.name for path in plan.output_dir.iterdir()] == ["checkpoint"]
    assert [path.name for path in plan.run_dir.iterdir()] == [plan.output_dir.name]
    told = await bench.log(item)
    assert told.count("1 of the outputs of attempt 1 is not handed on to the next:") == 1
    assert "huge: it has 4.9 KiB" in told
