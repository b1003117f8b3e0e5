"""GPUs given out on a real server to real processes and containers, by an agent whose cards are in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_launch import LaunchAgent
from prefect_launch.core.states import StateType
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.testing import InMemoryGpus
from tests.support.agent_thread import running
from tests.support.live import DEADLINE_SECONDS, Site, until

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess

WAIT = 'echo "cards=$CUDA_VISIBLE_DEVICES"; while [ ! -e {}-$CUDA_VISIBLE_DEVICES ]; do sleep 0.05; done'


def agent_of(site: Site, cards: InMemoryGpus, **config: Any) -> LaunchAgent:
    return LaunchAgent(site.api, site.agent(max_jobs=-1, poll_seconds=1, **config).config, gpu_probe=cards)


def asks(gpus: Any, resource: str = "local-process") -> dict[str, Any]:
    return {"resource_args": {resource: {"gpus": gpus}}}


def test_processes_have_gpus_of_their_own_and_a_restart_remembers_whose(site: Site, tmp_path: Path) -> None:
    site.job(WAIT.format(tmp_path / "done"))
    first, second = site.add(asks(2), asks(["3"]))
    cards = InMemoryGpus(4)
    with running(agent_of(site, cards)):
        until(lambda: "cards=0,1" in site.log(first) and "cards=3" in site.log(second))
    assert first.item.state_type is StateType.RUNNING  # it goes on without its agent
    (third, fourth) = site.add(asks(2), asks(1))
    with running(agent_of(site, cards)) as agent:
        until(lambda: "cards=2" in site.log(fourth))
        assert agent.context.devices.describe().count("free") == 0
        assert site.states(third) == ["Queued"]
        for cards_of, ends in (("0,1", (first, third)), ("2", (fourth,)), ("3", (second,))):
            (tmp_path / f"done-{cards_of}").touch()
            for run in ends:
                until(lambda run=run: run.item.state_type is StateType.COMPLETED)  # type: ignore[misc]
    assert "cards=0,1" in site.log(third)  # no others were free


def test_item_that_never_fits_fails_with_the_reason_and_the_queue_goes_on(site: Site) -> None:
    site.job('echo "cards=$CUDA_VISIBLE_DEVICES"')
    site.api.upsert_run_queue(site.name, "local-process", fail_impossible_after="1s")
    big, small = site.add(asks(2), asks(1))
    loop = agent_of(site, InMemoryGpus(1)).loop(until_empty=True)
    asyncio.run(asyncio.wait_for(loop, DEADLINE_SECONDS))
    assert site.states(big)[-1] == "Failed"
    assert "[agent] It asks for 2 GPUs, and this agent has GPU 0." in big.message
    assert "cannot run this: It asks for 2 GPUs" in site.notes(big)
    assert site.log(small) == "cards=0"


def test_machine_without_a_gpu_runs_what_asks_for_none_and_refuses_the_rest(site: Site) -> None:
    site.job("echo fine")
    site.api.upsert_run_queue(site.name, "local-process", fail_impossible_after="0.1s", submitter_options=["gpus"])
    plain, greedy = site.add({}, asks("all"))
    site.work_off(gpus="none")
    assert site.states(plain)[-1] == "Completed"
    assert "this agent has no GPU (its setting is gpus: none)" in greedy.message


def test_small_item_behind_230_that_do_not_fit_runs_and_the_big_ones_are_not_starved(
    site: Site, tmp_path: Path
) -> None:
    site.job(WAIT.format(tmp_path / "done"))
    cards = InMemoryGpus(3)
    (holder,) = site.add(asks(1))
    with running(agent_of(site, cards, device_patience_seconds=600)) as agent:
        until(lambda: "cards=0" in site.log(holder))
        big = site.add(*[asks(3)] * 230)
        (small,) = site.add(asks(1))
        until(lambda: "cards=1" in site.log(small))
        until(lambda: len(agent.context.devices.wait_list.waiting) == 230)
        assert site.states(big[0]) == ["Queued"]
    (late,) = site.add(asks(1))
    with running(agent_of(site, cards, device_patience_seconds=0)):
        for card in "01":
            (tmp_path / f"done-{card}").touch()
        until(lambda: "cards=0,1,2" in site.log(big[0]))
        assert site.states(late) == ["Queued"]
        site.api.update_run_queue(site.name, is_paused=True)
        (tmp_path / "done-0,1,2").touch()
        until(lambda: big[0].item.state_type is StateType.COMPLETED)


@pytest.mark.engine
def test_engine_is_told_which_devices_a_container_gets(
    prefect_server: PrefectServerProcess, engine: DockerEngine, shell_image: str, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique, resource="local-container")
    seen: list[Any] = []

    class Watched(LocalContainerRunner):
        async def start(self, handle: str) -> None:
            client = engine.client()
            try:
                made = await asyncio.to_thread(client.api.inspect_container, handle)
            finally:
                client.close()
            seen.append((made["HostConfig"]["DeviceRequests"], made["Config"]["Labels"]["prefect-launch.devices"]))
            await super().start(handle)

    spec = {"docker": {"docker_image": shell_image}, **asks(["1"], "local-container")}
    (run,) = site.add(spec)
    config = site.agent().config
    runner = Watched(config.home)
    agent = LaunchAgent(site.api, config, runners={"local-container": runner}, gpu_probe=InMemoryGpus(2))
    asyncio.run(asyncio.wait_for(agent.loop(until_empty=True), DEADLINE_SECONDS))
    ((requests, label),) = seen
    assert [request["DeviceIDs"] for request in requests] == [["1"]]
    assert label == '{"gpus":["1"]}'
    assert run.item.is_terminal  # an engine without NVIDIA's toolkit cannot start it, and the item says so
