"""Items that do not complete, on a real server: why, what is told about it, and what comes back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_launch.core.states import StateType
from tests.support.agent_thread import running
from tests.support.live import Site, settle_lost, until

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from tests.support.prefect_server import PrefectServerProcess


def container(image: str, script: str, **more: Any) -> dict[str, Any]:
    return {"docker": {"docker_image": image}, "overrides": {"entry_point": ["sh", "-c", script]}, **more}


def failure_report(site: Site, run: QueuedRun) -> str:
    pages = [artifact.data for artifact in site.artifacts(run) if artifact.type == "markdown"]
    assert pages, "no failure report"
    return str(pages[-1])


RESUME = 'f="$LAUNCH_OUTPUT_DIR/step"; n=$(cat "$f" 2>/dev/null || echo 0); echo $((n+1)) > "$f"; echo at step $n of'
#: Fails twice; the third attempt finds what the two before have counted.
TWICE = f"{RESUME} attempt $LAUNCH_ATTEMPT resume=$WANDB_RESUME run=$WANDB_RUN_ID; [ $n -ge 2 ] || exit 3"


def told(name: str) -> list[str]:
    resume = ("", "allow", "allow")
    return [f"at step {n} of attempt {n + 1} resume={resume[n]} run={name}" for n in range(3)]


RULE = {"max": 3, "on": ["failed"], "delay": 0.2, "backoff": 1}


def test_process_that_fails_comes_back_with_its_outputs_until_it_succeeds(site: Site, unique: str) -> None:
    site.job(TWICE)
    (run,) = site.add(retries=RULE, run_id=f"mine-{unique}", priority="high")
    site.work_off(poll_seconds=0.3)
    names = [state for state in site.states(run) if state != "Building"]
    assert names == ["Queued", *["Pending", "Running", "AwaitingRetry"] * 2, "Pending", "Running", "Completed"]
    assert site.log(run).splitlines() == told(f"mine-{unique}")
    flow_run = site.flow_run(run)
    assert (flow_run.run_count, flow_run.work_queue_name) == (3, "high")


@pytest.mark.engine
def test_container_that_fails_comes_back_with_its_outputs(containers: Site, shell_image: str, unique: str) -> None:
    (run,) = containers.add(container(shell_image, TWICE, retries=RULE, run_id=f"mine-{unique}"))
    containers.work_off(poll_seconds=0.3)
    assert containers.log(run).splitlines() == told(f"mine-{unique}")
    assert run.outputs() == {}
    assert containers.flow_run(run).run_count == 3


def test_rule_that_is_used_up_leaves_the_item_failed(site: Site) -> None:
    site.job("echo no; exit 7")
    (run,) = site.add(retries={**RULE, "max": 1})
    site.work_off(poll_seconds=0.3)
    assert site.states(run)[-1] == "Failed"
    assert site.states(run).count("AwaitingRetry") == 1
    assert "exit code" in failure_report(site, run)


@pytest.mark.engine
def test_container_out_of_memory_has_a_failure_report_with_all_known_facts(containers: Site, shell_image: str) -> None:
    eat = "echo eating; dd if=/dev/zero of=/dev/shm/x bs=1M count=64; tail /dev/zero"
    limit = {"local-container": {"memory": "24m"}}
    (run,) = containers.add(container(shell_image, eat, resource_args=limit))
    containers.work_off()
    page = failure_report(containers, run)
    assert run.item.state_type is StateType.CRASHED
    assert "out of memory" in page
    assert "137" in page
    assert "sha256:" in page
    assert "eating" in page
    assert "Raise its memory" in page


@pytest.mark.engine
def test_image_that_cannot_be_pulled_has_a_failure_report_with_the_registrys_reason(containers: Site) -> None:
    (run,) = containers.add({"docker": {"docker_image": "127.0.0.1:1/no/such:1"}})
    containers.work_off()
    page = failure_report(containers, run)
    assert "image not pulled" in page
    assert "127.0.0.1:1/no/such:1" in page


def test_cancelled_item_has_a_failure_report_too(site: Site) -> None:
    site.job("echo up; exec sleep 300")
    (run,) = site.add()
    with running(site.agent()):
        until(lambda: "up" in site.log(run))
        run.cancel()
        until(lambda: run.item.state_type is StateType.CANCELLED)
    page = failure_report(site, run)
    assert "It was asked to stop." in page


async def test_lost_agents_item_is_reported_and_run_by_another_and_the_first_stops_its_own(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    site = await asyncio.to_thread(Site, prefect_server.api_url, tmp_path, unique)
    await asyncio.to_thread(site.job, 'echo "attempt $LAUNCH_ATTEMPT"; [ "$LAUNCH_ATTEMPT" = 2 ] || exec sleep 300')
    (run,) = await asyncio.to_thread(lambda: site.add(retries={"delay": 0}))
    agent = await asyncio.to_thread(site.agent_process)
    try:
        await asyncio.to_thread(until, lambda: "attempt 1" in site.log(run))
    finally:
        await asyncio.to_thread(agent.kill)
    async with site.api.open() as session:
        await settle_lost(session, site.name)
    assert site.states(run)[-1] == "AwaitingRetry"
    state = site.flow_run(run).state
    assert state is not None
    assert f"Agent {site.name}-box on " in (state.message or "")
    other = site.agent("other", home=tmp_path / "other", poll_seconds=0.5)
    await asyncio.wait_for(other.loop(until_empty=True), 60)
    assert (site.states(run)[-1], site.flow_run(run).run_count) == ("Completed", 2)
    # The first comes back: its process of the first attempt is stopped, and the item stays as it is.
    first = site.agent("box", poll_seconds=0.5)
    await asyncio.wait_for(first.loop(until_empty=True), 60)
    assert site.states(run)[-1] == "Completed"
    assert not list((tmp_path / "home" / "processes").glob("*"))
