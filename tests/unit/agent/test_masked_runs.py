"""The values of secrets that a run was given, masked in all that is told of it, by whichever agent tells it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from prefect_launch.agent.item.logs import CHUNK_BYTES, SHARE_BYTES, TAIL_BYTES
from prefect_launch.agent.item.outputs import READ_BYTES, mask_file
from prefect_launch.core.masking import MASK, Mask
from prefect_launch.core.states import StateType
from prefect_launch.errors import InfrastructureError
from prefect_launch.server.secrets import reference_to
from prefect_launch.server.values import Item
from prefect_launch.testing import Script
from tests.support.bench import QUEUE, RESOURCE, Bench, eventually

SECRET, OWN = "s3cr3t-of-the-queue", "own-s3cr3t\nof two lines"
ENV = {"local-container": {"env": {"OWN": f"a {reference_to('own')}"}}}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """A queue whose config names a secret, and that lets submitters name another one."""
    bench = Bench(tmp_path)
    bench.api.secrets.update({"queue": SECRET, "own": OWN})
    config = {"env": {"TOKEN": reference_to("queue")}}
    bench.api.upsert_run_queue(QUEUE, RESOURCE, config=config, submitter_secrets=["own"])
    return bench


async def told(bench: Bench, item: Item, *, log_of: int | None = None) -> str:
    """All that the server and the job store tell of an item."""
    read = await bench.read(item.id)
    states = [state.message for state in await bench.server.read_states(item.id)]
    artifacts = await bench.server.list_artifacts(item.id)
    kept = await bench.api.acall(lambda session: session.jobs.read_output(str(item.id), 1, "job.log"))
    outputs = await bench.api.acall(lambda session: session.jobs.read_output(str(item.id), 1, "outputs.json"))
    files = [(data or b"").decode("utf-8", "replace") for data in (kept, outputs)]
    return "\n".join([repr(read), repr(states), json.dumps(artifacts, default=str), await bench.log(item), *files])


def shows_none(text: str) -> bool:
    return not any(part in text for part in (SECRET, *OWN.split("\n")))


async def test_secrets_of_a_run_are_in_nothing_that_is_reported_of_it(bench: Bench) -> None:
    outputs = {"outputs.json": json.dumps({"token": f"x{SECRET}", "lr": 0.1}).encode(), "weights": SECRET.encode()}
    log = (f"token is {SECRET}\n".encode(), b"own: own-s3", b"cr3t\nof two lines\n", b"done\n")
    bench.plays(Script(log=log, outputs=outputs, exit_code=3))
    (item,) = await bench.add(resource_args=ENV)
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.FAILED)
    text = await told(bench, item)
    assert shows_none(text)
    assert f"token is {MASK}\nown: {MASK}\n{MASK}\ndone" in await bench.log(item)
    assert f"x{MASK}" in text
    # What it keeps besides is its own, and the log on the agent's machine is as it was written.
    kept = await bench.api.acall(lambda session: session.jobs.read_output(str(item.id), 1, "weights"))
    assert kept == SECRET.encode()
    (job_log,) = bench.folder.rglob("job.log")
    assert SECRET in job_log.read_text()


def test_results_of_any_size_are_masked_without_being_held_in_memory_whole(tmp_path: Path) -> None:
    file, mask = tmp_path / "outputs.json", Mask([SECRET])
    text = json.dumps({"a": "x" * READ_BYTES, "token": SECRET})
    file.write_text(text)
    mask_file(file, mask)
    assert file.read_text() == text.replace(SECRET, MASK)

    with file.open("wb") as sparse:  # No results: it would be read as 4 TiB of zeros.
        sparse.write(SECRET.encode())
        sparse.truncate(2**42)
    before = file.stat()
    mask_file(file, mask)
    after = file.stat()
    assert (after.st_size, after.st_blocks, after.st_ino) == (before.st_size, before.st_blocks, before.st_ino)


async def test_names_of_secrets_are_kept_on_disk_and_no_value(bench: Bench) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add(resource_args=ENV)
    async with bench.agent().connected() as agent:
        popped = await agent.pop_from_queue(QUEUE)
        assert popped is not None
        await agent.run_job(popped, QUEUE, None)
        await bench.until(item, StateType.RUNNING)
        plans = "".join(path.read_text() for path in bench.folder.rglob("*.json"))
        await agent.running_items.leave()
    assert '"secrets":["queue","own"]' in plans
    assert shows_none(plans)


async def test_error_that_quotes_an_option_is_masked(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "prefect_launch.agent")
    bench.plays(Script(create_error=InfrastructureError(f"invalid environment TOKEN={SECRET}")))
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        failed = await bench.until(item, StateType.CRASHED)
    assert failed.message.endswith(f"nvalid environment TOKEN={MASK}")
    assert shows_none(await told(bench, item))
    assert shows_none(caplog.text)


async def test_error_that_the_agent_itself_fails_over_is_masked(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.plays(Script(seconds=60))
    (item,) = await bench.add(resource_args=ENV)
    async with bench.agent().connected() as agent:
        popped = await agent.pop_from_queue(QUEUE)
        assert popped is not None
        await agent.run_job(popped, QUEUE, bench.folder)
        await bench.until(item, StateType.RUNNING)
        await agent.finish_thread_id(str(item.id), ValueError(f"no such option: {SECRET}"))
        await agent.running_items.leave()
    assert (await bench.read(item.id)).message.endswith(f"The agent failed over it: ValueError: no such option: {MASK}")
    assert f"ValueError: no such option: {MASK}" in caplog.text
    assert shows_none(await told(bench, item))
    assert shows_none(caplog.text)
    assert shows_none((bench.folder / "error.log").read_text())


async def test_option_of_the_queue_that_is_refused_tells_no_secret(bench: Bench) -> None:
    config = {"memory": reference_to("queue")}
    await asyncio.to_thread(lambda: bench.api.upsert_run_queue(QUEUE, RESOURCE, config=config))
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        failed = await bench.until(item, StateType.FAILED, StateType.CRASHED)
    assert MASK in failed.message
    assert shows_none(await told(bench, item))


@pytest.mark.parametrize("border", [CHUNK_BYTES, SHARE_BYTES, "tail"])
async def test_secret_that_stands_where_the_log_is_cut_is_masked(bench: Bench, border: int | str) -> None:
    size = SHARE_BYTES + 3 * TAIL_BYTES
    at = size - TAIL_BYTES if border == "tail" else int(border)
    log = bytearray(b"x" * size)  # one line, which is cut wherever a record must end
    for start in range(at - 5 * len(SECRET), at + 5 * len(SECRET), len(SECRET) + 1):
        log[start : start + len(SECRET)] = SECRET.encode()
    bench.plays(Script(log=(bytes(log),)))
    (item,) = await bench.add()
    async with bench.running(bench.agent()):
        await bench.until(item, StateType.COMPLETED)
    text = await told(bench, item)
    assert MASK in text
    assert not any(SECRET[start : start + 6] in text for start in range(len(SECRET) - 6))


async def test_agent_that_takes_a_run_up_again_masks_what_it_tells(bench: Bench) -> None:
    bench.plays(Script(seconds=60, log=(b"first\n",), late_log=(f"then {SECRET}\n".encode(),)))
    (item,) = await bench.add()
    async with bench.agent().connected() as agent:
        popped = await agent.pop_from_queue(QUEUE)
        assert popped is not None
        await agent.run_job(popped, QUEUE, None)
        await bench.until(item, StateType.RUNNING)
        await agent.running_items.leave()
    await bench.finish_under(bench.agent())
    assert f"then {MASK}" in await bench.log(item)
    assert shows_none(await told(bench, item))


async def test_log_of_the_run_says_which_secret_is_gone_by_then(bench: Bench) -> None:
    bench.plays(Script(seconds=60, late_log=(b"late\n",)))
    (item,) = await bench.add(resource_args=ENV)
    async with bench.agent().connected() as agent:
        popped = await agent.pop_from_queue(QUEUE)
        assert popped is not None
        await agent.run_job(popped, QUEUE, None)
        await bench.until(item, StateType.RUNNING)
        await agent.running_items.leave()
    del bench.api.secrets["own"]
    await bench.finish_under(bench.agent())
    log = await bench.log(item)
    assert "The Secret block 'own' cannot be read any more: its value is not masked" in log
    assert "late" in log


async def test_key_that_the_agent_gives_each_run_is_masked_too(bench: Bench) -> None:
    bench.plays(Script(log=(b"WANDB_API_KEY=0123456789abcdef\n",)))
    (item,) = await bench.add()
    async with bench.running(bench.agent(wandb={"api_key": "0123456789abcdef"})):
        await bench.until(item, StateType.COMPLETED)
    assert f"WANDB_API_KEY={MASK}" in await eventually(lambda: bench.log(item), lambda log: "WANDB" in log)
