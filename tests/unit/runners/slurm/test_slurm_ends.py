"""Jobs as squeue shows them, and how a job ended by its exit file and by what Slurm says."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.errors import RunLostError, SpecError
from prefect_launch.runners.base import ExitStatus
from prefect_launch.runners.remote.jobs import RemoteState
from prefect_launch.runners.remote.slurm import folder, script
from prefect_launch.runners.remote.slurm.ends import status_of
from prefect_launch.runners.remote.slurm.jobs import SlurmJob, comment, parse_job

RAN = folder.JobFolder(node="node1")


def left(code: int | None, *, stopped: bool = False, seconds_ago: float = 0.0) -> folder.JobFolder:
    written = folder.WrittenExit(code, stopped, None, None, time.time() - seconds_ago)
    return folder.JobFolder(node="node1", exit=written)


def job(state: str, reason: str = "None", raw_exit: int = 0, **more: Any) -> SlurmJob:
    return SlurmJob(id="7", state=state, reason=reason, raw_exit=raw_exit, nodes="node1", **more)


def ended(shown: SlurmJob | None, files: folder.JobFolder) -> ExitStatus:
    status = status_of(shown, files)
    assert status is not None
    assert status.state is RemoteState.ENDED
    assert status.exit is not None
    return status.exit


def test_line_of_squeue_is_read_with_a_comment_that_has_its_separator() -> None:
    about = comment({"prefect-launch.item": "a|b", "queue": "ü"}, Path("/runs/x|y"))
    found = parse_job(f"12|PENDING|Resources|0||launch-a-1|{about}|")
    assert found is not None
    assert (found.id, found.state, found.reason, found.name) == ("12", "PENDING", "Resources", "launch-a-1")
    assert (found.labels, found.run_dir) == ({"prefect-launch.item": "a|b", "queue": "ü"}, Path("/runs/x|y"))


@pytest.mark.parametrize("line", ["", "x", "12_[0-9]|PENDING|None|0||a||", "1|RUNNING|None|zero||a||"])
def test_line_that_is_none_of_ours_is_passed_over(line: str) -> None:
    assert parse_job(line) is None


@pytest.mark.parametrize("note", ["", "(null)", "by hand", "[1]", '{"labels": 3}', '{"run_dir": "/x"}'])
def test_job_of_somebody_else_has_no_folder_of_ours(note: str) -> None:
    found = parse_job(f"12|RUNNING|None|0|node1|train|{note}|")
    assert found is not None
    assert found.run_dir is None


@pytest.mark.parametrize(
    ("shown", "state"),
    [
        (job("PENDING", "JobHeldUser"), RemoteState.HELD),
        (job("PENDING", "Priority"), RemoteState.PENDING),
        (job("CONFIGURING"), RemoteState.PENDING),
        (job("RUNNING"), RemoteState.RUNNING),
        (job("COMPLETING"), RemoteState.RUNNING),
        (job("SUSPENDED"), RemoteState.RUNNING),
    ],
)
def test_job_that_has_not_ended_is_where_slurm_shows_it(shown: SlurmJob, state: RemoteState) -> None:
    status = status_of(shown, folder.JobFolder())
    assert status is not None
    assert status.state is state


@pytest.mark.parametrize("reason", ["Resources", "Priority", "QOSMaxJobsPerUserLimit", "ReqNodeNotAvail"])
def test_reason_of_a_wait_is_told_in_slurms_own_word(reason: str) -> None:
    status = status_of(job("PENDING", reason), folder.JobFolder())
    assert status is not None
    assert (status.reason, status.refusal) == (reason, None)


@pytest.mark.parametrize("reason", ["PartitionTimeLimit", "BadConstraints", "InvalidQOS"])
def test_job_that_can_never_start_is_refused_with_the_reason(reason: str) -> None:
    status = status_of(job("PENDING", reason), folder.JobFolder())
    assert status is not None
    assert isinstance(status.refusal, SpecError)
    assert reason in str(status.refusal)
    assert "never" in status.reason


def test_exit_file_is_trusted_when_the_controller_starts_the_job_again_or_has_forgotten_it() -> None:
    for shown in (None, job("PENDING", "launch failed requeued held"), job("PENDING", "BeginTime")):
        end = ended(shown, left(4))
        assert (end.exit_code, end.error) == (4, None)


@pytest.mark.parametrize("code", [0, 1, 137])
@pytest.mark.parametrize("state", ["RUNNING", "COMPLETING"])
def test_cause_of_an_end_is_awaited_for_a_while(state: str, code: int) -> None:
    status = status_of(job(state), left(code))
    assert status is not None
    assert status.state is RemoteState.RUNNING
    assert ended(job(state), left(code, seconds_ago=120)).exit_code == code


@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "BOOT_FAIL", "LAUNCH_FAILED", "RECONFIG_FAIL", "REVOKED"])
def test_success_stands_when_slurm_says_nothing_against_it(state: str) -> None:
    assert ended(job(state), left(0)).succeeded


@pytest.mark.parametrize("files", [RAN, left(137), left(1), left(0)])
def test_cause_from_outside_is_told(files: folder.JobFolder) -> None:
    assert ended(job("OUT_OF_MEMORY", raw_exit=9), files).oom_killed
    assert ended(job("PREEMPTED", raw_exit=15), files).preempted
    assert ended(job("TIMEOUT", "TimeLimit", 9), files).timed_out
    assert "NODE_FAIL" in (ended(job("NODE_FAIL", "NodeDown", 15), files).error or "")
    cancelled = ended(job("CANCELLED", raw_exit=15), files)
    assert "somebody cancelled it" in (cancelled.error or "")
    assert not cancelled.stopped
    for state in ("OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT", "DEADLINE", "NODE_FAIL", "CANCELLED"):
        assert not ended(job(state), files).succeeded


def test_who_cancelled_is_told_where_it_is_known() -> None:
    by = job("CANCELLED", cancelled_by="the user ann")
    assert ended(by, RAN).describe() == "CANCELLED: the user ann cancelled it in Slurm, and not this agent"
    assert ended(by, folder.JobFolder()).describe() == "cancelled in Slurm by the user ann before it ran"


def test_mark_of_the_memory_limit_is_no_signal() -> None:
    end = ended(job("OUT_OF_MEMORY", raw_exit=125), RAN)
    assert (end.oom_killed, end.signal) == (True, "SIGKILL")


def test_stop_that_was_asked_for_is_no_cancel_by_hand() -> None:
    assert (ended(job("CANCELLED"), left(143, stopped=True)).error) is None
    killed = ended(job("CANCELLED", raw_exit=9), folder.JobFolder(node="node1", is_stop_asked=True))
    assert (killed.stopped, killed.signal, killed.error) == (True, "SIGKILL", None)


def test_job_that_was_cancelled_before_it_ran_says_so() -> None:
    end = ended(job("CANCELLED"), folder.JobFolder())
    assert (end.exit_code, end.error) == (None, "cancelled in Slurm before it ran")


@pytest.mark.parametrize(
    ("files", "is_lost"), [(folder.JobFolder(), True), (folder.JobFolder(is_stop_asked=True), False), (RAN, False)]
)
def test_only_a_job_that_others_cancel_while_it_waits_is_refused_its_start(
    files: folder.JobFolder, *, is_lost: bool
) -> None:
    status = status_of(job("CANCELLED"), files)
    assert status is not None
    assert isinstance(status.refusal, RunLostError) is is_lost


def test_node_that_does_not_see_the_folder_is_named_with_the_next_step() -> None:
    end = ended(job("FAILED", "NonZeroExitCode", script.FOLDER_MISSING << 8), folder.JobFolder())
    assert "node1 does not see" in end.describe()
    assert "PREFECT_LAUNCH_HOME" in end.describe()


def test_second_start_after_an_end_that_nobody_knows_is_not_a_result() -> None:
    end = ended(job("FAILED", "NonZeroExitCode", script.SECOND_START << 8), RAN)
    assert "second time" in end.describe()
    assert not end.succeeded


@pytest.mark.parametrize(
    "shown", [job("FAILED", "JobLaunchFailure", 4021), job("PENDING", "launch failed requeued held")]
)
def test_job_that_could_not_be_launched_says_where_to_look(shown: SlurmJob) -> None:
    end = ended(shown, folder.JobFolder())
    assert end.exit_code is None
    assert "slurmd's log" in end.describe()


def test_killed_script_is_a_killed_job() -> None:
    end = ended(job("FAILED", "JobLaunchFailure", 9), RAN)
    assert (end.exit_code, end.signal) == (137, "SIGKILL")


def test_job_that_slurm_forgot_without_an_exit_file_is_gone() -> None:
    assert status_of(None, RAN) is None


def test_program_that_was_not_found_is_named() -> None:
    files = left(127)._replace(missing_program="no-such")
    assert "'no-such' was not found on the node node1" in ended(job("FAILED", raw_exit=127 << 8), files).describe()


def test_broken_exit_file_is_as_none(tmp_path: Path) -> None:
    (tmp_path / script.FOLDER).mkdir()
    path = tmp_path / script.FOLDER / script.EXIT
    for content in ("", "{", "[]", json.dumps({"exit_code": 3})):
        path.write_text(content)
        assert folder.look(tmp_path).exit is None
    path.write_text('{"exit_code": 3, "stopped": false, "started_at": "1.5", "ended_at": "2.%N"}')
    found = folder.look(tmp_path).exit
    assert found is not None
    assert (found.exit_code, found.ended_at.timestamp() if found.ended_at else None) == (3, 2.0)
