"""Housekeeping on a real server, with a real engine and a real environment."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch.agent import LaunchAgent
from prefect_launch.agent.housekeeping.housekeeper import Housekeeper, Report
from prefect_launch.core.states import StateType
from tests.integration.test_agent_containers import container
from tests.support.live import Site, prefect_client, until

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess


def keep_house(agent: LaunchAgent) -> Report:
    async def once() -> Report | None:
        async with agent.connected():
            return await Housekeeper(agent.context, fresh_seconds=0, settled_seconds=0).once()

    report = asyncio.run(once())
    assert report is not None
    return report


@pytest.mark.engine
def test_container_of_an_agent_that_never_came_back_goes_when_its_item_has_ended_and_its_log_is_safe(
    prefect_server: PrefectServerProcess, engine: DockerEngine, shell_image: str, tmp_path: Path, unique: str
) -> None:
    from prefect.states import Crashed

    site = Site(prefect_server.api_url, tmp_path, unique, resource="local-container")
    (run,) = site.add(container(shell_image, "echo begun; sleep 3; echo over"))
    agent = site.agent_process("gone")
    until(lambda: "begun" in site.log(run))
    agent.kill()
    client = engine.client()
    try:
        mine = {"label": f"prefect-launch.item={run.id}"}
        (left,) = client.containers.list(all=True, filters=mine)
        assert keep_house(site.agent("other")).finished == ()  # its item has not ended
        left.wait(timeout=120)
        with prefect_client() as prefect:
            prefect.set_flow_run_state(site.flow_run(run).id, Crashed(message="by hand"), force=True)
        assert len(keep_house(site.agent("other")).finished) == 1
        assert client.containers.list(all=True, filters=mine) == []
    finally:
        client.close()
    (log,) = (tmp_path / "home" / "runs" / run.id).glob("1-*/job.log")
    assert log.read_text() == "begun\nover\n"


def test_environment_and_folder_stay_while_a_process_uses_them_and_go_afterwards(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    site.job("echo begun; while [ ! -e ../../../../../end ]; do sleep 0.1; done")
    (run,) = site.add()
    agent = site.agent_process("box")
    try:
        until(lambda: "begun" in site.log(run))
        home = tmp_path / "home"
        (environment,) = [path for path in (home / "environments").iterdir() if path.is_dir()]
        old = time.time() - 3600
        os.utime(environment / ".ready", (old, old))
        config = {"keep_runs": 0, "keep_environments": 0}
        assert keep_house(site.agent("other", **config)).is_nothing
        (tmp_path / "end").touch()
        until(lambda: run.item.state_type is StateType.COMPLETED)
        until(lambda: not list((home / "processes").iterdir()))
        assert len(keep_house(site.agent("other", **config)).caches[0].evicted) == 1
        assert not environment.exists()
        assert list((home / "runs").iterdir()) == []
    finally:
        agent.stop()
