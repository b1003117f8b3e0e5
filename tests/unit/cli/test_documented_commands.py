"""Commands and names on the pages of the documentation: each one is there, with these options."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import prefect_launch
from prefect_launch.cli.main import COMMANDS, PROGRAM, app, load_command
from prefect_launch.cli.options import CONTEXT

PROJECT = Path(__file__).resolve().parents[3]
PAGES = [
    PROJECT / "README.md",
    *sorted((PROJECT / "docs").rglob("*.md")),
    *sorted((PROJECT / "examples").rglob("*.md")),
]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^    (prefect-launch .*)$", re.MULTILINE)
#: Languages of blocks that show what is typed.
TYPED = {"", "bash", "console", "text"}
INLINE = re.compile(rf"(?<!`)`(?:\w+=\S+ )*({PROGRAM} [^`]+)`")
NAMES = sorted(
    {found for page in PAGES for found in re.findall(r"`(Api|RunQueue|QueuedRun|Sweep)\.(\w+)", page.read_text())}
)
#: What a reader is to put something else for.
OPEN = "…"
NOT_WHOLE = {"BadOptionUsage", "MissingParameter", "NoArgsIsHelpError"}
ENDS = re.compile(r"[();<>|&\n]+")


def _typed(block: str) -> Iterator[list[str]]:
    """Yield the calls of the program in what a block shows, each as its words."""
    lines = iter(block.replace("\\\n", " ").splitlines())
    for line in lines:
        if PROGRAM not in line:
            continue
        text = line.strip().removeprefix("$ ")
        while (words := _words(text)) is None:
            text += f"\n{next(lines)}"
        while PROGRAM in words:
            words = words[words.index(PROGRAM) + 1 :]
            end = next((at for at, word in enumerate(words) if ENDS.fullmatch(word)), len(words))
            yield words[:end]


def _words(text: str) -> list[str] | None:
    """Split a text as a shell does; None when a quotation goes on in the next line."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    try:
        return list(lexer)
    except ValueError:
        return None


def _calls() -> Iterator[tuple[str, bool]]:
    for page in PAGES:
        text = page.read_text()
        blocks = [shown for language, shown in BLOCK.findall(text) if language in TYPED]
        for shown in [*blocks, *INDENTED.findall(text)]:
            yield from ((shlex.join(words), True) for words in _typed(shown))
        for line in INLINE.findall(BLOCK.sub("", text)):
            yield from ((shlex.join(words), False) for words in _typed(line))


CALLS = dict(sorted(set(_calls())))


@pytest.mark.parametrize("line", CALLS)
def test_command_of_a_page_has_these_options(line: str) -> None:
    words = [word for word in shlex.split(line) if word != OPEN]
    root: Any = typer.main.get_command(app)
    parent = root.context_class(root, **CONTEXT)
    if not words or words[0] not in COMMANDS:
        options = {name for each in root.get_params(parent) for name in each.opts}
        assert set(words[:1]) <= options
        return
    command: Any = load_command(words.pop(0))
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]

    try:
        assert command.make_context(command.name, words, parent=parent).params is not None
    except Exception as error:
        # In the middle of a sentence a command need not be whole. Typer has click's errors, or a copy of its own.
        if CALLS[line] or type(error).__name__ not in NOT_WHOLE:
            raise


@pytest.mark.parametrize(("kind", "name"), NAMES)
def test_name_of_a_page_is_there(kind: str, name: str) -> None:
    assert callable(getattr(getattr(prefect_launch, kind), name))


def test_pages_have_commands_and_names() -> None:
    assert len(CALLS) > 200
    assert len(NAMES) > 15
