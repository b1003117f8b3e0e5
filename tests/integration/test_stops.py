"""How soon a stop is over, and that nothing is left: real processes and containers, on a real server."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from prefect_launch import create_job
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import StateType
from tests.support.agent_thread import running
from tests.support.live import Site, until

GRACE_SECONDS = 1.0
#: What a stop may take beyond the grace: it is half a second, and a busy machine gets its time. No job ends in it.
PATIENCE_SECONDS = 60.0

OBEYS = "echo up; exec sleep 300"
IGNORES_TERM = "trap '' TERM; echo up; while true; do sleep 0.1; done"
DETACHES = "setsid sh -c 'trap \"\" TERM; while true; do sleep 0.1; done' & echo up; exec sleep 300"
CHATTERS = "echo up; exec yes a line that is of no use to anybody"


@pytest.mark.parametrize(
    ("script", "grace"),
    [(OBEYS, 0.0), (IGNORES_TERM, GRACE_SECONDS), (DETACHES, GRACE_SECONDS), (CHATTERS, 0.0)],
    ids=["obeys", "ignores-term", "detaches", "chatters"],
)
def test_cancelled_process_is_gone_soon_after_its_grace(site: Site, script: str, grace: float) -> None:
    site.job(script)
    (run,) = site.add()
    with running(site.agent(stopped_run_timeout=GRACE_SECONDS)):
        until(lambda: run.item.state_type is StateType.RUNNING and "up" in site.log(run))
        seconds = _cancel(run)
    assert "process group gone" in run.message
    assert _living(run.id) == []
    assert seconds < grace + PATIENCE_SECONDS


@pytest.mark.engine
@pytest.mark.parametrize(
    ("script", "grace"),
    [("trap 'exit 3' TERM; echo up; while true; do sleep 0.1; done", 0.0), (IGNORES_TERM, GRACE_SECONDS)],
    ids=["obeys", "ignores-term"],
)
def test_cancelled_container_is_removed_soon_after_its_grace(
    containers: Site, shell_image: str, script: str, grace: float
) -> None:
    (run,) = containers.add(
        {"docker": {"docker_image": shell_image}, "overrides": {"entry_point": ["sh", "-c", script]}}
    )
    with running(containers.agent(stopped_run_timeout=GRACE_SECONDS)):
        until(lambda: "up" in containers.log(run))
        seconds = _cancel(run)
    assert "container removed" in run.message
    assert seconds < grace + PATIENCE_SECONDS


def test_item_that_is_cancelled_while_its_environment_is_built_is_never_started(site: Site, tmp_path: Path) -> None:
    site.job("touch ../../../ran; sleep 300")
    code = next(tmp_path.glob("code-*"))
    with socket.create_server(("127.0.0.1", 0)) as silent:  # Takes the request, and never answers.
        port = silent.getsockname()[1]
        (code / "requirements.txt").write_text(f"slow @ http://127.0.0.1:{port}/slow-1-py3-none-any.whl\n")
        create_job(str(code), "code", name=site.name, entrypoint="sh run.sh", api=site.api)
        (run,) = site.add()
        with running(site.agent()):
            until(lambda: run.state == "building")
            seconds = _cancel(run)
    assert run.message.startswith("Stopped before it was started")
    assert seconds < PATIENCE_SECONDS


def test_item_over_its_time_limit_fails_even_when_its_agent_was_away(site: Site) -> None:
    site.job(IGNORES_TERM)
    (run,) = site.add(timeout="3s")
    with running(site.agent(stopped_run_timeout=GRACE_SECONDS)):
        until(lambda: "up" in site.log(run))
    time.sleep(3)
    site.work_off(stopped_run_timeout=GRACE_SECONDS)
    assert site.states(run)[-2:] == ["Running", "Failed"]
    assert "The job timed out after 3 s" in run.message
    assert _living(run.id) == []


def _cancel(run: QueuedRun) -> float:
    """Cancel an item; return after how many seconds it was seen to be cancelled."""
    started = time.monotonic()
    run.cancel()
    until(lambda: run.item.state_type is StateType.CANCELLED)
    return time.monotonic() - started


def _living(item_id: str) -> list[str]:
    """The commands of the processes that belong to an item, by the output folder in their environment."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and item_id.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return found
