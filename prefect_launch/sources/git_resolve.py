"""From the name of a branch, a tag or a commit to the full id of a commit, by asking the remote.

A job names a commit, so that it means the same for ever; a branch moves. Names come first, as in the reference: a
branch, then a tag, then a commit. Without a name, it is the remote's own default branch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import anyio

from prefect_launch.errors import SourceError, unknown_name
from prefect_launch.sources.git_command import ASK_TIMEOUT_SECONDS, Git

_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_SHORT_COMMIT: Final = re.compile(r"[0-9a-f]{7,63}\Z")


async def resolve_commit(git: Git, remote: str, ref: str | None) -> str:
    """Return the full id of a commit of a remote.

    Args:
        git: how git is run.
        remote: a remote that was checked.
        ref: branch, tag or commit (at least 7 characters of it); `None` is the default branch.

    Raises:
        NotFoundError: when the remote has no such branch, tag or commit. The nearest right one is named.
        SourceError: when the remote cannot be read.
        InfrastructureError: when the network or the host is at fault.
    """
    async with anyio.TemporaryDirectory(prefix="launch-git-") as scratch:
        folder = Path(scratch)
        refs = _parse(
            await git.run(
                "ls-remote",
                "--",
                remote,
                "HEAD",
                "refs/heads/*",
                "refs/tags/*",
                cwd=folder,
                remote=remote,
                timeout=ASK_TIMEOUT_SECONDS,
            )
        )
        if ref is None:
            if "HEAD" not in refs:
                raise SourceError(
                    f"Unable to determine branch or commit to checkout from {remote}: it names no default branch."
                    " Name a branch, a tag or a commit."
                )
            return refs["HEAD"]
        named = _named(refs, ref)
        if named is None and _SHORT_COMMIT.match(ref.lower()):
            named = await _commit_named(git, remote, ref.lower(), folder)
        if named is None:
            known = [name.removeprefix("refs/heads/").removeprefix("refs/tags/") for name in refs if name != "HEAD"]
            raise unknown_name("branch, tag or commit", ref, known, where=f" of {remote}")
        return named


def _parse(listing: str) -> dict[str, str]:
    """Read the answer of `git ls-remote`; for an annotated tag the commit counts, not the tag's own object."""
    refs: dict[str, str] = {}
    for line in listing.splitlines():
        commit, _, name = line.partition("\t")
        if name.endswith("^{}") or name not in refs:
            refs[name.removesuffix("^{}")] = commit
    return refs


def _named(refs: dict[str, str], ref: str) -> str | None:
    short = ref.removeprefix("refs/heads/").removeprefix("refs/tags/").removeprefix("origin/")
    for name in (f"refs/heads/{ref}", f"refs/tags/{ref}", f"refs/heads/{short}", f"refs/tags/{short}"):
        if name in refs:
            return refs[name]
    return ref.lower() if ref.lower() in refs.values() else None


async def _commit_named(git: Git, remote: str, commit: str, folder: Path) -> str | None:
    """Look for a commit that no branch or tag points to. Only commits are fetched, no files."""
    await git.run("init", "--quiet", "--bare", "--template=", ".", cwd=folder)
    if _COMMIT.match(commit):
        try:
            await git.run(
                "fetch", "--quiet", "--depth=1", "--filter=tree:0", "--", remote, commit, cwd=folder, remote=remote
            )
            return commit
        except SourceError:
            pass  # many hosts do not give a commit by its id; look for it in the branches
    await git.run(
        "fetch", "--quiet", "--filter=tree:0", "--", remote, "refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*",
        cwd=folder, remote=remote,
    )  # fmt: skip
    try:
        return (await git.run("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}", cwd=folder)).strip()
    except SourceError:
        return None
