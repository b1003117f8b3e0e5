"""The commit that a folder of code was at, when it is a git work tree: recorded with the job, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect_launch.errors import LaunchError
from prefect_launch.sources.git_command import ASK_TIMEOUT_SECONDS, Git
from prefect_launch.sources.remote import without_credentials


async def describe_work_tree(folder: Path) -> dict[str, Any] | None:
    """Return `{commit, dirty, remote}` of a folder's repository, or `None` when it is in none.

    Args:
        folder: the code.
    """
    git = Git(allowed_protocols=())

    async def ask(*arguments: str) -> str:
        return (await git.run(*arguments, cwd=folder, timeout=ASK_TIMEOUT_SECONDS)).strip()

    try:
        commit = await ask("rev-parse", "--verify", "HEAD")
        changes = await ask("status", "--porcelain", "--untracked-files=normal", "--", ".")
    except LaunchError:
        # No repository, none that this user may read, no commit yet, or no git: a folder is a job without any of it.
        return None
    try:
        remote: str | None = without_credentials(await ask("remote", "get-url", "origin"))
    except LaunchError:
        remote = None
    return {"commit": commit, "dirty": bool(changes), "remote": remote}
