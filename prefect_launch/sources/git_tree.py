"""What a commit holds beside plain files: submodules, and symbolic links."""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass
from pathlib import Path

from anyio import to_thread

from prefect_launch.core.deep_folders import walk
from prefect_launch.errors import SourceError
from prefect_launch.sources.git_command import Git


@dataclass(frozen=True)
class Submodule:
    """A commit of another repository, at a path of this one."""

    path: str
    url: str
    commit: str


async def submodules_of(git: Git, folder: Path, remote: str) -> list[Submodule]:
    """List the submodules of the commit that is checked out in a folder, less those that say `update = none`.

    Args:
        git: how git is run.
        folder: the work tree.
        remote: where it came from, that relative addresses go from.

    Raises:
        SourceError: when one has no address.
    """
    if not (folder / ".gitmodules").is_file():
        return []
    commits = {
        path: about.split(" ")[2]
        for line in (await git.run("ls-tree", "-r", "-z", "HEAD", cwd=folder)).split("\0")
        for about, _, path in [line.partition("\t")]
        if about.startswith("160000 ")
    }
    told: dict[str, dict[str, str]] = {}
    for entry in (await git.run("config", "--file", ".gitmodules", "--null", "--list", cwd=folder)).split("\0"):
        key, _, value = entry.partition("\n")
        section, _, rest = key.partition(".")
        name, _, option = rest.rpartition(".")
        if section == "submodule" and name:
            told.setdefault(name, {})[option] = value
    by_path = {options["path"]: options for options in told.values() if "path" in options}
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


async def refuse_leaving_links(folder: Path, remote: str) -> None:
    """Refuse a tree with a symbolic link that leaves it, as in folders of code: it would lead into this machine.

    Raises:
        SourceError: naming the link.
    """
    link = await to_thread.run_sync(_leaving_link, folder)
    if link is not None:
        raise SourceError(
            f"The link {link} in {remote} leads out of the repository, to {os.readlink(folder / link)!r}. Put what it"
            " points to into the repository, or take the link out."
        )


def _leaving_link(folder: Path) -> str | None:
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
                return os.path.relpath(path, folder)
    return None
