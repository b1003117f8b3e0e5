"""Tables and lists for people, JSON for programs."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta, timezone
from uuid import UUID

import pytest
import typer

from prefect_launch.cli.output import Column, ago, lasted, live_screen, print_details, print_json, print_table
from prefect_launch.core.states import StateType

COLUMNS = (Column("ID"), Column("NAME", gives_way=True), Column("STATE"), Column("TOOK", right=True))
ROWS = [("1a2b3c4d", "a-run-with-a-very-long-name-that-somebody-gave-it-one-day", "running", "3 min")]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_table_fits_the_terminal_and_cuts_only_names(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))

    print_table(COLUMNS, ROWS, empty="nothing")

    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert max(map(len, lines)) <= width
    assert "1a2b3c4d" in lines[1]
    assert "running" in lines[1]
    assert lines[1].endswith("3 min")


@pytest.mark.parametrize("cut_first", [True, False])
def test_no_title_is_cut_at_80_columns_though_every_value_is_long(
    cut_first: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = ("AGENT", "STATE", "HOST", "SLOTS", "RUNS", "LAST SEEN", "QUEUES", "DESCRIPTION", "IN WORK")
    monkeypatch.setenv("COLUMNS", "80")

    print_table([Column(title, gives_way=cut_first) for title in titles], [["x" * 30] * len(titles)], empty="")

    head, row = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", head) == list(titles)
    assert len(row) <= 80


def test_names_as_headings_are_broken_into_lines_with_the_values_below_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    names = ["a-run-with-a-long-name-of-its-own-1", "a-run-with-a-long-name-of-its-own-2", "short"]
    columns = [Column("OF"), *(Column(name, wraps=True) for name in names)]

    print_table(columns, [("results", "Finished with exit code 0.", "completed", "cancelled")], empty="")

    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    first, second = (line[9:].split() for line in lines[:2])
    assert [top + bottom for top, bottom in zip([*first, ""], second, strict=True)] == names
    assert "results" in lines[2]
    assert "cancelled" in lines[2]


def test_sentence_in_a_table_is_broken_into_lines_where_names_are_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    sentence = "The controller does not answer: munge is not running here. Start it, then look at scontrol ping."

    print_table((Column("WHERE"), Column("DETAIL", wraps=True)), [("queue gpu", sentence), ("home", "fine")], empty="")

    head, *lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(line[head.index("DETAIL") :] for line in lines[:-1]) == sentence
    assert [line.split()[:2] for line in lines[-1:]] == [["home", "fine"]]


def test_table_in_a_pipe_is_cut_nowhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)

    print_table(COLUMNS, ROWS, empty="nothing")

    assert ROWS[0][1] in capsys.readouterr().out


def test_names_that_look_like_markup_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [("1", "[red]run[/red]", "done", "")], empty="")
    print_details([("name", "[bold]x[/bold]")])

    shown = capsys.readouterr().out
    assert "[red]run[/red]" in shown
    assert "[bold]x[/bold]" in shown


def test_empty_table_says_what_to_do_next(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(COLUMNS, [], empty="No queue yet.")

    assert capsys.readouterr().out == "No queue yet.\n"


def test_details_leave_out_what_is_empty_and_lay_out_groups(capsys: pytest.CaptureFixture[str]) -> None:
    print_details([("id", 1), ("none", None), ("empty", {}), ("inputs", {"lr": 0.1, "model": {"width": 8}})])

    assert capsys.readouterr().out.splitlines() == [
        "id      1",
        "inputs  lr: 0.1",
        "        model:",
        "          width: 8",
    ]


def test_address_in_details_stays_whole_in_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    page = f"http://127.0.0.1:4200/runs/flow-run/{UUID(int=1)}"

    print_details([("message", "a sentence that does not fit this terminal"), ("page", page)])

    assert capsys.readouterr().out.splitlines() == [
        "message  a sentence that does not fit",
        "         this terminal",
        f"page     {page}",
    ]


def test_table_that_cannot_fit_keeps_its_names_readable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    numbers = [Column(f"outputs.number-{place}", right=True) for place in range(4)]

    print_table([Column("NAME", gives_way=True), *numbers], [("a-run-with-a-name", 1, 2, 3, 4)], empty="")

    assert capsys.readouterr().out.splitlines()[1].startswith("a-run-w… ")


def test_json_holds_moments_ids_and_states_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    moment = datetime(2026, 1, 2, tzinfo=timezone.utc)

    print_json({"at": moment, "id": UUID(int=1), "state": StateType.RUNNING, "name": "größe"})

    assert json.loads(capsys.readouterr().out) == {
        "at": "2026-01-02T00:00:00+00:00",
        "id": str(UUID(int=1)),
        "state": "RUNNING",
        "name": "größe",
    }


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (200_000, "2 d"), (None, "")]
)
def test_durations_are_reported_in_their_largest_unit(seconds: float | None, told: str) -> None:
    assert lasted(seconds) == told


def test_moment_is_told_by_its_distance() -> None:
    assert ago(datetime.now(timezone.utc) - timedelta(minutes=5)) == "5 min ago"
    assert ago(None) == ""


def test_live_screen_is_left_by_ctrl_c_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    def look() -> None:
        with live_screen() as (_, draw):
            draw("first look")
            raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as left:
        look()

    assert left.value.exit_code == 0
    assert "first look" in capsys.readouterr().out
