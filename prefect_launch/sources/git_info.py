"""Git lookups: the commit that a name means, the files of a commit, and the state of a work tree.

A job names a commit, so that it always means the same; a branch moves. Names are looked up as in the reference: first a
branch, then a tag, then a commit. Without a name, the remote's default branch counts. The files of a commit are listed
without being fetched; only the few small files that state dependencies are, where the host gives single files.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import anyio

from prefect_launch.errors import LaunchError, SourceError, unknown_name
from prefect_launch.sources.git_command import ASK_TIMEOUT_SECONDS, Git
from prefect_launch.sources.remote import without_credentials

_COMMIT: Final = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?\Z")
_SHORT_COMMIT: Final = re.compile(r"[0-9a-f]{7,63}\Z")
#: The files of a commit that are fetched, and the most of them.
_REQUIREMENTS: Final = re.compile(
    r"(?:.*/)?(?:pyproject\.toml|setup\.py|uv\.toml|(?:environment|conda)\.ya?ml|[^/]*(?:requirement|constraint)[^/]*\.(?:txt|in)"
    r"|(?:requirements?|constraints?|reqs?|deps)/[^/]*\.(?:txt|in))"
)
_MOST_FETCHED: Final = 50
#: Enough to see what was changed; a folder of generated files must not fill the job's metadata.
MOST_CHANGED: Final = 50
MOST_CHARS: Final = 200


async def resolve_commit(git: Git, remote: str, ref: str | None) -> str:
    """Return the full id of a remote's branch, tag or commit (7 characters or more), or of its default branch.

    Raises:
        NotFoundError: when the remote has no such branch, tag or commit. The nearest right one is named.
        SourceError: when the remote cannot be read.
        InfrastructureError: when the network or the host fails.
    """
    async with anyio.TemporaryDirectory(prefix="launch-git-") as scratch:
        folder = Path(scratch)
        asked = ("ls-remote", "--", remote, "HEAD", "refs/heads/*", "refs/tags/*")
        refs = _parse(await git.run(*asked, cwd=folder, remote=remote, timeout=ASK_TIMEOUT_SECONDS))
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
    """Return the full id of a commit that no branch or tag points to; only commits are fetched, no files."""
    await git.init(folder)
    if _COMMIT.match(commit):
        with contextlib.suppress(SourceError):  # Many hosts give no commit by its id; look for it in the branches.
            await git.fetch("--depth=1", "--filter=tree:0", "--", remote, commit, into=folder, remote=remote)
            return commit
    names = ("refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*")
    await git.fetch("--filter=tree:0", "--", remote, *names, into=folder, remote=remote)
    return await git.id_of(f"{commit}^{{commit}}", folder)


@dataclass(frozen=True)
class CommitListing:
    """The content of a commit.

    Attributes:
        files: paths of its files.
        submodules: paths of its submodules.
        contents: content of the files that state what the code needs, as far as the host gives them.
    """

    files: tuple[str, ...]
    submodules: tuple[str, ...] = ()
    contents: Mapping[str, bytes] = field(default_factory=dict, repr=False)


async def ls_remote_files(git: Git, remote: str, commit: str, *, read: Collection[str] = ()) -> CommitListing | None:
    """Return the files and the submodules of a commit of a checked remote, without fetching them.

    Args:
        git: the command.
        remote: that the commit is of.
        commit: its full id.
        read: paths of further files whose content is wanted.

    Returns:
        The content; `None` when the host gives no single commit.

    Raises:
        InfrastructureError: when the network or the host fails.
    """
    async with anyio.TemporaryDirectory(prefix="launch-git-") as scratch:
        folder = Path(scratch)
        await git.init(folder)
        only_names = ("--depth=1", "--no-tags", "--filter=blob:none", "--", remote, commit)
        try:
            await git.fetch(*only_names, into=folder, remote=remote, timeout=ASK_TIMEOUT_SECONDS)
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
        requirements = [
            path for path, about in files.items() if _REQUIREMENTS.fullmatch(path) and about.startswith("100")
        ]
        nearest = sorted(requirements, key=lambda path: (path.count("/"), path))[:_MOST_FETCHED]
        scripts = [path for path in read if files.get(path, "").startswith("100")]
        wanted = {path: files[path].split()[-1] for path in (*nearest, *scripts)}
        contents = await _contents(git, remote, commit, folder, wanted)
        return CommitListing(tuple(files), tuple(submodules), contents)


async def _contents(git: Git, remote: str, commit: str, folder: Path, wanted: Mapping[str, str]) -> dict[str, bytes]:
    """Fetch some files of a commit; none from a host that gives no single file."""
    if not wanted:
        return {}
    tree = folder / "wanted"
    await anyio.Path(tree).mkdir()
    with contextlib.suppress(SourceError):
        single = ("--no-tags", "--depth=1", "--filter=blob:none", "--", remote, *sorted(set(wanted.values())))
        await git.fetch(*single, into=folder, remote=remote, timeout=ASK_TIMEOUT_SECONDS)
    with contextlib.suppress(SourceError):
        await git.run(f"--work-tree={tree}", "checkout", "--quiet", commit, "--", *wanted, cwd=folder)
    files = {path: anyio.Path(tree / path) for path in wanted}
    return {path: await file.read_bytes() for path, file in files.items() if await file.is_file()}


async def describe_work_tree(folder: Path) -> dict[str, Any] | None:
    """Return the state of the git work tree that a folder is in, for the job's metadata; `None` when it is in none.

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
        # No repository, no permission, no commit, or no git: a folder is a job without any of them.
        return None
    try:
        remote: str | None = without_credentials((await ask("remote", "get-url", "origin")).strip())
    except LaunchError:
        remote = None
    changed = [line for line in listing.split("\0") if line]
    changes = {"changed": [line[:MOST_CHARS] for line in changed[:MOST_CHANGED]], "changed_count": len(changed)}
    return {"commit": commit, "dirty": bool(changed), "remote": remote, **(changes if changed else {})}
