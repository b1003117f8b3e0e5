"""A git repository on this disk to fetch from: made with git itself, untouched by the machine's own git settings."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "GIT_ALLOW_PROTOCOL": "file",
}


class Repository:
    """A repository with a work tree, on the branch `main`."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True)
        self.path = path
        self.git("init", "--quiet", "--initial-branch=main")

    @property
    def url(self) -> str:
        """Its address for a git that may use files."""
        return f"file://{self.path}"

    def git(self, *arguments: str) -> str:
        """Run git in it."""
        command = ["git", *arguments]
        ended = subprocess.run(
            command, cwd=self.path, env={**os.environ, **_ENVIRONMENT}, capture_output=True, text=True, check=True
        )
        return ended.stdout.strip()

    def commit(self, **files: str) -> str:
        """Commit files (`main="x"` writes `main.py`) and return the commit's id."""
        for stem, text in files.items():
            (self.path / f"{stem}.py").write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", "--message", "change")
        return self.git("rev-parse", "HEAD")
