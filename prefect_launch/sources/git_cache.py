"""Git cache: one bare repository for each remote on a machine, so a commit is fetched once.

A repository is in `<home>/git/<host-path-hash>`, for all agents of that home; a file lock next to it lets one process
write at a time. A complete commit has a ref `refs/launch/<commit>`, written last: then the network is not asked at all.
A damaged repository is deleted and made anew. The folder's time is the time of the last use; code that removes old
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
    """The cached repositories of this machine."""

    def __init__(self, folder: Path, git: Git) -> None:
        self._folder = folder.absolute()
        self._git = git
        self._local = Git(git.settings, allowed_protocols=("file",))

    def path_of(self, remote: str) -> Path:
        """Return the folder of a remote's cached repository."""
        readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name_of(remote))[:60].strip("-.")
        return self._folder / f"{readable}-{hashlib.sha256(remote.encode()).hexdigest()[:16]}"

    async def put(self, remote: str, commit: str, folder: Path) -> None:
        """Put one commit of a checked remote into an empty repository, without its history.

        Raises:
            SourceError: when the remote or the commit cannot be fetched.
            InfrastructureError: when the network, the host or the disk fails.
        """
        cached = self.path_of(remote)
        async with locked(cached.with_name(f"{cached.name}.lock")) as lock:
            was_there = await to_thread.run_sync(cached.exists)
            try:
                await self._update(cached, remote, commit, lock)
                await self._take(cached, commit, folder)
            except (SourceError, _UnreadableError) as error:
                # Check every byte when reading failed, and else only the connections.
                depth = () if isinstance(error, _UnreadableError) else ("--connectivity-only",)
                if not was_there or await self._is_whole(cached, *depth):
                    raise
                _logger.warning("The copy of %s in %s is damaged and is made anew: %s", remote, cached, error)
                await to_thread.run_sync(remove_tree, cached)
                await self._update(cached, remote, commit, lock)
                await self._take(cached, commit, folder)

    async def _update(self, cached: Path, remote: str, commit: str, lock: int) -> None:
        if not await to_thread.run_sync(_is_made, cached):
            await to_thread.run_sync(_begin_anew, cached)
            await self._git.init(cached)
        await to_thread.run_sync(_freshen, cached)
        if await self._git.id_of(f"refs/launch/{commit}", cached) is not None:
            return
        await self._fetch(cached, remote, commit, lock)
        if await to_thread.run_sync(lambda: len(list(cached.glob("objects/pack/*.pack")))) > MOST_PACKS:
            await self._git.run("gc", "--quiet", "--prune=now", cwd=cached, inherited=(lock,))

    async def _fetch(self, cached: Path, remote: str, commit: str, lock: int) -> None:
        async def fetch(*arguments: str) -> None:
            # git inherits the lock, since it may outlive a killed agent.
            await self._git.fetch("--no-write-fetch-head", *arguments, into=cached, remote=remote, inherited=(lock,))

        try:
            await fetch("--no-tags", "--depth=1", "--", remote, f"+{commit}:refs/launch/{commit}")
            return
        except SourceError as error:
            _logger.debug("%s gives no single commit: %s", remote, error)
        # Some hosts give no single commit: fetch the branches and tags, and look for it there.
        await fetch("--", remote, *_BRANCHES_AND_TAGS)
        if await self._git.id_of(f"{commit}^{{commit}}", cached) is None:
            raise SourceError(
                f"The commit {commit} of {remote} is gone: no branch or tag leads to it any more. Was its branch"
                " rewritten or deleted? Make the job again, at a commit that exists."
            )
        await self._git.run("update-ref", f"refs/launch/{commit}", commit, cwd=cached)

    async def _take(self, cached: Path, commit: str, folder: Path) -> None:
        only = ("--depth=1", "--no-tags", "--no-write-fetch-head", str(cached), f"refs/launch/{commit}")
        try:
            await self._local.fetch(*only, into=folder, remote=None)
        except (SourceError, InfrastructureError) as error:
            raise _UnreadableError(f"The copy of a git remote in {cached} cannot be read: {error}") from error

    async def _is_whole(self, cached: Path, *depth: str) -> bool:
        try:
            await self._git.run("fsck", *depth, "--no-dangling", "--no-progress", cwd=cached)
        except SourceError:
            return False
        return True


def _is_made(cached: Path) -> bool:
    return (cached / "HEAD").is_file() and (cached / "objects").is_dir() and (cached / "refs").is_dir()


def _begin_anew(cached: Path) -> None:
    remove_tree(cached)
    cached.mkdir(parents=True)


def _freshen(cached: Path) -> None:
    """Set the time of the last use, and remove what a killed git has left: locks and half a pack."""
    os.utime(cached)
    refs = (Path(parent, name) for parent, _, names in walk(cached / "refs") for name in names)
    locks = (path for path in refs if path.suffix == ".lock")
    for left in (*cached.glob("*.lock"), *locks, *cached.glob("objects/pack/tmp_*")):
        left.unlink(missing_ok=True)
