"""Someone who follows a page: every fenced block of it runs, in its order, as a reader would run it.

`bash` blocks share one shell's environment; `python` and `yaml` blocks are saved under the path in their first line.
What cannot be run as it stands here (another address, a program that does not end) is in a table, line by line; a line
of the table that the page no longer has is told by `forgotten`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.forked_programs import ForkedPrograms
from tests.support.processes import ChildProcess

PROJECT = Path(__file__).resolve().parents[2]
BLOCK_SECONDS = 240
#: The beginning of a line that leaves something running in a terminal of its own, when nothing ends it.
AGENT = "prefect-launch agent start "
_ENDS = "--until-empty"


class Block(NamedTuple):
    """A fenced block of a page."""

    language: str
    text: str


class Reader:
    """Someone who does as a page says, in a folder with the examples and a home of their own; it ends what they leave.

    Args:
        folder: where it is done.
        adapted: what is typed instead of a line that cannot be run here as it stands.
    """

    def __init__(self, folder: Path, adapted: Mapping[str, str]) -> None:
        self._folder = folder
        self._adapted = adapted
        self._used: set[str] = set()
        self._agent: ChildProcess | None = None
        self._state = folder / "environment.sh"
        self._programs = ForkedPrograms()
        shutil.copytree(PROJECT / "examples", folder / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "home").mkdir()
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "LAUNCH_DEMO"))},
            "HOME": str(folder / "home"),
            "PATH": f"{self._programs.folder}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self._state.touch()

    def follow(self, blocks: Iterable[Block]) -> str:
        """Do what the blocks say; returns all that was printed."""
        return "".join(self._bash(block) if block.language == "bash" else self._save(block) for block in blocks)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._agent is not None:
            self._agent.stop()
        self._programs.close()

    @property
    def forgotten(self) -> set[str]:
        """Lines of the table that the pages do not have."""
        return set(self._adapted) - self._used

    def _save(self, block: Block) -> str:
        name = block.text.splitlines()[0].removeprefix("# ")
        assert re.fullmatch(r"(\w+/)?\w+\.(py|yaml)", name), f"the first line of a block names its file, not {name!r}"
        path = self._folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(self._adapt(block.text))
        return ""

    def _bash(self, block: Block) -> str:
        text = self._adapt(block.text)
        if text.startswith(AGENT) and _ENDS not in text:
            return self._start_agent(text)
        script = f"set -euo pipefail\nsource {self._state}\n{text}\nexport -p > {self._state}\n"
        done = subprocess.run(
            ["bash", "-c", script],
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BLOCK_SECONDS,
            check=False,
        )
        if done.returncode:
            pytest.fail(f"{block.text}\nended with {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
        return done.stdout

    def _start_agent(self, command_line: str) -> str:
        # As the installed program, which hears the signal at its end.
        command = ["bash", "-c", f"source {self._state}; exec {Path(sys.executable).parent}/{command_line}"]
        self._agent = ChildProcess(command, self._folder / "agent.log", environment=self._environment)
        return ""

    def _adapt(self, text: str) -> str:
        for line, instead in self._adapted.items():
            if line in text:
                self._used.add(line)
                text = text.replace(line, instead)
        return text


def followed(folder: Path, pages: Iterable[Path], adapted: Mapping[str, str]) -> str:
    """Do what pages say, one after the other, in a new folder; returns all that was printed.

    It fails when a line of the table is on none of the pages.
    """
    folder.mkdir()
    with Reader(folder, adapted) as reader:
        shown = reader.follow(block for page in pages for block in blocks_of(page))
    assert not reader.forgotten
    return shown


def blocks_of(page: Path) -> list[Block]:
    """Return the fenced blocks of a page that are to be run; those of `console` and `text` only show something."""
    found = [Block(*each) for each in re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(), re.M | re.S)]
    unknown = {block.language for block in found} - {"bash", "python", "yaml", "console", "text"}
    assert not unknown, f"no test runs blocks of {unknown}"
    return [block for block in found if block.language in ("bash", "python", "yaml")]
