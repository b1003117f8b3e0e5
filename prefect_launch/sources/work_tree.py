"""The commit that a folder of code was at, when it is a git work tree: recorded with the job, for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from prefect_launch.errors import LaunchError
from prefect_launch.sources.git_command import ASK_TIMEOUT_SECONDS, Git
from prefect_launch.sources.remote import without_credentials

#: Enough to see what somebody was at; a folder of generated files must not fill the job's metadata.
MOST_CHANGED: Final = 50
MOST_CHARS: Final = 200


async def describe_work_tree(folder: Path) -> dict[str, Any] | None:
    """Return what is known of a folder's repository, or `None` when it is in none.

    Args:
        folder: the code.

    Returns:
        `commit`; `remote`, without credentials; `dirty`, whether the folder has changes that are not committed; and
        then `changed`, the first of the files that have, with git's letters, and `changed_count`.
    """
    git = Git(allowed_protocols=())

    async def ask(*arguments: str) -> str:
        return await git.run(*arguments, cwd=folder, timeout=ASK_TIMEOUT_SECONDS)

    try:
        commit = (await ask("rev-parse", "--verify", "HEAD")).strip()
        listing = await ask("status", "--porcelain", "-z", "--no-renames", "--untracked-files=normal", "--", ".")
    except LaunchError:
        # No repository, none that this user may read, no commit yet, or no git: a folder is a job without any of it.
        return None
    try:
        remote: str | None = without_credentials((await ask("remote", "get-url", "origin")).strip())
    except LaunchError:
        remote = None
    changed = [line for line in listing.split("\0") if line]
    told = {"changed": [line[:MOST_CHARS] for line in changed[:MOST_CHANGED]], "changed_count": len(changed)}
    return {"commit": commit, "dirty": bool(changed), "remote": remote, **(told if changed else {})}
