"""Git jobs: one commit of a remote, with its submodules, and nothing of the history."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from anyio import to_thread

from prefect_launch.core.deep_folders import temporary_folder_async
from prefect_launch.errors import InfrastructureError, InternalError, SourceError
from prefect_launch.jobs.model import GitJobSource, Job, SourceKind
from prefect_launch.sources.base import Source
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.git_mirror import Mirrors
from prefect_launch.sources.git_settings import GitSettings
from prefect_launch.sources.git_tree import refuse_leaving_links, submodules_of
from prefect_launch.sources.notebook import convert_in
from prefect_launch.sources.remote import check_remote

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry

#: Submodules in submodules; deeper ones most likely name each other in a ring.
MOST_LEVELS: Final = 8


class GitSource(Source):
    """A commit of a git remote.

    Args:
        home: the folder of prefect-launch; the copies of remotes are in `git` in it.
        settings: how git works on this machine.
        git: how it is run; tests give one that may use files.
    """

    kind: ClassVar[SourceKind] = SourceKind.GIT

    def __init__(self, home: Path, settings: GitSettings | None = None, *, git: Git | None = None) -> None:
        super().__init__(home, settings)
        self._git = git or Git(settings)
        self._mirrors = Mirrors(home / "git", self._git)

    async def fetch(self, job: Job, destination: Path, registry: JobRegistry) -> None:
        """Check the job's commit out."""
        source = job.document.source
        if not isinstance(source, GitJobSource):
            raise InternalError(f"The job {job.reference} is of kind {job.kind.value!r}, not a git job.")
        remote = check_remote(source.git.remote, self._git.protocols)
        await self.check_out(remote, source.git.commit, destination)
        if source.notebook:
            await to_thread.run_sync(convert_in, destination, source.entrypoint, source.build_context)

    async def check_out(self, remote: str, commit: str, destination: Path) -> None:
        """Put the files of a commit into a folder.

        Args:
            remote: a remote that was checked.
            commit: the full id of the commit.
            destination: the folder; it must not exist yet, or be empty.

        Raises:
            SourceError: when the remote or the commit cannot be had, or a link in it leads out of it.
            InfrastructureError: when the network, the host or the disk is at fault.
        """
        await to_thread.run_sync(lambda: destination.parent.mkdir(parents=True, exist_ok=True))
        async with temporary_folder_async(".git-", destination.parent) as scratch:
            folder = scratch / "code"
            await self._lay_out(remote, commit, folder, level=0)
            await refuse_leaving_links(folder, remote)
            try:
                await to_thread.run_sync(folder.replace, destination)
            except OSError as error:
                raise InfrastructureError(
                    f"The code of {remote} cannot be put into {destination}: {error}. Is that folder in use?"
                ) from error

    async def _lay_out(self, remote: str, commit: str, folder: Path, *, level: int) -> None:
        if level > MOST_LEVELS:
            raise SourceError(
                f"The submodules of {remote} go more than {MOST_LEVELS} levels deep. Do they name each other?"
            )
        await to_thread.run_sync(lambda: folder.mkdir(exist_ok=True))
        await self._git.run("init", "--quiet", "--template=", ".", cwd=folder)
        await self._git.run("remote", "add", "origin", remote, cwd=folder)
        await self._mirrors.put(remote, commit, folder)
        # A filter of the machine's own (git-lfs) may ask the remote.
        await self._git.run("checkout", "--quiet", "--detach", commit, "--", cwd=folder, remote=remote)
        for submodule in await submodules_of(self._git, folder, remote):
            url = check_remote(submodule.url, self._git.protocols)
            await self._lay_out(url, submodule.commit, folder / submodule.path, level=level + 1)
