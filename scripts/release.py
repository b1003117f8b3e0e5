"""Release of a version: the changelog's Unreleased becomes it, sdist and wheel are built and checked, and it is tagged.

    make release VERSION=1.2.0          # DRY=1 does all of it, and keeps nothing

It is made in a work tree of its own, so a release that is refused or fails leaves nothing behind. It uploads nothing.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from packaging.version import Version

_PROJECT = Path(__file__).resolve().parents[1]
_UV = (sys.executable, "-m", "uv")
_VERSION = re.compile(r"\d+\.\d+\.\d+((a|b|rc)\d+)?")
#: A tag, or the title of a release in the changelog.
_RELEASED = re.compile(rf"^(?:v|## \[)({_VERSION.pattern})(?:\]|$)", re.MULTILINE)
_UNRELEASED = re.compile(r"^## \[Unreleased\]\n(.*?)(?=^## \[|\Z)", re.MULTILINE | re.DOTALL)
_VERSION_LINE = re.compile(r'^version = ".*"$', re.MULTILINE)


class ReleaseError(Exception):
    """The release is refused, or a step of it failed."""


def main() -> None:
    """Make the release that the command line names."""
    parser = argparse.ArgumentParser(prog="make release", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version")
    parser.add_argument("--dry-run", action="store_true")
    given = parser.parse_args()
    try:
        notes = check(given.version)
        with work_tree() as tree:
            commit = make(tree, given.version, notes)
            if given.dry_run:
                print(f"Dry run: v{given.version} builds, and passes twine's checks. Nothing of it is kept.\n\n{notes}")
            else:
                keep(tree, given.version, notes, commit)
    except ReleaseError as error:
        sys.exit(f"release: {error}")


def check(version: str) -> str:
    """Return what the changelog says of the release, or refuse it."""
    if not _VERSION.fullmatch(version):
        raise ReleaseError(f"the version is '{version}'; write it as 1.2.0 or 1.2.0rc1: make release VERSION=1.2.0")
    if changed := run("git", "status", "--porcelain"):
        raise ReleaseError(f"the work tree has changes that are not committed; commit them, or undo them:\n{changed}")
    tags = run("git", "tag", "--list", "v*")
    if f"v{version}" in tags.split():
        raise ReleaseError(f"the tag v{version} exists; choose a greater version")
    changelog = (_PROJECT / "CHANGELOG.md").read_text()
    released = [found[1] for found in _RELEASED.finditer(f"{tags}\n{changelog}")]
    last = max(released, key=Version, default=None)
    if last is not None and Version(version) <= Version(last):
        raise ReleaseError(f"the version is {version}; it must be greater than the last, {last}")
    unreleased = _UNRELEASED.search(changelog)
    if unreleased is None or not re.search(r"^- ", unreleased[1], re.MULTILINE):
        raise ReleaseError("CHANGELOG.md says nothing under [Unreleased]; write there what a user sees change")
    return unreleased[1].strip()


@contextmanager
def work_tree() -> Iterator[Path]:
    """Give a checkout of the last commit for as long as the release is made."""
    with tempfile.TemporaryDirectory(prefix="release-") as scratch:
        tree = Path(scratch) / "tree"
        run("git", "worktree", "add", "--quiet", "--detach", str(tree), "HEAD")
        try:
            yield tree
        finally:
            run("git", "worktree", "remove", "--force", str(tree))


def make(tree: Path, version: str, notes: str) -> str:
    """Commit the version in the checkout, build it and check what was built; return the commit."""
    today = datetime.now(timezone.utc).date()
    section = f"## [Unreleased]\n\n## [{version}] - {today}\n\n{notes}\n\n"
    replace(tree / "CHANGELOG.md", _UNRELEASED, section)
    replace(tree / "pyproject.toml", _VERSION_LINE, f'version = "{version}"')
    run("git", "commit", "--quiet", "--all", "--message", f"Release {version}", cwd=tree)
    run(*_UV, "build", "--quiet", "--out-dir", "dist", cwd=tree)
    run(*_UV, "tool", "run", "--quiet", "twine", "check", "--strict", *built(tree), cwd=tree)
    return run("git", "rev-parse", "HEAD", cwd=tree)


def keep(tree: Path, version: str, notes: str, commit: str) -> None:
    """Bring the commit, its tag and what was built into this checkout, and say how to publish them."""
    run("git", "merge", "--quiet", "--ff-only", commit)
    run("git", "tag", "--annotate", "--cleanup=whitespace", "--message", f"{version}\n\n{notes}", f"v{version}", commit)
    (_PROJECT / "dist").mkdir(exist_ok=True)
    for file in built(tree):
        shutil.copy(tree / file, _PROJECT / file)
    print(f"v{version} is committed, tagged and built. To publish it:\n")
    print(f"  git push origin HEAD v{version}\n  uvx twine upload {' '.join(built(tree))}")


def built(tree: Path) -> list[str]:
    """Return the paths of sdist and wheel in a checkout."""
    return sorted(str(file.relative_to(tree)) for file in (tree / "dist").glob("prefect_launch-*"))


def replace(file: Path, pattern: re.Pattern[str], text: str) -> None:
    """Put a text in the place of what a pattern finds in a file."""
    file.write_text(pattern.sub(lambda _: text, file.read_text(), count=1))


def run(*command: str, cwd: Path = _PROJECT) -> str:
    """Run a program; return what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    main()
