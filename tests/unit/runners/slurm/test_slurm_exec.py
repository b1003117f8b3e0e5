"""How a command gets inside a job of Slurm: a step of the job, which takes the job's environment from the kernel."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from prefect_launch.errors import InfrastructureError
from prefect_launch.runners.base import Labels
from prefect_launch.runners.remote.slurm.jobs import comment
from prefect_launch.runners.remote.slurm.runner import SlurmRunner
from prefect_launch.runners.remote.slurm.script import inside_script
from prefect_launch.testing.runner_contract import ODD
from tests.unit.runners.slurm.site import Site

LABELS = {Labels.ITEM: "i", Labels.CLAIM: "c"}


def shown(state: str) -> str:
    return f"7|{state}|None|0|node1|launch-i-1|{comment(LABELS, Path('/shared/runs/i'))}|"


@pytest.mark.parametrize(("has_terminal", "more"), [(True, ["--pty"]), (False, [])])
async def test_command_is_a_step_beside_the_job_with_a_terminal_where_the_caller_has_one(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_terminal: bool, more: list[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "6")  # The caller may be in another job.
    monkeypatch.setenv("SLURM_CONF", str(tmp_path))
    site.prints("squeue", shown("RUNNING"))

    inside = await SlurmRunner(tmp_path / "home").exec_plan("7@c", ["ls", "-l"], has_terminal=has_terminal)

    step = ["srun", "--jobid=7", "--overlap", "--nodes=1", "--ntasks=1", "--export=PATH,TERM", *more, "sh", "-c"]
    assert list(inside.argv[: len(step)]) == step
    assert inside.argv[len(step) + 1 :] == ("sh", "LAUNCH_OUTPUT_DIR=/shared/runs/i/outputs", "ls", "-l")
    assert {name for name in inside.env or {} if name.startswith("SLURM")} == {"SLURM_CONF"}


@pytest.mark.parametrize(
    ("lines", "handle", "why"),
    [
        ([shown("PENDING")], "7@c", "does not run: PENDING"),
        ([shown("COMPLETED")], "7@c", "it has ended"),
        ([shown("RUNNING")], "7@an-older-claim", "another job has its number"),
        ([], "7@c", "it has ended"),
    ],
)
async def test_job_that_does_not_run_takes_no_command(
    site: Site, tmp_path: Path, lines: list[str], handle: str, why: str
) -> None:
    site.prints("squeue", *lines)

    with pytest.raises(InfrastructureError, match=why):
        await SlurmRunner(tmp_path / "home").exec_plan(handle, ["ls"], has_terminal=False)


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_command_has_the_environment_and_the_folder_of_a_process_of_the_job(tmp_path: Path, shell: str) -> None:
    mark = f"LAUNCH_OUTPUT_DIR={tmp_path}/a b%j/outputs"
    odd = f"{ODD}'$(touch {tmp_path}/evaluated)'\n\n"
    path, bad = os.environ["PATH"], os.fsdecode(b"\xff'")
    env = {"PATH": path, "LAUNCH_OUTPUT_DIR": mark.partition("=")[2], "ODD": odd, "BAD": bad, "UID": "5", "F%%": "()"}
    job = subprocess.Popen(["sleep", "60"], env=env, cwd=tmp_path)
    show = ["sh", "-c", 'printf "%s|" "$ODD" "$BAD" "$PWD" "$@"; exit 7', "sh", odd]
    try:
        done = subprocess.run([shell, *inside_script(mark, show)[1:]], env={"PATH": path}, capture_output=True)
    finally:
        job.kill()
        job.wait()

    assert (done.returncode, done.stderr) == (7, b"")
    assert os.fsdecode(done.stdout) == f"{odd}|{bad}|{tmp_path}|{odd}|"
    assert not (tmp_path / "evaluated").exists()
    gone = subprocess.run(inside_script(mark, show), capture_output=True, text=True)
    assert (gone.returncode, gone.stdout) == (1, "")
    assert "it has ended" in gone.stderr
