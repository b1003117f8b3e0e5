"""Statuses of jobs as squeue, their files and sacct make them, and stops that Slurm takes or does not take."""

from __future__ import annotations

import asyncio
import json
import os
import pwd
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.core import supervision
from prefect_launch.errors import UnreachableError
from prefect_launch.runners.base import ExitStatus, Labels, RunPlan
from prefect_launch.runners.remote.jobs import RemoteJob, RemoteState
from prefect_launch.runners.remote.slurm import accounting, folder, script, statuses
from prefect_launch.runners.remote.slurm import runner as slurm_runner
from prefect_launch.runners.remote.slurm.accounting import parse_line
from prefect_launch.runners.remote.slurm.jobs import comment
from prefect_launch.runners.remote.slurm.records import JobRecord, JobRecords
from prefect_launch.runners.remote.slurm.runner import SlurmRunner
from tests.support.waiting import until
from tests.unit.runners.slurm.site import Site

ME = pwd.getpwuid(os.geteuid()).pw_name


class Jobs:
    """Recorded jobs of one agent, with the files that they have left."""

    def __init__(self, place: Path) -> None:
        self.folder = place
        self.records = JobRecords(place / "home" / "slurm" / "jobs")
        self.runner = SlurmRunner(place / "home")

    def add(self, number: int, *, exit_code: int | None = None) -> None:
        run_dir = self.folder / "runs" / str(number)
        (run_dir / script.FOLDER).mkdir(parents=True)
        (run_dir / script.FOLDER / script.STARTED).write_text("node1 1\n")
        self.records.add(JobRecord(id=str(number), name=name(number), labels=labels(number), run_dir=run_dir))
        if exit_code is not None:
            self.leave(number, exit_code)

    def leave(self, number: int, exit_code: int) -> None:
        written = {"exit_code": exit_code, "stopped": False, "started_at": "1.0", "ended_at": "2.0"}
        (self.folder / "runs" / str(number) / script.FOLDER / script.EXIT).write_text(json.dumps(written))

    def shown(self, number: int, state: str, reason: str = "None", code: int = 0, *, claim: str = "c") -> str:
        about = comment(labels(number, claim), self.folder / "runs" / str(number))
        return f"{number}|{state}|{reason}|{code}|node1|{name(number)}|{about}|"

    async def look(self, *numbers: int) -> dict[str, RemoteJob]:
        return dict(await self.runner.poll([str(number) for number in numbers]))

    async def end(self, number: int) -> ExitStatus:
        job = (await self.look(number))[str(number)]
        assert job.status.state is RemoteState.ENDED, job
        assert job.status.exit is not None
        return job.status.exit


def name(number: int) -> str:
    return f"launch-{number}-1"


def labels(number: int, claim: str = "c") -> dict[str, str]:
    return {"prefect-launch.item": str(number), "prefect-launch.claim": claim}


@pytest.fixture
def made(tmp_path: Path, site: Site) -> Jobs:
    return Jobs(tmp_path)


#: As a real sacct of 22.05 with slurmdbd has printed them, with `--parsable2 --allocations`.
SACCT = {
    "COMPLETED|0:0|node1": "COMPLETED",
    "FAILED|7:0|node1": "FAILED",
    "FAILED|0:11|node1": "FAILED",
    "CANCELLED by 0|0:0|None assigned": "CANCELLED",
    "CANCELLED by 0|0:0|node2": "CANCELLED",
    "PREEMPTED|0:0|node1": "PREEMPTED",
    "TIMEOUT|0:0|node1": "TIMEOUT",
    "NODE_FAIL|0:0|node2": "NODE_FAIL",
    "PENDING|0:0|node1": "PENDING",
}


@pytest.mark.parametrize("line", SACCT)
def test_line_of_sacct_is_read_with_a_name_that_has_its_separator(line: str) -> None:
    state, code, nodes = line.split("|")
    job = parse_line(f"12|{state}|{code}|{nodes}|a|b")
    assert job is not None
    assert (job.id, job.state, job.name) == ("12", SACCT[line], "a|b")
    assert job.cancelled_by == ("the user root" if state.endswith("by 0") else "")
    assert f"{job.raw_exit >> 8}:{job.raw_exit & 127}" == code


