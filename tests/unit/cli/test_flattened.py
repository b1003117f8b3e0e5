"""Options that commands share: a dataclass is one value to the command, and options to its users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer

from prefect_launch.cli.options import flattened

TagOption = Annotated[list[str] | None, typer.Option("-t", "--tag", help="A tag.")]
SizeOption = Annotated[int, typer.Option("--size", help="How large.")]
DeepOption = Annotated[bool, typer.Option("--deep/--flat", help="How deep.")]


@dataclass(frozen=True)
class Options:
    tag: TagOption = None
    size: SizeOption = 3
    deep: DeepOption = False


def run(command: Any, *arguments: str) -> None:
    app = typer.Typer()
    app.command()(command)
    typer.main.get_command(app).main(list(arguments), standalone_mode=False)


def test_command_gets_what_its_users_have_said_as_one_value() -> None:
    got = []

    @flattened()
    def make(path: Annotated[str, typer.Argument()], options: Options, loud: bool = False) -> None:
        got.append((path, options, loud))

    run(make, "here", "-t", "a", "--tag", "b", "--size", "5", "--deep", "--loud")
    run(make, "there")

    assert got == [("here", Options(tag=["a", "b"], size=5, deep=True), True), ("there", Options(), False)]


def test_option_that_is_left_out_keeps_its_default_and_is_not_taken(capsys: pytest.CaptureFixture[str]) -> None:
    got = []

    @flattened("deep")
    def make(options: Options, loud: bool = False) -> None:
        """Make it."""
        got.append(options)

    run(make, "--size", "1")
    with pytest.raises(Exception, match="No such option"):
        run(make, "--deep")
    run(make, "--help")

    assert got == [Options(size=1)]
    told = capsys.readouterr().out
    places = [told.index(words) for words in ("Make it.", "--tag", "--size", "--loud")]
    assert places == sorted(places)
    assert "--deep" not in told
