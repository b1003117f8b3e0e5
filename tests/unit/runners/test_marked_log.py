"""Marked lines: a real shell prints them around a real job, and the reader takes them out again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from prefect_launch.runners.remote.marked_log import MAX_OUTPUTS_BYTES, MarkedLog, marked_script

NAME = "launch-1-1"


def run_marked(script: str, *, enter: str = "", output_dir: str | None = None) -> tuple[int, bytes, MarkedLog]:
    """Run a script as a job; return its exit code, what it wrote and what is told of its end."""
    program = f"set -- sh -c '{script}'\n{marked_script(NAME, enter=enter, output_dir=output_dir)}"
    done = subprocess.run(["sh", "-c", program], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    log = MarkedLog(NAME)
    return done.returncode, b"".join(log.feed(b"the system's own line\n" + done.stdout)), log


def test_job_and_its_end_are_told_apart() -> None:
    code, content, log = run_marked('printf "no newline"; printf "b\\377d" >&2; exit 3')
    assert (code, content, log.exit_code, log.has_program) == (3, b"no newlineb\xffd", 3, True)
    assert (log.outputs, log.other_files) == (None, 0)


def test_outputs_come_back_byte_for_byte_and_other_files_are_counted() -> None:
    code, _, log = run_marked('cd "$LAUNCH_OUTPUT_DIR"; printf "{\\377}" > outputs.json; mkdir d; touch d/a d/b; pwd')
    assert (code, log.outputs, log.other_files) == (0, b"{\xff}", 2)


def test_outputs_beyond_the_limit_are_told_by_their_size() -> None:
    size = MAX_OUTPUTS_BYTES + 1
    _, _, log = run_marked(f'head -c {size} /dev/zero > "$LAUNCH_OUTPUT_DIR/outputs.json"')
    assert (log.outputs, log.outputs_bytes) == (None, size)


def test_temporary_folder_of_a_job_is_gone_at_its_end() -> None:
    _, content, _ = run_marked('touch "$LAUNCH_OUTPUT_DIR/x"; echo "$LAUNCH_OUTPUT_DIR"')
    assert content.startswith(b"/")
    assert not Path(content.decode().strip()).parent.exists()


def test_outputs_folder_that_is_named_stays(tmp_path: Path) -> None:
    folder = tmp_path / "it's mine"
    run_marked('echo hello > "$LAUNCH_OUTPUT_DIR/file.txt"', output_dir=str(folder))
    assert (folder / "file.txt").read_text() == "hello\n"


def test_program_that_is_not_there_differs_from_a_job_that_ends_with_127() -> None:
    done = subprocess.run(
        ["sh", "-c", f"set -- no-such-program\n{marked_script(NAME)}"], capture_output=True, check=False
    )
    missing = MarkedLog(NAME)
    list(missing.feed(done.stdout))
    assert (done.returncode, missing.exit_code, missing.has_program) == (127, 127, False)
    code, _, log = run_marked("exit 127")
    assert (code, log.exit_code, log.has_program) == (127, 127, True)


def test_signal_that_ended_a_job_is_in_its_exit_code_and_no_word_of_the_shells_is_in_the_log() -> None:
    code, content, log = run_marked("kill -9 $$")
    assert (code, content, log.exit_code) == (137, b"", 137)


def test_shell_that_is_told_to_end_with_its_job_waits_for_what_the_job_does_about_it() -> None:
    script = 'trap "echo saved; exit 5" TERM; echo ready; while :; do sleep 0.05; done'
    program = f"set -- sh -c '{script}'\n{marked_script(NAME)}"
    with subprocess.Popen(["sh", "-c", program], stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        seen = b""
        while b"ready\n" not in seen:
            seen += os.read(process.stdout.fileno(), 1)
        os.killpg(process.pid, signal.SIGTERM)
        log = MarkedLog(NAME)
        content = b"".join(log.feed(seen + process.stdout.read()))
    assert (process.returncode, content, log.exit_code) == (5, b"ready\nsaved\n", 5)


def test_job_that_is_told_to_end_before_it_has_begun_never_does(tmp_path: Path) -> None:
    held = tmp_path / "held"
    enter = f'touch "{held}"; while [ -e "{held}" ]; do sleep 0.05; done'
    program = f"set -- echo begun\n{marked_script(NAME, enter=enter)}"
    with subprocess.Popen(["sh", "-c", program], stdout=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not held.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.terminate()
        held.unlink()
        log = MarkedLog(NAME)
        assert process.stdout is not None
        content = b"".join(log.feed(process.stdout.read()))
    assert (process.returncode, content, log.exit_code) == (143, b"", 143)


def test_job_that_is_killed_with_its_shell_has_no_end() -> None:
    _, content, log = run_marked("echo one; kill -9 $PPID; sleep 0.2")
    assert (content, log.exit_code) == (b"one\n", None)


@pytest.mark.parametrize("size", [1, 2, 7, 1_000])
def test_log_in_pieces_of_any_size_gives_the_same(size: int) -> None:
    mark = f"\x1e[{NAME}] ".encode()
    content = b"a\x1e[launch-1-1 \x1e\x1e[launch-2-1] end 4\n"
    whole = b"system\n" + mark + b"begin\n" + content + mark + b"outputs e30=\n" + mark + b"end 0\nlate\n"
    log = MarkedLog(NAME)
    got = b"".join(one for start in range(0, len(whole), size) for one in log.feed(whole[start : start + size]))
    assert got == content + b"late\n"
    assert (log.outputs, log.exit_code, log.position) == (b"{}", 0, len(whole))


@pytest.mark.parametrize("line", [b"end \n", b"end x\n", b"outputs ***\n", b"outputs\n", b"\n", b"unknown 1\n"])
def test_mark_that_makes_no_sense_says_nothing(line: bytes) -> None:
    log = MarkedLog(NAME)
    mark = f"\x1e[{NAME}] ".encode()
    assert b"".join(log.feed(mark + b"begin\n" + mark + line)) == b""
    assert (log.exit_code, log.outputs or None) == (None, None)