@pytest.mark.parametrize("line", ["", "x", "12.batch|COMPLETED|0:0|node1|a", "12|COMPLETED|zero|node1|a", "12||0:0||a"])
def test_line_of_sacct_that_is_no_job_is_passed_over(line: str) -> None:
    assert parse_line(line) is None


def test_user_without_a_name_is_told_by_number() -> None:
    job = parse_line("12|CANCELLED by 3999999|0:15|node1|a")
    assert job is not None
    assert job.cancelled_by == "the user 3999999"


async def test_job_that_exits_0_when_it_is_preempted_is_preempted(made: Jobs, site: Site) -> None:
    made.add(7, exit_code=0)
    site.prints("squeue", made.shown(7, "COMPLETING"))
    assert (await made.look(7))["7"].status.state is RemoteState.RUNNING
    site.prints("squeue", made.shown(7, "PREEMPTED"))
    end = await made.end(7)
    assert (end.preempted, end.succeeded) == (True, False)


async def test_jobs_that_squeue_shows_no_more_are_asked_for_in_one_call_of_sacct(made: Jobs, site: Site) -> None:
    for number, code in ((7, 0), (8, None), (9, None), (10, 0)):
        made.add(number, exit_code=code)
    site.prints(
        "sacct",
        f"7|PREEMPTED|0:0|node1|{name(7)}",
        f"8|TIMEOUT|0:0|node1|{name(8)}",
        f"9|CANCELLED by {os.geteuid()}|0:15|node1|{name(9)}",
        "10|PREEMPTED|0:0|node1|somebody's",
    )
    found = await made.look(7, 8, 9, 10)
    ends = {number: job.status.exit or ExitStatus(exit_code=None) for number, job in found.items()}
    assert ends["7"].preempted
    assert ends["8"].timed_out
    assert f"the user {ME} cancelled it" in ends["9"].describe()
    assert ends["10"].succeeded
    assert site.called().count("sacct ") == site.called().count("squeue ") == 1


