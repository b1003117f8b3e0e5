"""Commands and names on the pages for people who come from W&B: each one is there, with these options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import prefect_launch
from prefect_launch.cli.main import PROGRAM, app, load_command
from prefect_launch.cli.options import CONTEXT

DOCS = Path(__file__).resolve().parents[3] / "docs"
PAGES = {name: (DOCS / name).read_text() for name in ("wandb-launch.md", "wandb-sweeps.md")}
COMMANDS = sorted(
    {line for text in PAGES.values() for line in re.findall(rf"^{PROGRAM} .*$|(?<=`){PROGRAM} [^`]+", text, re.M)}
)
NAMES = sorted(set(re.findall(r"`(Api|RunQueue|QueuedRun)\.(\w+)", PAGES["wandb-launch.md"])))


@pytest.mark.parametrize("line", COMMANDS)
def test_command_of_a_page_has_these_options(line: str) -> None:
    name, *rest = shlex.split(line)[1:]
    command: Any = load_command(name)
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest.pop(0)]

    root: Any = typer.main.get_command(app)
    parent = root.context_class(root, **CONTEXT)
    assert command.make_context(command.name, rest, parent=parent).params is not None


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_name_of_a_page_is_there(kind: str, name: str) -> None:
    assert callable(getattr(getattr(prefect_launch, kind), name))


def test_pages_have_commands_and_names() -> None:
    assert len(COMMANDS) > 30
    assert len(NAMES) > 7
