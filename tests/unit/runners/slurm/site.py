"""Slurm's commands as scripts of a test's own."""

from __future__ import annotations

from pathlib import Path


class Site:
    """A machine whose commands of Slurm are scripts."""

    def __init__(self, folder: Path) -> None:
        self.programs = folder / "bin"
        self.programs.mkdir()
        self.calls = folder / "calls"
        self.program("squeue", "exit 0")
        self.program("sinfo", "exit 0")
        self.program("scancel", "exit 0")
        self.program("scontrol", "exit 0")
        self.program("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")

    def program(self, name: str, does: str) -> None:
        path = self.programs / name
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "{name} $*" >> {self.calls}\n{does}\n')
        path.chmod(0o755)

    def prints(self, name: str, *lines: str) -> None:
        """Let a program print lines."""
        text = self.programs.parent / f"{name}.lines"
        text.write_text("".join(f"{line}\n" for line in lines))
        self.program(name, f"cat {text}")

    def called(self) -> str:
        return self.calls.read_text() if self.calls.exists() else ""
