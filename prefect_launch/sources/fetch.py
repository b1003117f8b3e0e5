"""Code fetch: brings the code of a job into a folder: an archive from the job store, or one commit of a git remote.

A commit comes with its submodules and without its history. An image job has no code: its folder stays empty.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
from anyio import to_thread

from prefect_launch.core.filesystem import temporary_folder_async, walk
from prefect_launch.errors import InfrastructureError, SourceError
from prefect_launch.jobs.model import GitJobSource, Job, SourceKind, job_requirements
from prefect_launch.sources.git_cache import GitCache
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.notebook import convert_in
from prefect_launch.sources.remote import GitSettings, check_remote

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry

#: Submodules in submodules. Deeper ones most likely name each other in a ring.
MOST_LEVELS: Final = 8


async def fetch_code(
    job: Job,
    destination: Path,
    registry: JobRegistry,
    *,
    home: Path,
    settings: GitSettings | None = None,
    git: Git | None = None,
) -> None:
    """Put the code of a job into a folder.

    Args:
        job: the job.
        destination: the folder; it must not exist yet, or be empty. Afterwards it is complete, or as it was before.
        registry: the job registry, which holds archives of code.
        home: the folder of prefect-launch on this machine; the cache of git remotes is in `git` in it.
        settings: how git works on this machine.
        git: runs git; by default with the settings.

    Raises:
        SourceError: when the code cannot be fetched and the submitter must act.
        ArtifactError: when a stored archive is damaged, or must not be unpacked.
        InfrastructureError: when the network, a host or the disk fails.
    """
    source = job.document.source
    if isinstance(source, GitJobSource):
        checkout = GitCheckout(home, settings, git=git)
        await checkout.check_out(checkout.checked(source.git.remote), source.git.commit, destination)
        await to_thread.run_sync(_add_files, destination, job_requirements(source.install, source.build_context))
        if source.notebook:
            await to_thread.run_sync(convert_in, destination, source.entrypoint, source.build_context)
    elif job.kind is SourceKind.CODE:
        await registry.fetch_code(job, destination)
    else:
        await anyio.Path(destination).mkdir(parents=True, exist_ok=True)


def _add_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, content in files.items():
        if (folder / path).parent.is_dir():  # If not, the build context is refused later.
            try:
                (folder / path).write_bytes(content)
            except OSError as error:
                raise InfrastructureError(f"{path} cannot be written: {error}. Look at this machine's disk.") from error


class GitCheckout:
    """Checks commits of git remotes out; the cache of remotes is in `git` in the folder of prefect-launch."""

    def __init__(self, home: Path, settings: GitSettings | None = None, *, git: Git | None = None) -> None:
        self._git = git or Git(settings)
        self._cache = GitCache(home / "git", self._git)

    def checked(self, remote: str) -> str:
        """Return a remote if git may use it; see `check_remote`."""
        return check_remote(remote, self._git.protocols)

    async def check_out(self, remote: str, commit: str, destination: Path) -> None:
        """Put the files of a commit of a checked remote into a folder, which must not exist yet, or be empty.

        Raises:
            SourceError: when the remote or the commit cannot be fetched, or a link in it leads out of it.
            InfrastructureError: when the network, the host or the disk fails.
        """
        await to_thread.run_sync(lambda: destination.parent.mkdir(parents=True, exist_ok=True))
        async with temporary_folder_async(".git-", destination.parent) as scratch:
            folder = scratch / "code"
            await self._lay_out(remote, commit, folder, level=0)
            await reject_links_outside(folder, remote)
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
        await self._git.init(folder, bare=False)
        await self._git.run("remote", "add", "origin", remote, cwd=folder)
        await self._cache.put(remote, commit, folder)
        # A filter of the machine's own (git-lfs) may ask the remote.
        await self._git.run("checkout", "--quiet", "--detach", commit, "--", cwd=folder, remote=remote)
        for submodule in await list_submodules(self._git, folder, remote):
            url = self.checked(submodule.url)
            await self._lay_out(url, submodule.commit, folder / submodule.path, level=level + 1)


@dataclass(frozen=True)
class Submodule:
    """A commit of another repository, at a path of this one."""

    path: str
    url: str
    commit: str


async def list_submodules(git: Git, folder: Path, remote: str) -> list[Submodule]:
    """Return the submodules of the commit that is checked out in a folder, except those with `update = none`.

    Raises:
        SourceError: when one has no address.
    """
    if not await anyio.Path(folder / ".gitmodules").is_file():
        return []
    commits = {
        path: about.split(" ")[2]
        for line in (await git.run("ls-tree", "-r", "-z", "HEAD", cwd=folder)).split("\0")
        for about, _, path in [line.partition("\t")]
        if about.startswith("160000 ")
    }
    sections: dict[str, dict[str, str]] = {}
    for entry in (await git.run("config", "--file", ".gitmodules", "--null", "--list", cwd=folder)).split("\0"):
        key, _, value = entry.partition("\n")
        section, _, rest = key.partition(".")
        name, _, option = rest.rpartition(".")
        if section == "submodule" and name:
            sections.setdefault(name, {})[option] = value
    by_path = {options["path"]: options for options in sections.values() if "path" in options}
    found = []
    for path, commit in commits.items():
        options = by_path.get(path, {})
        if options.get("update") == "none":
            continue
        if "url" not in options:
            raise SourceError(
                f"The submodule {path!r} of {remote} has no address: .gitmodules does not tell its url. Add it there,"
                " or take the submodule out."
            )
        found.append(Submodule(path, resolve_url(options["url"], remote), commit))
    return found


def resolve_url(url: str, remote: str) -> str:
    """Return a submodule's address; `../other.git` is relative to the repository that names it, as git has it."""
    if not url.startswith(("./", "../")):
        return url
    scheme, mark, rest = remote.partition("://") if "://" in remote else ("", "", remote)
    prefix, slash, path = rest.rstrip("/").partition("/" if mark else ":")
    joined = posixpath.normpath(posixpath.join(path, url))
    if joined.startswith(".."):
        raise SourceError(f"The address {url!r} of a submodule of {remote} leads above its host. Correct .gitmodules.")
    return f"{scheme}{mark}{prefix}{slash}{joined}"


async def reject_links_outside(folder: Path, remote: str) -> None:
    """Refuse a tree with a symbolic link that leaves it, as for folders of code: it would lead into this machine.

    Raises:
        SourceError: naming the link.
    """
    found = await to_thread.run_sync(_leaving_link, folder)
    if found is not None:
        link, target = found
        raise SourceError(
            f"The link {link} in {remote} leads out of the repository, to {target!r}. Put what it"
            " points to into the repository, or take the link out."
        )


def _leaving_link(folder: Path) -> tuple[str, str] | None:
    root = os.path.realpath(folder)
    for place, folders, files in walk(folder):
        if place == str(folder) and ".git" in folders:
            folders.remove(".git")
        for name in (*folders, *files):
            path = os.path.join(place, name)
            if not os.path.islink(path):
                continue
            target = os.path.realpath(path)
            if os.path.isabs(os.readlink(path)) or not (target == root or target.startswith(f"{root}{os.sep}")):
                return os.path.relpath(path, folder), os.readlink(path)
    return None
