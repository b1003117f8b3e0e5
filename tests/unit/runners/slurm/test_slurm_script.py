"""Script of a Slurm job, run by the machine's own shell: it runs once, and writes down how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from prefect_launch.runners.remote.slurm import folder, script


class Job:
    """A job's folder, and its script as Slurm starts it."""

    def __init__(self, run_dir: Path, command: list[str], env: dict[str, str] | None = None) -> None:
        self.run_dir = run_dir
        self.folder = run_dir / script.FOLDER
        (run_dir / "cwd").mkdir(parents=True)
        variables = {"PATH": os.environ["PATH"], **(env or {})}
        text = script.job_script(self.folder, run_dir / "cwd", command)
        folder.write(run_dir, {script.ENVIRONMENT: script.environment_file(variables), script.SCRIPT: text})

    def start(self) -> subprocess.Popen[bytes]:
        # As Slurm does. A shell cannot trap a signal that it ignores from the start, as under nohup.
        command = ["env", "--default-signal", "sh", str(self.folder / script.SCRIPT)]
        return subprocess.Popen(command, cwd="/", env={"PATH": os.environ["PATH"]})

    def run(self) -> int:
        return self.start().wait(60)

    def said(self, name: str = script.STDOUT) -> str:
        return (self.folder / name).read_text()


def wait_until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "a 'b' %j $HOME"


@pytest.mark.parametrize("code", [0, 3, 137])
def test_exit_code_is_written_down_and_is_the_scripts_own(place: Path, code: int) -> None:
    job = Job(place, ["sh", "-c", f"echo out; echo err >&2; exit {code}"])
    assert job.run() == code
    found = folder.look(place)
    assert found.exit is not None
    assert (found.exit.exit_code, found.exit.stopped) == (code, False)
    assert found.exit.started_at is not None
    assert (job.said(), job.said(script.STDERR)) == ("out\n", "err\n")


def test_second_start_runs_nothing_and_leaves_the_first_end_alone(place: Path) -> None:
    job = Job(place, ["sh", "-c", "echo ran; exit 4"])
    assert job.run() == 4
    assert job.run() == script.SECOND_START
    assert job.said() == "ran\n"
    found = folder.look(place).exit
    assert found is not None
    assert found.exit_code == 4


def test_two_starts_at_once_run_the_job_once(place: Path) -> None:
    job = Job(place, ["sh", "-c", "echo ran; sleep 0.2"])
    both = [job.start(), job.start()]
    assert sorted(one.wait(60) for one in both) == [0, script.SECOND_START]
    assert job.said() == "ran\n"


def test_node_that_does_not_see_the_folder_says_so(place: Path) -> None:
    job = Job(place, ["true"])
    text = (job.folder / script.SCRIPT).read_text()
    elsewhere = text.replace(str(job.folder).replace("'", "'\"'\"'"), "/no/such/folder")
    assert elsewhere != text
    assert subprocess.run(["sh", "-c", elsewhere], check=False).returncode == script.FOLDER_MISSING


def test_environment_arrives_exactly_and_its_file_is_only_its_owners_and_gone(place: Path) -> None:
    odd = "a b 'c' \"d\" $HOME `x` \\ ünï\nsecond"
    job = Job(place, ["sh", "-c", 'printf %s "$ODD"'], {"ODD": odd, "job": "x", "killer": "y", "code": "z"})
    assert (job.folder / script.ENVIRONMENT).stat().st_mode & 0o777 == 0o600
    assert odd not in (job.folder / script.SCRIPT).read_text()
    assert job.run() == 0
    assert job.said() == odd
    assert not (job.folder / script.ENVIRONMENT).exists()


def test_program_that_is_not_there_is_named(place: Path) -> None:
    job = Job(place, ["no-such program"])
    assert job.run() == 127
    assert folder.look(place).missing_program == "no-such program"


def test_stop_ends_the_job_with_term_and_is_written_down(place: Path) -> None:
    job = Job(place, ["sh", "-c", "trap 'echo bye; exit 9' TERM; echo on; while :; do sleep 0.05; done"])
    running = job.start()
    wait_until(lambda: (job.folder / script.STDOUT).exists() and job.said() == "on\n")
    folder.ask_to_stop(place, 30)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 9
    found = folder.look(place).exit
    assert found is not None
    assert (found.exit_code, found.stopped) == (9, True)
    assert job.said() == "on\nbye\n"


def test_job_that_ignores_a_stop_is_killed_after_its_grace_with_what_it_started(place: Path) -> None:
    job = Job(place, ["sh", "-c", "trap '' TERM; echo $$; sleep 300 & echo $!; while :; do sleep 0.05; done"])
    running = job.start()
    wait_until(lambda: (job.folder / script.STDOUT).exists() and job.said().count("\n") == 2)
    folder.ask_to_stop(place, 0.2)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 137
    for pid in job.said().split():
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists())  # type: ignore[misc]


def test_stop_before_the_start_runs_nothing(place: Path) -> None:
    job = Job(place, ["sh", "-c", "echo ran"])
    folder.ask_to_stop(place, 1)
    assert job.run() == 143
    found = folder.look(place).exit
    assert found is not None
    assert (found.exit_code, found.stopped) == (None, True)
    assert job.said() == ""


def test_term_that_slurm_sends_the_script_alone_does_not_end_the_job(place: Path) -> None:
    job = Job(place, ["sh", "-c", "echo on; while [ ! -e ../go ]; do sleep 0.05; done; exit 5"])
    running = job.start()
    wait_until(lambda: (job.folder / script.STDOUT).exists() and job.said() == "on\n")
    running.send_signal(signal.SIGTERM)
    (place / "go").touch()
    assert running.wait(60) == 5
    found = folder.look(place).exit
    assert found is not None
    assert (found.exit_code, found.stopped) == (5, False)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_signal_that_sbatch_is_asked_to_send_the_script_reaches_the_job(place: Path, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    job = Job(place, ["sh", "-c", f"trap 'exit 6' {name}; echo on; while :; do sleep 0.05; done"])
    running = job.start()
    wait_until(lambda: (job.folder / script.STDOUT).exists() and job.said() == "on\n")

    def has_ended() -> bool:
        running.send_signal(number)  # Again: the shell may not have noted the job yet, which runs already.
        return running.poll() is not None

    wait_until(has_ended)
    assert running.wait() == 6


def test_what_a_job_leaves_running_ends_with_it(place: Path) -> None:
    job = Job(place, ["sh", "-c", "sleep 300 & echo $!"])
    assert job.run() == 0
    wait_until(lambda: not Path(f"/proc/{job.said().strip()}").exists())
