"""Agents that are killed and servers that go away: nothing is lost, nothing runs twice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from prefect_launch.core.states import StateType
from prefect_launch.server.http import DEFAULT_PATIENCE_SECONDS
from tests.support.agent_thread import running
from tests.support.live import Site, until
from tests.support.relay import relay_to

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess
    from tests.support.processes import ChildProcess

LINES = 40
#: Numbered lines for four seconds, then an end of its own.
COUNT_SLOWLY = f"echo x >> ../../ran; for n in $(seq {LINES}); do echo line $n; sleep 0.1; done; exit 5"


def test_killed_agents_run_goes_on_under_the_next_with_its_whole_log_and_its_exit_code(
    site: Site, agents: list[ChildProcess]
) -> None:
    site.job(COUNT_SLOWLY)
    (run,) = site.add()
    agents.append(site.agent_process())
    until(lambda: "line 5" in site.log(run))
    agents[0].kill()
    assert run.state == "running"
    time.sleep(0.5)
    site.work_off()
    assert [state for state in site.states(run) if state != "Building"] == ["Queued", "Pending", "Running", "Failed"]
    assert "exit code 5" in run.message
    assert site.log(run).splitlines() == [f"line {number}" for number in range(1, LINES + 1)]
    assert site.flow_run(run).run_count == 1


def test_run_that_ended_while_no_agent_was_there_keeps_its_exit_code(site: Site, agents: list[ChildProcess]) -> None:
    site.job("echo up; sleep 2; echo over; exit 6")
    (run,) = site.add()
    agents.append(site.agent_process())
    until(lambda: "up" in site.log(run))
    agents[0].kill()
    time.sleep(2.5)
    site.work_off()
    assert "exit code 6" in run.message
    assert site.log(run) == "up\nover"


def test_run_that_was_cancelled_while_no_agent_was_there_is_stopped(site: Site, agents: list[ChildProcess]) -> None:
    site.job("echo up; exec sleep 300")
    (run,) = site.add()
    agents.append(site.agent_process())
    until(lambda: "up" in site.log(run))
    agents[0].kill()
    assert run.cancel() == "Cancelling"
    site.work_off()
    assert run.item.state_type is StateType.CANCELLED


@pytest.mark.timeout(180)
def test_server_that_is_away_for_longer_than_a_call_waits_gets_all_of_a_running_job_when_it_is_back(
    prefect_server: PrefectServerProcess, site: Site
) -> None:
    site.job("for n in $(seq 10); do echo line $n; sleep 1; done; exit 3")
    short, other = site.add({}, {"run_id": "second"})
    with relay_to(prefect_server.port) as way, running(site.by(way.api_url).agent(poll_seconds=1)):
        until(lambda: "line 1" in site.log(short))
        way.cut()
        time.sleep(DEFAULT_PATIENCE_SECONDS + 4)  # the job ends meanwhile
        way.mend()
        until(lambda: short.item.is_terminal)
        assert "exit code 3" in short.message
        assert site.log(short).splitlines() == [f"line {number}" for number in range(1, 11)]
        until(lambda: other.item.is_terminal)
    assert site.states(other)[-1] == "Failed"


@pytest.mark.timeout(180)
def test_agent_that_starts_before_its_server_waits_for_it(
    prefect_server: PrefectServerProcess, site: Site, agents: list[ChildProcess]
) -> None:
    site.job("echo hello")
    (run,) = site.add()
    with relay_to(prefect_server.port) as way:
        way.cut()
        agents.append(site.by(way.api_url).agent_process("box", "--until-empty"))
        time.sleep(DEFAULT_PATIENCE_SECONDS + 4)
        assert agents[0].running, agents[0].tail()
        way.mend()
        until(lambda: not agents[0].running)
    assert run.state == "completed"