async def test_who_cancelled_is_asked_of_accounting_which_may_know_it_a_moment_later(
    made: Jobs, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.add(7, exit_code=0)
    site.prints("squeue", made.shown(7, "CANCELLED"))
    site.prints("sacct", f"7|RUNNING|0:0|node1|{name(7)}")
    assert (await made.look(7))["7"].status.state is RemoteState.RUNNING
    site.prints("sacct", f"7|CANCELLED by {os.geteuid()}|0:0|node1|{name(7)}")
    assert f"the user {ME} cancelled it" in (await made.end(7)).describe()
    site.prints("sacct")
    monkeypatch.setattr(accounting, "_LAG_SECONDS", 0.0)
    for _ in range(2):
        assert "somebody cancelled it" in (await made.end(7)).describe()


async def test_site_without_accounting_is_asked_for_it_once(made: Jobs, site: Site) -> None:
    made.add(7, exit_code=0)
    site.prints("squeue", made.shown(7, "CANCELLED"))
    for _ in range(3):
        assert "somebody cancelled it" in (await made.end(7)).describe()
    assert site.called().count("sacct ") == 1


async def test_job_that_nobody_knows_is_not_given_up_while_accounting_is_away(
    made: Jobs, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounting, "_LAG_SECONDS", 0.0)
    made.add(7)
    site.program("sacct", "echo 'sacct: error: slurmdbd: Connection refused' >&2; exit 1")
    for _ in range(2):
        assert (await made.look(7))["7"].status.state is RemoteState.RUNNING
    site.prints("sacct", f"7|FAILED|7:0|node1|{name(7)}")
    assert (await made.end(7)).exit_code == 7
    site.prints("sacct")
    assert await made.look(7) == {}


async def test_poll_reads_the_files_of_those_jobs_only_that_changed(
    made: Jobs, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    real = folder.look

    def look(run_dir: Path) -> folder.JobFolder:
        looked.append(run_dir.name)
        return real(run_dir)

    monkeypatch.setattr(folder, "look", look)
    for number in range(1, 51):
        made.add(number)
    numbers = range(1, 51)
    site.prints("squeue", *(made.shown(number, "RUNNING") for number in numbers))
    await made.look(*numbers)
    assert len(looked) == 50
    looked.clear()
    made.leave(3, 4)
    site.prints("squeue", *(made.shown(number, "FAILED" if number == 3 else "RUNNING") for number in numbers))
    found = await made.look(*numbers)
    assert looked == ["3"]
    assert found["3"].status.exit is not None
    assert found["3"].status.exit.exit_code == 4
    assert site.called().count("squeue ") == 2
    looked.clear()
    monkeypatch.setattr(statuses, "_LOOK_SECONDS", -1.0)
    await made.look(*numbers)
    assert len(looked) == 50


async def test_jobs_that_nobody_follows_any_more_are_not_remembered(
    made: Jobs, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (7, 8):
        made.add(number)
    site.prints("squeue", made.shown(7, "RUNNING"), made.shown(8, "RUNNING"))
    await made.look(7, 8)
    assert set(made.runner._statuses._looks) == {"7", "8"}
    monkeypatch.setattr(statuses, "_LOOK_SECONDS", -1.0)
    await made.look(8)
    assert set(made.runner._statuses._looks) == {"8"}


async def test_number_that_a_controller_gave_again_is_another_job(made: Jobs, site: Site) -> None:
    made.add(7)
    site.prints("squeue", made.shown(7, "RUNNING", claim="another"))
    assert await made.look(7) == {}
    await made.runner.delete("7")
    assert "scancel" not in site.called()
    assert made.records.all() == []


async def test_every_scancel_names_the_job_beside_its_number(made: Jobs, site: Site) -> None:
    made.add(7)
    site.prints("squeue", made.shown(7, "PENDING", "Priority"))
    await made.runner.cancel("7", 30.0)
    site.program("scancel", f"echo '{made.shown(7, 'CANCELLED')}' > {site.programs.parent}/squeue.lines")
    await made.runner.delete("7")
    await made.runner.aclose()
    asked = [line for line in site.called().splitlines() if line.startswith("scancel ")]
    assert len(asked) == 3
    assert all(f"--name={name(7)} " in line and line.endswith(" 7") for line in asked)


async def test_stop_that_slurm_did_not_take_is_told(made: Jobs, site: Site) -> None:
    made.add(7)
    words = "Kill job error on job id 7: Unable to contact slurm controller (connect failure)"
    site.program("scancel", f"echo 'scancel: error: {words}' >&2; exit 1")
    with pytest.raises(UnreachableError, match="Unable to contact"):
        await made.runner.cancel("7", 1.0)


async def test_stop_of_a_job_that_has_just_ended_is_no_error(made: Jobs, site: Site) -> None:
    made.add(7)
    site.program("scancel", "echo 'scancel: error: Kill job error on job id 7: Invalid job id specified' >&2; exit 1")
    await made.runner.cancel("7", 1.0)
    await made.runner.aclose()


async def test_kill_after_the_grace_is_tried_until_slurm_takes_it(
    made: Jobs, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm_runner, "_SCRIPT_SECONDS", 0.0)
    monkeypatch.setattr(slurm_runner, "_KILL_AGAIN_SECONDS", 0.01)
    made.add(7)
    site.prints("squeue", made.shown(7, "RUNNING"))
    killed, words = site.programs.parent / "killed", "Socket timed out on send/recv operation"
    site.program(
        "scancel",
        f'case "$*" in *-*-*state*|*--signal*) exit 0;; esac; echo x >> {killed}\n'
        f'[ "$(wc -l < {killed})" -ge 3 ] || {{ echo "{words}" >&2; exit 1; }}',
    )
    await made.runner.cancel("7", 0.0)
    await until(lambda: killed.exists() and killed.read_text() == "x\n" * 3)
    await made.runner.aclose()


async def test_kill_that_slurm_refuses_is_told_and_not_tried_again(
    made: Jobs, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slurm_runner, "_SCRIPT_SECONDS", 0.0)
    monkeypatch.setattr(slurm_runner, "_KILL_AGAIN_SECONDS", 0.01)
    made.add(7)
    site.program(
        "scancel",
        'case "$*" in *--state*|*--signal*) exit 0;; esac\n'
        'echo "scancel: error: Kill job error on job id 7: Access/permission denied" >&2; exit 1',
    )
    await made.runner.cancel("7", 0.0)
    await asyncio.wait_for(made.runner._kills.done(), 60)
    assert "Access/permission denied" in caplog.text
    assert site.called().count("scancel ") == 3
    await made.runner.aclose()


async def test_kill_that_fails_unforeseen_is_told_and_tried_again(
    made: Jobs, site: Site, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(slurm_runner, "_SCRIPT_SECONDS", 0.0)
    monkeypatch.setattr(supervision, "FIRST_PAUSE_SECONDS", 0.01)
    made.add(7)
    starts, failures = subprocess.Popen, [RuntimeError("can't start new thread")]

    def start(command: list[str], **options: Any) -> Any:
        if failures and command[-2:] == [f"--name={name(7)}", "7"]:
            raise failures.pop()
        return starts(command, **options)

    monkeypatch.setattr(subprocess, "Popen", start)
    await made.runner.cancel("7", 0.0)
    await asyncio.wait_for(made.runner._kills.done(), 60)
    assert "task-failed kill of job 7 of slurm after 0 s" in caplog.text
    assert "can't start new thread" in caplog.text
    assert site.called().splitlines()[-1] == f"scancel --name={name(7)} 7"


async def test_runner_that_is_closed_has_left_no_kill_behind(made: Jobs, site: Site) -> None:
    made.add(7)
    before = asyncio.all_tasks()
    await made.runner.cancel("7", 60.0)
    assert asyncio.all_tasks() != before
    await made.runner.aclose()
    assert asyncio.all_tasks() == before


def test_record_of_a_name_is_found_among_many_without_reading_them(tmp_path: Path) -> None:
    records = JobRecords(tmp_path)
    for number in range(1, 20):
        records.add(JobRecord(id=str(number), name=name(number), labels={}, run_dir=tmp_path))
    for path in tmp_path.glob("1.*"):
        path.write_text("{")
    found = records.named(name(12))
    assert found is not None
    assert found.id == "12"
    assert records.get("1") is None
    assert len(records.all()) == 18
    records.remove(found)
    assert records.get("12") is None


def test_record_that_several_write_at_once_is_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    records, record = JobRecords(tmp_path), JobRecord(id="1", name=name(1), labels={}, run_dir=tmp_path)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: records.add(record), range(400)))
    assert records.all() == [record]
    assert len(list(tmp_path.iterdir())) == 1


def test_files_of_a_job_that_several_write_at_once_are_whole_and_none_is_left(tmp_path: Path) -> None:
    secret = {script.ENVIRONMENT: "TOKEN=secret"}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: folder.write(tmp_path, secret), range(400)))
    (written,) = (tmp_path / script.FOLDER).iterdir()
    assert written.read_text() == "TOKEN=secret"
    written.rename(written.with_name(".cut-off.part"))
    folder.drop_copied(tmp_path)
    assert list((tmp_path / script.FOLDER).iterdir()) == []


