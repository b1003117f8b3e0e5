"""Items on a real server, with real processes: what Prefect's own client reads of them."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.exceptions import PrefectHTTPStatusError

from prefect_launch.core.states import StateType
from prefect_launch.errors import ExecutionError
from tests.support.agent_thread import running
from tests.support.live import DEADLINE_SECONDS, Site, run_deployment, until


def test_item_runs_to_completed_and_shows_all_that_it_left(site: Site) -> None:
    site.job('echo hello; echo "$WANDB_NAME" >&2; echo \'{"accuracy": 0.97}\' > "$LAUNCH_OUTPUT_DIR/outputs.json"')
    (run,) = site.add(name="my run", author="ann")
    site.work_off()
    flow_run = site.flow_run(run)
    assert (flow_run.name, flow_run.run_count) == ("my run", 1)
    assert {f"queue:{site.name}", f"job:{site.name}", "author:ann"} <= set(flow_run.tags)
    states = site.states(run)
    assert (states[:2], states[-2:]) == (["Queued", "Pending"], ["Running", "Completed"])
    told = [(record.level, record.message) for record in run.logs()]
    assert told == [(logging.INFO, "hello"), (logging.WARNING, "my run")]
    (artifact,) = site.artifacts(run)
    assert json.loads(artifact.data) == [{"output": "accuracy", "value": 0.97}]
    kept = site.api.call(lambda session: session.jobs.read_output(run.id, 1, "job.log"))
    assert kept == b"hello\nmy run\n"
    assert flow_run.infrastructure_pid is not None


def test_failing_item_tells_its_exit_code_and_its_last_lines(site: Site) -> None:
    site.job("echo going; echo badly; exit 7")
    (run,) = site.add()
    site.work_off()
    assert site.states(run)[-1] == "Failed"
    with pytest.raises(ExecutionError, match=r"\[run\] The job ended .* with exit code 7") as raised:
        run.wait_until_finished(timeout=60)
    assert (raised.value.exit_code, raised.value.last_lines) == (7, ("going", "badly"))


def test_item_that_waits_is_cancelled_and_never_run(site: Site) -> None:
    site.job("echo ran > ../ran")
    (run,) = site.add()
    assert run.cancel() == "Cancelled"
    site.work_off()
    assert site.states(run) == ["Queued", "Cancelled", "Cancelled"]  # by the server, then with its reason
    assert "while it waited: nothing was started." in run.message


@pytest.mark.parametrize("deaf", [False, True])
def test_item_that_runs_is_stopped_with_all_its_children_even_when_it_ignores_term(site: Site, deaf: bool) -> None:
    children = "sleep 61.5 & sleep 61.5"
    site.job(f"{'trap : TERM; ' if deaf else ''}echo up; while true; do {children}; done")
    (run,) = site.add()
    with running(site.agent(stopped_run_timeout=1)):
        until(lambda: "up" in site.log(run))
        asked = time.monotonic()
        assert run.cancel() == "Cancelling"
        until(lambda: run.item.state_type is StateType.CANCELLED)
        assert time.monotonic() - asked < 60
    state = run.item.state
    assert state is not None
    assert (state.message or "").startswith("Stopped after")
    assert state.data["signal"] == ("SIGKILL" if deaf else "SIGTERM")
    assert not [pid for pid in Path("/proc").glob("[0-9]*/cmdline") if b"61.5" in _read(pid)]


def test_items_run_in_the_order_of_their_priorities(site: Site) -> None:
    order = site.folder / "order"
    site.job(f'echo "$WANDB_NAME" >> {order}')
    site.add(*({"priority": word, "name": word} for word in ("low", "medium", "high", "critical")))
    site.work_off()
    assert order.read_text().split() == ["critical", "high", "medium", "low"]


def test_paused_queue_starts_nothing_until_it_goes_on(site: Site) -> None:
    site.job("true")
    site.queue.pause()
    (run,) = site.add()
    with running(site.agent(poll_seconds=0.5)):
        time.sleep(2)
        assert run.state == "queued"
        site.queue.resume()
        run.wait_until_finished(timeout=DEADLINE_SECONDS)


def test_two_agents_hold_the_limit_of_a_queue(site: Site) -> None:
    stamps = site.folder / "stamps"
    site.queue.set_concurrency_limit(2)
    site.job(f"echo + >> {stamps}; sleep 0.7; echo - >> {stamps}")
    runs = site.add(*({"name": f"n{number}"} for number in range(8)))
    with running(site.agent("one", max_jobs=4, poll_seconds=1)), running(site.agent("two", max_jobs=4, poll_seconds=1)):
        for run in runs:
            run.wait_until_finished(timeout=60)
    now = most = 0
    for stamp in stamps.read_text().split():
        now += 1 if stamp == "+" else -1
        most = max(most, now)
    assert most <= 2
    assert len(stamps.read_text().split()) == 16


@pytest.mark.parametrize("wrong", [{"jobb": "x"}, {"overrides": "x"}, {"overrides": {"run_config": {"x": 2**64}}}])
def test_item_made_in_the_ui_that_is_no_spec_is_refused_by_the_server(site: Site, wrong: dict[str, Any]) -> None:
    with pytest.raises(PrefectHTTPStatusError, match="409"):
        run_deployment(f"launch/queue-{site.name}", parameters=wrong)
    assert not site.queue.items


def test_item_with_wrong_parameters_fails_and_the_agent_goes_on(site: Site) -> None:
    site.job("true")
    by_hand = [run_deployment(f"launch/queue-{site.name}", parameters=each) for each in ({}, {"job": "nobody"})]
    unchecked = [site.unchecked_item(each) for each in ({"jobb": "x"}, {"job": site.name, "overrides": "x"})]
    bad = [*(flow_run.id for flow_run in by_hand), *(item.id for item in unchecked)]
    (good,) = site.add()
    site.work_off()
    for item_id, words in zip(
        bad, ("Exactly one of", "Unknown job", "Unknown launch option 'jobb'", "overrides"), strict=True
    ):
        state = site.api.queued_run(item_id).item.state
        assert state is not None
        assert state.type is StateType.FAILED
        assert (state.message or "").startswith("[agent] ")
        assert words in (state.message or "")
    assert good.state == "completed"


def test_agent_is_on_the_pools_list_while_it_works(site: Site) -> None:
    def workers() -> list[str]:
        found = site.api.call(lambda session: session.server.list_workers(site.name))
        return [worker.name for worker in found]

    with running(site.agent()):
        until(lambda: workers() == [f"{site.name}-box"])
    assert workers() == []


def test_event_starts_an_item_long_before_the_next_poll(site: Site) -> None:
    site.job("true")
    with running(site.agent(poll_seconds=60)):
        site.add()[0].wait_until_finished(timeout=DEADLINE_SECONDS)
        site.add()[0].wait_until_finished(timeout=DEADLINE_SECONDS)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
