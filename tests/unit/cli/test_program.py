"""The program around the commands: its help, and what becomes of an error."""

from __future__ import annotations

import pytest
import typer
from pydantic import BaseModel, model_serializer
from typer.testing import CliRunner

from prefect_launch.cli.main import app, message_of, run
from prefect_launch.client.api import use_api
from prefect_launch.errors import ExecutionError, SpecError
from prefect_launch.testing import InMemoryApi

COMMANDS = [
    [],
    ["queue"],
    *(["queue", name] for name in ("create", "edit", "list", "show", "pause", "resume", "delete")),
    ["job"],
    ["job", "create"],
    *(["job", "create", name] for name in ("image", "code", "git")),
    *(["job", name] for name in ("list", "show", "deploy", "delete", "alias")),
    ["add"],
    ["run"],
    ["item"],
    *(
        ["item", name]
        for name in ("list", "show", "logs", "wait", "cancel", "retry", "rerun", "edit", "set-priority", "move")
    ),
    ["sweep"],
    ["sweep", "check"],
    ["agent"],
    *(["agent", name] for name in ("start", "serve", "list", "show")),
    ["demo"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_a_text_for_each_option(command: list[str]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})

    assert shown.exit_code == 0
    options = [line for line in shown.output.splitlines() if line.lstrip("│ *").startswith("--")]
    assert options
    assert not [line for line in options if len(line.strip("│ ").split()) < 4]


@pytest.mark.parametrize(
    "command",
    [
        ["queue", "list"],
        ["queue", "show", "NAME"],
        ["queue", "create", "NAME"],
        ["job", "list"],
        ["job", "show", "JOB"],
        ["item", "list"],
        ["item", "show", "ID"],
        ["item", "logs", "ID"],
        ["item", "wait", "ID"],
        ["sweep", "check", "FILE"],
        ["agent", "list"],
        ["add"],
        ["run"],
    ],
    ids=" ".join,
)
def test_everything_that_lists_or_shows_prints_json_when_asked(command: list[str]) -> None:
    shown = CliRunner().invoke(app, [*command, "--help"])

    assert "--json" in shown.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["quue"], "queue"),
        (["queue"], "prefect-launch queue --help"),
        (["add", "--nope"], "--nope"),
        (["queue", "create"], "NAME"),
        (["item", "list", "--limit", "many"], "'--limit': 'many' should be a valid integer"),
        (["item", "list", "--limit", "0"], "'--limit': '0' should be greater than or equal to 1."),
        (["sweep", "run", "sweep.yaml", "--num-workers", "1e9"], "'--num-workers': '1e9' should be a valid integer"),
    ],
)
def test_wrong_use_is_reported_in_one_line_with_exit_code_1(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(arguments)

    shown = capsys.readouterr()
    assert code == 1
    assert shown.out == ""
    assert shown.err.startswith("Error: ")
    assert shown.err.count("\n") == 1
    assert told in shown.err


def test_refusal_is_reported_in_one_line() -> None:
    assert message_of(SpecError("priority 9 is none.\nUse 1 to 4.")) == "priority 9 is none. Use 1 to 4."


def test_failed_run_is_reported_without_its_last_lines() -> None:
    error = ExecutionError("Run r1 ended as Failed: exit code 3\n  Traceback\n  ValueError", exit_code=3)

    assert message_of(error) == "Run r1 ended as Failed: exit code 3"


def test_fault_of_ours_is_named_with_the_way_to_its_traceback() -> None:
    assert message_of(KeyError("x")) == "Unexpected KeyError: 'x'. Run it again with LAUNCH_DEBUG=1 to see where."


def test_declined_question_is_no_fault() -> None:
    assert message_of(typer.Abort()) == "Stopped; nothing was changed."


def test_state_that_is_none_is_refused_with_the_nearest_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["item", "list", "--state", "runing"]) == 1
    assert "Did you mean 'running'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("it", ["item"]),
        ("item comp", ["compare"]),
        ("add --prio", ["--priority"]),
        ("job create g", ["git"]),
    ],
)
def test_shell_completes_commands_and_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: str, completed: list[str]
) -> None:
    typed = f"prefect-launch {words}"
    monkeypatch.setenv("_PREFECT_LAUNCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))

    with pytest.raises(SystemExit) as ended:
        typer.main.get_command(app).main([], prog_name="prefect-launch")

    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == completed


def test_interrupt_while_a_value_is_written_ends_the_program_as_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    class Value(BaseModel):
        @model_serializer
        def written(self) -> str:
            raise KeyboardInterrupt

    async def write(*_: object) -> None:
        Value().model_dump()

    with use_api(InMemoryApi()) as api:
        api.server.before_call = write
        assert run(["queue", "list"]) == 130

    assert "Error" not in capsys.readouterr().err
