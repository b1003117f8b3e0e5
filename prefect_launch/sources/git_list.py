"""Which files a commit has, told by the remote without giving them: names cost little, whatever the files' size.

Only the few small files that say what the code needs are fetched too, where the host gives single files.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.errors import SourceError
from prefect_launch.sources.git_command import ASK_TIMEOUT_SECONDS, Git

#: What is fetched of a commit's files, and how many of them at most.
_TOLD_BY: Final = re.compile(
    r"(?:.*/)?(?:pyproject\.toml|setup\.py|uv\.toml|[^/]*(?:requirement|constraint)[^/]*\.(?:txt|in)"
    r"|(?:requirements?|constraints?|reqs?|deps)/[^/]*\.(?:txt|in))"
)
_MOST_FETCHED: Final = 50


@dataclass(frozen=True)
class CommitListing:
    """What a commit holds.

    Attributes:
        files: paths of its files.
        submodules: paths of its submodules.
        contents: of the files that say what the code needs, as far as the host gives them.
    """

    files: tuple[str, ...]
    submodules: tuple[str, ...] = ()
    contents: Mapping[str, bytes] = field(default_factory=dict, repr=False)


async def list_files(git: Git, remote: str, commit: str) -> CommitListing | None:
    """List the files and the submodules of a commit.

    Args:
        git: how git is run.
        remote: a remote that was checked.
        commit: the full id of the commit.

    Returns:
        What it holds; `None` when the host tells no single commit.

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
        files: dict[str, str] = {}
        submodules: list[str] = []
        for line in listing.split("\0"):
            about, _, path = line.partition("\t")
            if about.startswith("160000 "):
                submodules.append(path)
            elif path:
                files[path] = about
        told_by = [path for path, about in files.items() if _TOLD_BY.fullmatch(path) and about.startswith("100")]
        nearest = sorted(told_by, key=lambda path: (path.count("/"), path))[:_MOST_FETCHED]
        contents = await _contents(git, remote, commit, folder, {path: files[path].split()[-1] for path in nearest})
        return CommitListing(tuple(files), tuple(submodules), contents)


async def _contents(git: Git, remote: str, commit: str, folder: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """Fetch some files of a commit whose names are there; of a host that gives no single file there are none."""
    if not wanted:
        return {}
    tree = folder / "wanted"
    tree.mkdir()
    with contextlib.suppress(SourceError):
        single = ("--no-tags", "--depth=1", "--filter=blob:none", "--", remote, *sorted(set(wanted.values())))
        await git.run("fetch", "--quiet", *single, cwd=folder, remote=remote, timeout=ASK_TIMEOUT_SECONDS)
    with contextlib.suppress(SourceError):
        await git.run(f"--work-tree={tree}", "checkout", "--quiet", commit, "--", *wanted, cwd=folder)
    return {path: await anyio.Path(tree / path).read_bytes() for path in wanted if (tree / path).is_file()}
