"""An agent whose disk is full: what cannot be done says so, the agent goes on, and works again when there is room."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch.core.states import StateType
from tests.integration.test_agent_containers import container
from tests.integration.test_housekeeping import keep_house
from tests.support.agent_thread import running
from tests.support.live import Site, until
from tests.support.small_disk import fill, small_disk

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk: needs root")
ENDED = (StateType.COMPLETED, StateType.FAILED, StateType.CRASHED)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An agent's home on a disk of 8 MiB."""
    with small_disk(tmp_path / "home", 8) as folder:
        yield folder


def test_item_crashes_with_the_next_step_and_the_agent_goes_on_when_there_is_room_again(
    prefect_server: PrefectServerProcess, home: Path, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    site.job("echo here")
    with running(site.agent()):
        until(lambda: (home / "housekeeping.lock").exists())
        filler = fill(home)
        (first,) = site.add(retries=0)
        until(lambda: first.item.state_type in ENDED)
        assert site.states(first)[-1] == "Crashed"
        assert "No space left on device" in first.message
        assert "prefect-launch agent clean" in first.message
        (page,) = site.artifacts(first)
        assert "disk full" in page.data
        filler.unlink()
        (second,) = site.add()
        until(lambda: second.item.state_type is StateType.COMPLETED)
        assert site.log(second) == "here"


def test_environment_that_finds_no_room_leaves_nothing_and_is_made_when_there_is(
    prefect_server: PrefectServerProcess, home: Path, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    site.job("echo here")
    with running(site.agent()):
        until(lambda: (home / "housekeeping.lock").exists())
        filler = fill(home, leaving=20 * 1024)  # room for the plan and the code
        (first,) = site.add(retries=0)
        until(lambda: first.item.state_type in ENDED)
        assert site.states(first)[-2:] == ["Building", "Crashed"]
        assert "No space left on device" in first.message
        assert not [path for path in (home / "environments").iterdir() if path.is_dir()]
        filler.unlink()
        (second,) = site.add()
        until(lambda: second.item.state_type is StateType.COMPLETED)


def test_job_that_fills_the_disk_itself_keeps_its_exit_code(
    prefect_server: PrefectServerProcess, home: Path, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    site.job('echo begun; cat /dev/zero > "$LAUNCH_OUTPUT_DIR/all"; exit 7')
    (run,) = site.add(retries=0)
    with running(site.agent()):
        until(lambda: run.item.state_type in ENDED)
        assert site.states(run)[-1] == "Failed"
        assert "exit code 7" in run.message
        until(lambda: site.log(run).startswith("begun"))


@pytest.mark.engine
def test_log_that_finds_no_room_is_kept_by_the_engine_until_there_is(
    prefect_server: PrefectServerProcess,
    engine: DockerEngine,
    home: Path,
    shell_image: str,
    tmp_path: Path,
    unique: str,
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique, resource="local-container")
    script = "echo begun; sleep 2; i=0; while [ $i -lt 4000 ]; do echo line-$i-of-a-long-log; i=$((i+1)); done"
    (run,) = site.add(container(shell_image, script))
    with running(site.agent()):
        until(lambda: "begun" in site.log(run))
        filler = fill(home, leaving=8 * 1024)
        until(lambda: run.item.state_type in ENDED)
    assert site.states(run)[-1] == "Completed"
    assert "the log could not be written" in run.message
    filler.unlink()
    assert len(keep_house(site.agent("other")).finished) == 1
    wanted = "begun\n" + "".join(f"line-{number}-of-a-long-log\n" for number in range(4000))
    (log,) = (home / "runs" / run.id).glob("1-*/job.log")
    assert log.read_text() == wanted


def test_housekeeping_makes_room_on_a_disk_that_past_runs_have_filled(
    prefect_server: PrefectServerProcess, home: Path, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    site.job('head -c 3000000 /dev/zero > "$LAUNCH_OUTPUT_DIR/big"')
    site.add({}, {})
    site.work_off(max_jobs=1)
    report = keep_house(site.agent("other", keep_runs="4m"))
    assert {cache.cache: len(cache.evicted) for cache in report.caches if cache.evicted} == {"work folders": 1}
    (third,) = site.add()
    site.work_off()
    assert site.states(third)[-1] == "Completed"