async def test_job_whose_number_was_given_again_is_told_by_the_exit_that_it_left(
    made: Jobs, site: Site, tmp_path: Path
) -> None:
    made.add(7, exit_code=0)
    (older,) = made.records.all()
    (older.run_dir / script.FOLDER / script.STDOUT).write_text("mine\n")
    os.utime(next((tmp_path / "home" / "slurm" / "jobs").iterdir()), (1, 1))
    run_dir = tmp_path / "runs" / "newer"
    run_dir.mkdir()
    folder.write(run_dir, {script.STDOUT: "another's\n"})
    newer = JobRecord(id="7", name="launch-newer-1", labels={**labels(8), Labels.CLAIM: "d"}, run_dir=run_dir)
    made.records.add(newer)
    about = f"{newer.name}|{comment(newer.labels, run_dir)}|"
    site.prints("squeue", f"7|RUNNING|None|0|node1|{about}")
    assert made.records.get("7") == newer

    states = {job.name: job.status.state for job in await made.runner.list_jobs({})}
    assert states == {older.name: RemoteState.ENDED, newer.name: RemoteState.RUNNING}
    plan = RunPlan(item_id="7", run_id="r", run_dir=older.run_dir, image="ubuntu", command=("true",))
    end = await made.runner.watch("7@c", plan)
    assert end.succeeded, end
    assert plan.log_path.read_text() == "mine\n"

    site.prints("squeue", f"7|CANCELLED|None|0|node1|{about}")
    await made.runner.delete("7")
    assert made.records.all() == [older]
    assert (await made.end(7)).succeeded
