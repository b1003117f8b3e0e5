"""A reader of a README: someone who does what its blocks of code say, in their order, in a home of their own.

`bash` blocks share one shell's environment; `python` and `yaml` blocks are saved under the name in their first line.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.forked_programs import ForkedPrograms
from tests.support.processes import ChildProcess

PROJECT = Path(__file__).resolve().parents[2]
BLOCK_SECONDS = 240
#: The line that leaves something running in a terminal of its own.
AGENT = "prefect-launch agent start -q gpu -j 2"


class Block(NamedTuple):
    """A fenced block of the README."""

    section: str
    language: str
    text: str


class Reader:
    """Someone who does what the README says, in a folder with the examples and in a home of their own.

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

    def follow(self, blocks: list[Block]) -> str:
        """Do what the blocks say; returns all that was printed."""
        return "".join(self._bash(block) if block.language == "bash" else self._save(block) for block in blocks)

    def stop(self) -> None:
        """End what was left running."""
        if self._agent is not None:
            self._agent.stop()
        self._programs.close()

    @property
    def forgotten(self) -> set[str]:
        """Lines of the table that the README does not have."""
        return set(self._adapted) - self._used

    def _save(self, block: Block) -> str:
        name = block.text.splitlines()[0].removeprefix("# ")
        assert re.fullmatch(r"\w+\.(py|yaml)", name), f"the first line of a block names its file, not {name!r}"
        (self._folder / name).write_text(self._adapt(block.text))
        return ""

    def _bash(self, block: Block) -> str:
        if block.text.strip() == AGENT:
            return self._start_agent()
        script = f"set -euo pipefail\nsource {self._state}\n{self._adapt(block.text)}\nexport -p > {self._state}\n"
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

    def _start_agent(self) -> str:
        # As the installed program, which hears the signal at its end.
        command = ["bash", "-c", f"source {self._state}; exec {Path(sys.executable).parent}/{AGENT}"]
        self._agent = ChildProcess(command, self._folder / "agent.log", environment=self._environment)
        return ""

    def _adapt(self, text: str) -> str:
        for line, instead in self._adapted.items():
            if line in text:
                self._used.add(line)
                text = text.replace(line, instead)
        return text


def blocks_of(readme: Path) -> list[Block]:
    """The fenced blocks of a README, each with the title of its section."""
    found, section = [], ""
    for title, language, text in re.findall(r"^## ([^\n]+)$|^```(\w+)\n(.*?)^```$", readme.read_text(), re.M | re.S):
        section = title or section
        if language:
            found.append(Block(section, language, text))
    unknown = {block.language for block in found} - {"bash", "python", "yaml"}
    assert not unknown, f"no test runs blocks of {unknown}"
    return found
