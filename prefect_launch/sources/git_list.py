"""Which files a commit has, told by the remote without giving them: names cost little, whatever the files' size."""

from __future__ import annotations

from pathlib import Path

import anyio

from prefect_launch.errors import SourceError
from prefect_launch.sources.git_command import ASK_TIMEOUT_SECONDS, Git


async def list_files(git: Git, remote: str, commit: str) -> tuple[list[str], list[str]] | None:
    """List the files and the submodules of a commit.

    Args:
        git: how git is run.
        remote: a remote that was checked.
        commit: the full id of the commit.

    Returns:
        Paths of the files, and paths of the submodules; `None` when the host tells no single commit.

    Raises:
        InfrastructureError: when the network or the host is at fault.
    """
    async with anyio.TemporaryDirectory(prefix="launch-git-") as scratch:
        folder = Path(scratch)
        await git.run("init", "--quiet", "--bare", "--template=", ".", cwd=folder)
        only_names = ("--depth=1", "--no-tags", "--filter=blob:none", "--", remote, commit)
        try:
            await git.run("fetch", "--quiet", *only_names, cwd=folder, remote=remote, timeout=ASK_TIMEOUT_SECONDS)
            listing = await git.run("ls-tree", "-r", "-z", commit, cwd=folder)
        except SourceError:
            return None
    files: list[str] = []
    submodules: list[str] = []
    for line in listing.split("\0"):
        about, _, path = line.partition("\t")
        if path:
            (submodules if about.startswith("160000 ") else files).append(path)
    return files, submodules
