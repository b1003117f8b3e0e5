"""Git jobs: one commit of a remote, with its submodules, and nothing of the history."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import anyio
from anyio import to_thread

from prefect_launch.errors import InfrastructureError, InternalError, SourceError
from prefect_launch.jobs.model import GitJobSource, Job, SourceKind
from prefect_launch.sources.base import Source
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.remote import ALLOWED_PROTOCOLS, check_remote

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry


class GitSource(Source):
    """A commit of a git remote.

    Args:
        allowed_protocols: what git may speak; tests add `file` for a repository on this disk.
    """

    kind: ClassVar[SourceKind] = SourceKind.GIT

    def __init__(self, *, allowed_protocols: Sequence[str] = ALLOWED_PROTOCOLS) -> None:
        self._git = Git(allowed_protocols=allowed_protocols)

    async def fetch(self, job: Job, destination: Path, registry: JobRegistry) -> None:
        """Check the job's commit out."""
        source = job.document.source
        if not isinstance(source, GitJobSource):
            raise InternalError(f"The job {job.reference} is of kind {job.kind.value!r}, not a git job.")
        await self.check_out(check_remote(source.git.remote), source.git.commit, destination)

    async def check_out(self, remote: str, commit: str, destination: Path) -> None:
        """Put the files of a commit into a folder.

        Args:
            remote: a remote that was checked.
            commit: the full id of the commit.
            destination: the folder; it must not exist yet, or be empty.

        Raises:
            SourceError: when the remote or the commit cannot be had.
            InfrastructureError: when the network, the host or the disk is at fault.
        """
        await to_thread.run_sync(lambda: destination.parent.mkdir(parents=True, exist_ok=True))
        async with anyio.TemporaryDirectory(prefix=".git-", dir=str(destination.parent)) as scratch:
            folder = Path(scratch, "code")
            await to_thread.run_sync(folder.mkdir)
            await self._git.run("init", "--quiet", "--template=", ".", cwd=folder)
            await self._git.run("remote", "add", "origin", remote, cwd=folder)
            await self._fetch(commit, folder)
            await self._git.run("checkout", "--quiet", "--detach", commit, "--", cwd=folder)
            await self._git.run("submodule", "--quiet", "update", "--init", "--recursive", "--depth=1", cwd=folder)
            try:
                await to_thread.run_sync(folder.replace, destination)
            except OSError as error:
                raise InfrastructureError(
                    f"The code of {remote} cannot be put into {destination}: {error}. Is that folder in use?"
                ) from error

    async def _fetch(self, commit: str, folder: Path) -> None:
        try:
            await self._git.run("fetch", "--quiet", "--depth=1", "origin", commit, cwd=folder)
        except SourceError:
            # Many hosts do not give a commit by its id: take the branches and tags, and look for it there.
            await self._git.run("fetch", "--quiet", "--tags", "origin", cwd=folder)
