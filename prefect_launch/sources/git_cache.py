"""Git cache: one bare repository for each remote on a machine, so a commit is fetched once.

A repository is in `<home>/git/<host-path-hash>`, for all agents of that home; a file lock beside it lets one process
write at a time. A complete commit has a ref `refs/launch/<commit>`, written last: then the network is not asked at all.
A damaged repository is deleted and made anew. The folder's time is the time of the last use; whoever removes old
repositories takes the lock first.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Final

from anyio import to_thread
from prefect.logging import get_logger

from prefect_launch.core.file_lock import locked
from prefect_launch.core.filesystem import remove_tree, walk
from prefect_launch.errors import InfrastructureError, SourceError
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.remote import name_of

#: Each fetch adds a pack. When there are this many, git makes them one, so that lookups stay fast.
MOST_PACKS: Final = 50
_BRANCHES_AND_TAGS: Final = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")

_logger = get_logger("launch.git")


class _UnreadableError(InfrastructureError):
    """A cached repository does not give what it should hold."""


class GitCache:
    """The cached repositories of this machine.

    Args:
        folder: the folder of the repositories.
        git: runs git.
    """

    def __init__(self, folder: Path, git: Git) -> None:
        self._folder = folder.absolute()
        self._git = git
        self._local = Git(git.settings, allowed_protocols=("file",))

    def path_of(self, remote: str) -> Path:
        """Return the folder of a remote's cached repository."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name_of(remote))[:60].strip("-.")
        return self._folder / f"{readable}-{hashlib.sha256(remote.encode()).hexdigest()[:16]}"

    async def put(self, remote: str, commit: str, folder: Path) -> None:
        """Put one commit of a remote into a repository, without its history.

        Args:
            remote: a checked remote.
            commit: the full id of the commit.
            folder: an empty repository.

        Raises:
            SourceError: when the remote or the commit cannot be had.
            InfrastructureError: when the network, the host or the disk is at fault.
        """
        mirror = self.path_of(remote)
        async with locked(mirror.with_name(f"{mirror.name}.lock")) as lock:
            was_there = mirror.exists()
            try:
                await self._update(mirror, remote, commit, lock)
                await self._take(mirror, commit, folder)
            except (SourceError, _UnreadableError) as error:
                # Check every byte when reading failed, and else only the connections.
                depth = () if isinstance(error, _UnreadableError) else ("--connectivity-only",)
                if not was_there or await self._is_whole(mirror, *depth):
                    raise
                _logger.warning("The copy of %s in %s is damaged and is made anew: %s", remote, mirror, error)
                await to_thread.run_sync(remove_tree, mirror)
                await self._update(mirror, remote, commit, lock)
                await self._take(mirror, commit, folder)

    async def _update(self, mirror: Path, remote: str, commit: str, lock: int) -> None:
        if not await to_thread.run_sync(_is_made, mirror):
            await to_thread.run_sync(_begin_anew, mirror)
            await self._git.run("init", "--quiet", "--bare", "--template=", ".", cwd=mirror)
        await to_thread.run_sync(_freshen, mirror)
        whole = f"refs/launch/{commit}"
        if await self._has(mirror, whole):
            return
        await self._fetch(mirror, remote, commit, lock)
        if await to_thread.run_sync(_packs, mirror) > MOST_PACKS:
            await self._git.run("gc", "--quiet", "--prune=now", cwd=mirror, inherited=(lock,))

    async def _fetch(self, mirror: Path, remote: str, commit: str, lock: int) -> None:
        async def fetch(*arguments: str) -> None:
            # git inherits the lock, since it may outlive a killed agent.
            await self._git.run(
                "fetch", "--quiet", "--no-write-fetch-head", *arguments, cwd=mirror, remote=remote, inherited=(lock,)
            )

        try:
            await fetch("--no-tags", "--depth=1", "--", remote, f"+{commit}:refs/launch/{commit}")
            return
        except SourceError as error:
            _logger.debug("%s gives no single commit: %s", remote, error)
        # Some hosts give no single commit: fetch the branches and tags, and look for it there.
        await fetch("--", remote, *_BRANCHES_AND_TAGS)
        if not await self._has(mirror, f"{commit}^{{commit}}"):
            raise SourceError(
                f"The commit {commit} of {remote} is gone: no branch or tag leads to it any more. Was its branch"
                " rewritten or deleted? Make the job again, at a commit that is there."
            )
        await self._git.run("update-ref", f"refs/launch/{commit}", commit, cwd=mirror)

    async def _take(self, mirror: Path, commit: str, folder: Path) -> None:
        source = str(mirror)
        try:
            await self._local.run(
                "fetch", "--quiet", "--depth=1", "--no-tags", "--no-write-fetch-head", source, f"refs/launch/{commit}",
                cwd=folder,
            )  # fmt: skip
        except (SourceError, InfrastructureError) as error:
            raise _UnreadableError(f"The copy of a git remote in {mirror} cannot be read: {error}") from error

    async def _is_whole(self, mirror: Path, *depth: str) -> bool:
        try:
            await self._git.run("fsck", *depth, "--no-dangling", "--no-progress", cwd=mirror)
        except SourceError:
            return False
        return True

    async def _has(self, mirror: Path, name: str) -> bool:
        try:
            await self._git.run("rev-parse", "--verify", "--quiet", name, cwd=mirror)
        except SourceError:
            return False
        return True


def _is_made(mirror: Path) -> bool:
    return (mirror / "HEAD").is_file() and (mirror / "objects").is_dir() and (mirror / "refs").is_dir()


def _begin_anew(mirror: Path) -> None:
    remove_tree(mirror)
    mirror.mkdir(parents=True)


def _freshen(mirror: Path) -> None:
    """Set the time of the last use, and remove what a killed git has left: locks and half a pack."""
    os.utime(mirror)
    refs = (Path(parent, name) for parent, _, names in walk(mirror / "refs") for name in names)
    locks = (path for path in refs if path.suffix == ".lock")
    for left in (*mirror.glob("*.lock"), *locks, *mirror.glob("objects/pack/tmp_*")):
        left.unlink(missing_ok=True)


def _packs(mirror: Path) -> int:
    return sum(1 for _ in mirror.glob("objects/pack/*.pack"))
