"""How a run's end becomes the item's state, its message and its artifacts."""

from __future__ import annotations

import json
import os
from datetime import datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4

import pytest

from prefect_launch.agent.item.outcome import Outcome, outcome_of_error, outcome_of_exit
from prefect_launch.agent.item.outputs import publish_outputs, read_outputs
from prefect_launch.core.states import ItemState
from prefect_launch.errors import (
    AgentConfigError,
    InfrastructureError,
    InputError,
    InternalError,
    QueueError,
    RunLostError,
    SpecError,
    UnsafeSpecError,
)
from prefect_launch.runners.base import ExitStatus, Phase
from prefect_launch.spec.scheduling import Cause
from prefect_launch.testing import InMemoryServer

START = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.mark.parametrize(
    ("end", "state", "words"),
    [
        (ExitStatus(exit_code=0), ItemState.COMPLETED, "exit code 0"),
        (ExitStatus(exit_code=3), ItemState.FAILED, "[run] The job ended with exit code 3."),
        (
            ExitStatus(exit_code=143, signal="SIGTERM"),
            ItemState.FAILED,
            "The job ended by signal SIGTERM (exit code 143).",
        ),
        (ExitStatus(exit_code=137, signal="SIGKILL"), ItemState.FAILED, "which this agent did not send"),
        (ExitStatus(exit_code=137, signal="SIGKILL", oom_killed=True), ItemState.CRASHED, "[run] Out of memory"),
        (ExitStatus(exit_code=None, error="its container was removed"), ItemState.CRASHED, "Its container was removed"),
        (ExitStatus(exit_code=143, signal="SIGTERM", stopped=True), ItemState.CANCELLED, "Stopped"),
        (ExitStatus(exit_code=0, stopped=True), ItemState.CANCELLED, "Stopped"),
        (ExitStatus(exit_code=0, preempted=True), ItemState.CRASHED, "Preempted: its machine was taken away"),
        (ExitStatus(exit_code=None, preempted=True), ItemState.CRASHED, "Preempted: its machine was taken away"),
        (
            ExitStatus(exit_code=137, error="evicted: the node was low on memory"),
            ItemState.CRASHED,
            "Evicted: the node",
        ),
        (ExitStatus(exit_code=143, signal="SIGTERM", timed_out=True), ItemState.FAILED, "Reached its resource's time"),
        (ExitStatus(exit_code=None, timed_out=True, error="DeadlineExceeded"), ItemState.FAILED, "DeadlineExceeded"),
    ],
)
def test_exit_gives_state_and_reason(end: ExitStatus, state: ItemState, words: str) -> None:
    outcome = outcome_of_exit(end)
    assert outcome.state is state
    assert words in outcome.message


@pytest.mark.parametrize("said", ["Reached its limit", "Reached its limit."])
def test_note_is_a_sentence_of_its_own(said: str) -> None:
    noted = Outcome(state=ItemState.FAILED, message=said).with_notes(["The log is not whole."])

    assert noted.message == "Reached its limit. Note: The log is not whole."


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (ExitStatus(exit_code=3), Cause.FAILED),
        (ExitStatus(exit_code=137, signal="SIGKILL"), Cause.FAILED),
        (ExitStatus(exit_code=127, error="no such program"), Cause.FAILED),
        (ExitStatus(exit_code=137, signal="SIGKILL", oom_killed=True), Cause.OOM),
        (ExitStatus(exit_code=143, signal="SIGTERM", preempted=True), Cause.PREEMPTED),
        (ExitStatus(exit_code=None, error="its supervisor was lost"), Cause.LOST),
        (ExitStatus(exit_code=137, error="evicted: the node was low on memory"), Cause.LOST),
        (ExitStatus(exit_code=0, preempted=True), Cause.PREEMPTED),
        (ExitStatus(exit_code=None, timed_out=True, error="DeadlineExceeded"), Cause.TIMEOUT),
        (ExitStatus(exit_code=0), None),
        (ExitStatus(exit_code=143, signal="SIGTERM", stopped=True), None),
    ],
)
def test_exit_tells_the_cause_for_its_retry(end: ExitStatus, cause: Cause | None) -> None:
    assert outcome_of_exit(end).cause is cause


def test_cause_that_stands_in_the_data_is_taken() -> None:
    assert Outcome(state=ItemState.FAILED, message="", data={"cause": "timeout"}).cause is Cause.TIMEOUT


def test_program_that_cannot_be_run_is_its_authors_failure() -> None:
    assert outcome_of_exit(ExitStatus(exit_code=127, error="no such program")).state is ItemState.FAILED


def test_exit_code_and_signal_are_kept_as_data() -> None:
    outcome = outcome_of_exit(ExitStatus(exit_code=139, signal="SIGSEGV"))
    assert outcome.data == {"exit_code": 139, "signal": "SIGSEGV", "oom_killed": False}


