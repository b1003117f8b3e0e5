"""Releases by `make release`, in a repository of the test's own: what is refused, what is made, what users install."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from datetime import datetime, timezone
from email.parser import Parser
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
NOTHING_NEW = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n## [1.1.0] - 2026-01-01\n\n- A thing.\n"
NEWS = NOTHING_NEW.replace("### Added\n", "### Added\n\n- Another thing.\n")


class Repository:
    """A copy of this project's files, with one commit and the tag of an earlier version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in _run("git", "ls-files", "--cached", "--others", "--exclude-standard", cwd=PROJECT).splitlines():
            if (PROJECT / name).is_file() and not name.startswith(("tests/", "docs/")):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PROJECT / name, folder / name)
        self.git("init", "--quiet", "--initial-branch", "main")
        self.git("config", "user.name", "A maintainer")
        self.git("config", "user.email", "maintainer@example.com")
        self.changelog(NEWS)
        self.git("tag", "v1.1.0")

    def git(self, *arguments: str) -> str:
        return _run("git", *arguments, cwd=self.folder)

    def changelog(self, text: str) -> None:
        """Commit a changelog, and all else."""
        (self.folder / "CHANGELOG.md").write_text(text)
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", "A change")

    def release(self, *variables: str) -> subprocess.CompletedProcess[str]:
        """`make release`, with this test's Python as the one that the project's environment has."""
        environment = ("--old-file", f"{sys.prefix}/.made-dev", f"VENV={sys.prefix}")
        command = ["make", "--no-print-directory", *environment, "release", *variables]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=240, check=False)

    @property
    def state(self) -> str:
        """All that a release may change here."""
        return "".join(
            self.git(*asked)
            for asked in (("for-each-ref",), ("status", "--porcelain", "--ignored"), ("worktree", "list"))
        )


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository of this test's own."""
    folder = tmp_path / "repository"
    folder.mkdir()
    return Repository(folder)


def test_release_that_is_refused_names_the_reason_and_leaves_nothing_behind(repository: Repository) -> None:
    before = repository.state
    refused = {version: repository.release(f"VERSION={version}") for version in ("", "v1.2.0", "1.1.0", "1.0.9")}
    (repository.folder / "new.py").touch()
    dirty = repository.release("VERSION=1.2.0")
    (repository.folder / "new.py").unlink()
    after = repository.state
    repository.changelog(NOTHING_NEW)
    empty = repository.release("VERSION=1.2.0", "DRY=1")

    assert {version: done.stderr.splitlines()[0] for version, done in refused.items()} == {
        "": "release: the version is ''; write it as 1.2.0 or 1.2.0rc1: make release VERSION=1.2.0",
        "v1.2.0": "release: the version is 'v1.2.0'; write it as 1.2.0 or 1.2.0rc1: make release VERSION=1.2.0",
        "1.1.0": "release: the tag v1.1.0 exists; choose a greater version",
        "1.0.9": "release: the version is 1.0.9; it must be greater than the last, 1.1.0",
    }
    assert dirty.stderr.startswith("release: the work tree has changes that are not committed")
    assert "?? new.py" in dirty.stderr
    assert empty.stderr.startswith("release: CHANGELOG.md says nothing under [Unreleased]")
    assert before == after


def test_dry_run_builds_and_checks_and_keeps_nothing(repository: Repository) -> None:
    before = repository.state
    done = repository.release("VERSION=1.2.0", "DRY=1")

    assert done.returncode == 0, done.stderr
    assert "v1.2.0 builds" in done.stdout
    assert "- Another thing." in done.stdout
    assert repository.state == before


def test_release_that_fails_twines_check_leaves_nothing_behind(repository: Repository) -> None:
    (repository.folder / "README.md").write_text("")
    repository.changelog(NEWS)
    before = repository.state
    done = repository.release("VERSION=1.2.0")

    assert done.returncode != 0
    assert "`long_description` missing" in done.stderr
    assert repository.state == before


@pytest.mark.timeout(600)
def test_released_wheel_installs_into_a_fresh_environment_with_all_that_belongs_to_it(
    repository: Repository, tmp_path: Path
) -> None:
    done = repository.release("VERSION=1.2.0")
    assert done.returncode == 0, done.stderr

    wheel, sdist = (
        repository.folder / "dist" / f"prefect_launch-1.2.0{end}" for end in ("-py3-none-any.whl", ".tar.gz")
    )
    today = datetime.now(timezone.utc).date()
    assert repository.git("log", "-1", "--format=%s%n%D").splitlines() == [
        "Release 1.2.0",
        "HEAD -> main, tag: v1.2.0",
    ]
    assert repository.git("tag", "--list", "--format=%(contents)", "v1.2.0").split("\n", 2) == [
        "1.2.0",
        "",
        "### Added\n\n- Another thing.\n\n",
    ]
    assert f"## [Unreleased]\n\n## [1.2.0] - {today}\n\n### Added\n\n- Another thing.\n\n## [1.1.0]" in (
        (repository.folder / "CHANGELOG.md").read_text()
    )
    assert "git push origin HEAD v1.2.0" in done.stdout
    assert f"twine upload dist/{wheel.name} dist/{sdist.name}" in done.stdout
    assert repository.git("status", "--porcelain") == ""

    packed = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as archive:
        sources = {name.partition("/")[2] for name in archive.getnames()}
    tracked = set(repository.git("ls-files", "prefect_launch").splitlines())
    assert tracked <= packed
    assert tracked | {"LICENSE", "README.md", "pyproject.toml", "examples/sweep/sweep.yaml"} <= sources
    assert "prefect_launch-1.2.0.dist-info/licenses/LICENSE" in packed
    about = Parser().parsestr(zipfile.ZipFile(wheel).read("prefect_launch-1.2.0.dist-info/METADATA").decode())
    assert {line.partition(",")[0] for line in about.get_all("Project-URL", [])} == {
        *("Homepage", "Documentation", "Source", "Changelog", "Issues")
    }
    assert (about["Author"], about["License-Expression"]) == ("The prefect-launch authors", "Apache-2.0")

    uv = (sys.executable, "-m", "uv")
    fresh = tmp_path / "fresh"
    _run(*uv, "venv", "--quiet", str(fresh), cwd=tmp_path)
    _run(*uv, "pip", "install", "--quiet", "--python", f"{fresh}/bin/python", f"{wheel}[gpu,notebook]", cwd=tmp_path)
    assert _run(f"{fresh}/bin/prefect-launch", "--version", cwd=tmp_path) == "prefect-launch 1.2.0\n"


def _run(*command: str, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in {"UV_CONSTRAINT", "VIRTUAL_ENV"}}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout
