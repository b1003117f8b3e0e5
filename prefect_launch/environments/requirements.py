"""What a code folder says that it needs: what uv installs, the files that it reads, and the key of the environment.

The first of these that is there counts: `requirements.txt`, `uv.lock` beside a `pyproject.toml`, the project (a
`pyproject.toml` or `setup.py`, of any build backend), `requirements.frozen.txt`. uv reads them in a copy of the code's
own folders, which stays beside the environment: so a package of the code can be installed there as it is, editable too.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from prefect_launch.core.deep_folders import make_folders
from prefect_launch.environments.code_tree import CodeTree
from prefect_launch.environments.pip_files import PipFiles
from prefect_launch.environments.projects import FILE, SETUP, Project, find_project
from prefect_launch.errors import SourceError

PIP_FILE: Final = "requirements.txt"
_FROZEN_FILE: Final = "requirements.frozen.txt"
LOCK_FILE: Final = "uv.lock"
#: What a lock says, as a requirements file that is made of it.
LOCK_FILEED_FILE: Final = "requirements.uv-lock.txt"
#: What `[project] dependencies` says, as one.
_PROJECT_FILE: Final = "requirements.pyproject.txt"
_UV_FILE: Final = "uv.toml"
CONDA_FILES: Final = ("environment.yml", "environment.yaml", "conda.yml", "conda.yaml")
#: Files of other tools that say what code needs, and which nothing here reads.
_OTHERS: Final = ("poetry.lock", "pdm.lock", "Pipfile", "Pipfile.lock", "pylock.toml", "pixi.toml", "conda-lock.yml")


@dataclass(frozen=True)
class Requirements:
    """What is to be installed for a job's code.

    Attributes:
        arguments: of `uv pip install` (or pip's), called in a folder that holds `files` and `local`; empty: nothing is
            to be installed.
        project: whether the project at the code's root is installed then, by itself: `--no-deps --editable .`.
        build_variables: what the build of the project is told: a version, where it would ask the repository.
        files: requirements files and settings, in uv's dialect, by their paths in the code.
        local: what of the code is installed, or holds wheels, by path; `.` is all of it.
        key: text that is the same exactly when the same packages are asked for.
        variables: environment variables that the files name (`${TOKEN}`), each with its place.
        notes: what of the code's files is not read, in sentences for the job's author.
    """

    arguments: tuple[str, ...] = ()
    project: bool = False
    build_variables: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    local: tuple[str, ...] = ()
    key: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def keeps_code(self) -> bool:
        """Whether the environment points to a copy of the code beside it."""
        return self.project or bool(self.local)


def read_requirements(
    code_dir: Path | None, paths: Collection[str] | None = None, *, is_whole: bool = True
) -> Requirements:
    """Return what the code in a folder needs; nothing when it does not say.

    Args:
        code_dir: the folder; None: there is no code.
        paths: the files in it that belong to the code; by default all.
        is_whole: whether all of these are there; else what is missing is not judged, and nothing can be installed.

    Raises:
        SourceError: when a file cannot be read, holds a line that cannot be had, or names something that is not in the
            code; with the file and the line.
    """
    if code_dir is None:
        return Requirements()
    code = CodeTree(code_dir, paths, is_whole=is_whole)
    project = find_project(code)
    if code.has_file(PIP_FILE):
        found = _of_pip_file(code, PIP_FILE)
        notes = [*_passed_over(code, project, found)]
    elif code.has_file(LOCK_FILE) and code.has_file(FILE):
        found = _of_lock(code)
        notes = [*(project.notes(code) if project else ())]
    elif project is not None and project.needs_anything:
        found = _of_project(code, project)
        notes = [*project.notes(code)]
    else:
        found = _of_pip_file(code, _FROZEN_FILE) if code.has_file(_FROZEN_FILE) else Requirements()
        notes = [*(project.notes(code) if project else ())]
    return Requirements(**{**vars(found), "notes": (*notes, *_not_read(code, found), *_of_variables(found.variables))})


def stage(requirements: Requirements, code_dir: Path, folder: Path) -> None:
    """Copy what an installer reads into a folder of its own.

    Raises:
        OSError: when it cannot be written.
    """
    code = CodeTree(code_dir)
    for path in ("." if requirements.project else "", *requirements.local):
        for name in code.files(path) if path else ():
            make_folders((folder / name).parent)
            shutil.copy2(code.root / name, folder / name, follow_symlinks=False)
    for name, content in requirements.files.items():
        make_folders((folder / name).parent)
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_bytes(content)


def _of_pip_file(code: CodeTree, path: str) -> Requirements:
    reader = PipFiles(code)
    reader.read(path)
    return _made(code, ("--requirement", path), reader)


def _of_lock(code: CodeTree) -> Requirements:
    """Read what a `uv.lock` fixes, as requirements with hashes; the lock itself decides, nothing is resolved."""
    import uv

    if not code.is_whole:
        return Requirements(("--requirement", LOCK_FILEED_FILE))
    command = ["export", "--frozen", "--offline", "--no-dev", "--no-header", "--no-annotate", "--quiet", "--no-config"]
    ended = subprocess.run([uv.find_uv_bin(), *command], cwd=code.root, capture_output=True, check=False)
    if ended.returncode != 0:
        said = ended.stderr.decode(errors="replace").strip()
        raise SourceError(f"The job's uv.lock cannot be read: {said}. Make it anew with 'uv lock'.")
    reader = PipFiles(code)
    reader.read_text(ended.stdout.decode(errors="replace"), LOCK_FILEED_FILE)
    return _made(code, ("--requirement", LOCK_FILEED_FILE), reader)


def _of_project(code: CodeTree, project: Project) -> Requirements:
    """Read a project: first its dependencies are installed, then itself, so that one that cannot be built has them."""
    file = FILE if project.told else SETUP
    told = project.version_variables if project.is_built else {}
    digests = [code.digest(".")] if project.is_built or not project.stands_alone else []
    if not project.stands_alone:
        key = json.dumps([file, project.is_built, digests])
        return Requirements(("--requirement", file), project.is_built, told, local=(".",), key=key)
    lines = [str(line) for line in project.metadata.get("dependencies", ())]
    files = {_PROJECT_FILE: "".join(f"{line}\n" for line in lines).encode(), **_settings(code)}
    key = json.dumps([FILE, lines, project.is_built, digests, _settings_key(code)])
    return Requirements(("--requirement", _PROJECT_FILE) if lines else (), project.is_built, told, files, key=key)


def _made(code: CodeTree, arguments: tuple[str, ...], reader: PipFiles) -> Requirements:
    paths = tuple(sorted(set(reader.local)))
    packages = [package for path in paths if code.has_folder(path) and (package := find_project(code, path))]
    # A package that names others of the code is built with all of it.
    local = (".",) if "." in paths or any(package.names_others for package in packages) else paths
    told = {name: value for package in packages for name, value in package.version_variables.items()}
    key = json.dumps([reader.lines, {path: code.digest(path) for path in local}, _settings_key(code)])
    files = {**reader.files, **_settings(code)}
    return Requirements(
        arguments, build_variables=told, files=files, local=local, key=key, variables=dict(reader.variables)
    )


def _settings(code: CodeTree) -> dict[str, bytes]:
    """Return the files that set uv up: its own, and a project's `[tool.uv]`."""
    named = {name: code.read(name) for name in (_UV_FILE, FILE)}
    wanted = {_UV_FILE: True, FILE: _uv_table(code) is not None}
    return {name: content for name, content in named.items() if content is not None and wanted[name]}


def _settings_key(code: CodeTree) -> str:
    return json.dumps([(code.read(_UV_FILE) or b"").decode(errors="replace"), _uv_table(code)], default=str)


def _uv_table(code: CodeTree) -> object:
    project = find_project(code)
    tool = project.told.get("tool") if project else None
    return tool.get("uv") if isinstance(tool, Mapping) else None


def _passed_over(code: CodeTree, project: Project | None, found: Requirements) -> Iterable[str]:
    if project is not None and project.needs_anything and "." not in found.local:
        yield (
            f"{FILE if project.told else SETUP} is not read, since {PIP_FILE} comes first: write '-e .' into that"
            " to have the project itself installed."
        )
    if code.has_file(LOCK_FILE):
        yield f"{LOCK_FILE} is not read, since {PIP_FILE} comes first: remove the one that is not meant."


def _not_read(code: CodeTree, found: Requirements) -> Iterable[str]:
    others = [name for name in _OTHERS if code.has_file(name)]
    if others:
        instead = "the requirements are resolved anew" if found.arguments or found.project else "nothing is installed"
        yield f"{', '.join(others)} is not read, and {instead}: export it to a {PIP_FILE}, which is."
    conda = [name for name in CONDA_FILES if code.has_file(name)]
    if conda and not found.arguments and not found.project:
        yield f"{conda[0]} is read for images only; a local process has nothing installed. Write a {PIP_FILE} for it."


def _of_variables(variables: Mapping[str, str]) -> Iterable[str]:
    for name, place in variables.items():
        yield (
            f"{place} names the environment variable ${{{name}}}: a run on local-process needs it in its env (of the"
            " queue or the item), and no image can be built with it."
        )