def test_message_says_how_long_it_ran() -> None:
    end = ExitStatus(exit_code=0, started_at=START, ended_at=START + timedelta(seconds=12.34))
    assert "after 12.3 s" in outcome_of_exit(end).message


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (SpecError("x"), ItemState.FAILED),
        (InputError("x"), ItemState.FAILED),
        (UnsafeSpecError("x"), ItemState.FAILED),
        (QueueError("x"), ItemState.FAILED),
        (InfrastructureError("x"), ItemState.CRASHED),
        (AgentConfigError("x"), ItemState.CRASHED),
        (OSError("disk full"), ItemState.CRASHED),
        (ZeroDivisionError("a bug"), ItemState.CRASHED),
        (InternalError("a bug"), ItemState.CRASHED),
    ],
)
def test_error_before_the_start_fails_who_asked_or_crashes_for_the_machine(error: Exception, state: ItemState) -> None:
    assert outcome_of_error(error, Phase.AGENT).state is state


@pytest.mark.parametrize("phase", list(Phase))
def test_error_says_the_phase_and_the_reason(phase: Phase) -> None:
    assert outcome_of_error(SpecError("no such thing"), phase).message == f"[{phase.value}] No such thing"


def test_run_that_is_gone_before_it_ran_is_retried_as_a_lost_one() -> None:
    found = outcome_of_error(RunLostError("it was deleted"), Phase.RUN)
    assert (found.state, found.cause) == (ItemState.CRASHED, Cause.LOST)


def test_error_that_is_none_of_ours_is_named() -> None:
    assert outcome_of_error(OSError("disk full"), Phase.AGENT) == Outcome(
        state=ItemState.CRASHED, message="[agent] OSError: disk full", cause=Cause.CRASHED
    )


# --- outputs ---


async def test_outputs_are_shown_as_a_table(tmp_path: Path) -> None:
    (tmp_path / "outputs.json").write_text('{"accuracy": 0.97, "note": "good", "best": true, "none": null}')
    server, item_id = InMemoryServer(), uuid4()
    assert await publish_outputs(server, item_id, "Run_1", tmp_path) is None
    (artifact,) = await server.list_artifacts(item_id)
    assert (artifact["key"], artifact["type"]) == ("outputs-run-1", "table")
    assert json.loads(artifact["data"])[0] == {"output": "accuracy", "value": 0.97}


async def test_run_without_outputs_shows_none(tmp_path: Path) -> None:
    server, item_id = InMemoryServer(), uuid4()
    assert await publish_outputs(server, item_id, "r", tmp_path) is None
    assert await server.list_artifacts(item_id) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is no JSON"),
        ("[1, 2]", "outputs.json holds a list, and must hold one flat dict"),
        ("null", "outputs.json holds null, and must hold one flat dict"),
        (
            f'{{"seed": {2**70}, "a": {{"b": 1}}, "ok": 1, "steps": [1]}}',
            "outputs.json is not shown: 'a' is a dict, 'steps' is a list. It must hold one flat dict",
        ),
        ("[" * 100_000, "is no JSON"),
        ('"' + "x" * 1_000_001 + '"', "bytes"),
    ],
)
def test_outputs_that_are_wrong_are_reported_in_words(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "outputs.json").write_text(content)
    outputs, fault = read_outputs(tmp_path)
    assert outputs == {}
    assert fault is not None
    assert words in fault


def test_nan_of_a_diverged_training_is_shown_as_text(tmp_path: Path) -> None:
    (tmp_path / "outputs.json").write_text('{"loss": NaN, "best": -Infinity, "epochs": 3}')
    assert read_outputs(tmp_path) == ({"loss": "NaN", "best": "-Infinity", "epochs": 3}, None)


def test_outputs_that_the_server_cannot_send_are_shown_as_text(tmp_path: Path) -> None:
    (tmp_path / "outputs.json").write_text(r'{"seed": 18446744073709551616, "big": 1e999, "a\u0000": "\ud800", "n": 1}')
    shown = {"seed": "18446744073709551616", "big": "inf", "a\ufffd": "\ufffd", "n": 1}
    assert read_outputs(tmp_path) == (shown, None)


def test_outputs_file_that_is_a_link_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text('{"a": 1}')
    (tmp_path / "outputs.json").symlink_to(tmp_path / "secret")
    assert read_outputs(tmp_path) == ({}, "outputs.json is a link, and is not shown. Write it as a file.")


def test_folder_or_pipe_in_the_place_of_the_outputs_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "outputs.json").mkdir()
    os.mkfifo(tmp_path / "pipe")
    assert read_outputs(tmp_path) == ({}, "outputs.json is a folder, and is not shown. Write it as a file.")
    (tmp_path / "outputs.json").rmdir()
    (tmp_path / "pipe").rename(tmp_path / "outputs.json")
    assert read_outputs(tmp_path) == ({}, "outputs.json is a special file, and is not shown. Write it as a file.")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_outputs_file_with_a_byte_order_mark_is_read(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "outputs.json").write_bytes('{"note": "größer"}'.encode(encoding))
    assert read_outputs(tmp_path) == ({"note": "größer"}, None)


def test_run_that_left_no_outputs_file_is_told_nothing(tmp_path: Path) -> None:
    assert read_outputs(tmp_path) == ({}, None)
