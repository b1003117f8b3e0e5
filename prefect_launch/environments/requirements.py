"""Requirements of a job's code: what uv installs, the files that it reads, and the key of the environment.

The first of these that exists counts: `requirements.launch.txt` (what a job's `install` says), `requirements.txt`,
`uv.lock` beside a `pyproject.toml`, the project (a `pyproject.toml` or `setup.py`, of any build backend),
`requirements.frozen.txt`. A conda file comes before a project that states no dependencies in its `pyproject.toml`. uv
reads them in a copy of the code's own folders, which stays next to the environment: so a package of the code can be
installed from there, editable too.

pip's own parser (pip-requirements-parser) reads encodings, continuation lines and options of requirements files. uv
wants a space after a short option, no quotes, a `./` before a folder of wheels, and a requirement on one line: such a
line is rewritten in place, so that uv's messages name lines of the user's file.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

from prefect_launch.core.filesystem import make_folders
from prefect_launch.environments.conda import CONDA_FILES, PIP_SECTION_FILE, CondaFile, read_conda_file
from prefect_launch.environments.projects import FILE, SETUP, CodeTree, Project, find_project
from prefect_launch.errors import SourceError
from prefect_launch.jobs.model import JOB_FILE

PIP_FILE: Final = "requirements.txt"
_FROZEN_FILE: Final = "requirements.frozen.txt"
LOCK_FILE: Final = "uv.lock"
#: The requirements file that is generated from a lock.
LOCKED_FILE: Final = "requirements.uv-lock.txt"
#: The requirements file that is generated from `[project] dependencies`.
_PROJECT_FILE: Final = "requirements.pyproject.txt"
_UV_FILE: Final = "uv.toml"
#: Files of other tools that state requirements and are not read here.
_OTHERS: Final = ("poetry.lock", "pdm.lock", "Pipfile", "Pipfile.lock", "pylock.toml", "pixi.toml", "conda-lock.yml")
_VARIABLE: Final = re.compile(r"\$\{([A-Z0-9_]+)\}")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_SHORT_OPTION: Final = re.compile(r"-[a-z](?=[^\s=])")
#: Options of a single requirement, which pip accepts and uv does not.
_OF_ONE: Final = ("--config-settings", "--config-setting", "--global-option", "--install-option")


@dataclass(frozen=True)
class Requirements:
    """What is installed for a job's code.

    Attributes:
        arguments: of `uv pip install` (or pip's), called in a folder that holds `files` and `local`; empty: nothing is
            to be installed.
        project: whether the project at the code's root is installed then, by itself: `--no-deps --editable .`.
        build_variables: environment variables of the project's build: a version that it would read from a repository.
        files: requirements files and settings, in uv's dialect, by their paths in the code.
        local: paths in the code that are installed, or hold wheels; `.` is all of it.
        key: text that is equal exactly when the same packages are required.
        conda: a conda file with packages that only conda installs; the rest is then what its section `pip` needs.
        variables: environment variables that the files name (`${TOKEN}`), each with its place.
        notes: sentences for the job's author about files that are not read.
    """

    arguments: tuple[str, ...] = ()
    project: bool = False
    build_variables: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    local: tuple[str, ...] = ()
    key: str = ""
    conda: CondaFile | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def needs_git(self) -> bool:
        """Whether a requirement is an address of a git repository."""
        return any(re.search(rb"\bgit\+\w+:", content) for content in self.files.values())

    @property
    def keeps_code(self) -> bool:
        """Whether the environment points to a copy of the code next to it."""
        return self.project or bool(self.local)


def read_requirements(
    code_dir: Path | None, paths: Collection[str] | None = None, *, is_whole: bool = True
) -> Requirements:
    """Return what the code in a folder needs.

    Args:
        code_dir: the folder; None: there is no code.
        paths: the files in it that belong to the code; by default all.
        is_whole: whether all of these exist; if not, missing files are not checked, and nothing can be installed.

    Raises:
        SourceError: when a file cannot be read, holds an invalid line, or names something that is not in the
            code; with the file and the line.
    """
    if code_dir is None:
        return Requirements()
    code = CodeTree(code_dir, paths, is_whole=is_whole)
    project = find_project(code)
    if code.has_file(JOB_FILE):
        found, notes = _of_pip_file(code, JOB_FILE), []
    elif code.has_file(PIP_FILE):
        found = _of_pip_file(code, PIP_FILE)
        notes = [*_passed_over(code, project, found)]
    elif code.has_file(LOCK_FILE) and code.has_file(FILE):
        found = _of_lock(code)
        notes = [*(project.notes(code) if project else ())]
    elif (conda := _conda_file(code)) is not None and not (project and project.states_dependencies):
        found, notes = _of_conda(code, conda), []
    elif project is not None and project.needs_anything:
        found = _of_project(code, project)
        notes = [*project.notes(code)]
    else:
        found = _of_pip_file(code, _FROZEN_FILE) if code.has_file(_FROZEN_FILE) else Requirements()
        notes = [*(project.notes(code) if project else ())]
    others = () if code.has_file(JOB_FILE) else _not_read(code, found)
    return Requirements(**{**vars(found), "notes": (*notes, *others, *_of_variables(found.variables))})


def stage(requirements: Requirements, code_dir: Path, folder: Path) -> None:
    """Copy the files that an installer reads into a folder.

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
    reader = RequirementsFileReader(code)
    reader.read(path)
    return _made(code, ("--requirement", path), reader)


def _conda_file(code: CodeTree) -> str | None:
    """Return the conda file that counts: not one beside what was installed of it."""
    return next((name for name in CONDA_FILES if code.has_file(name) and not code.has_file(_FROZEN_FILE)), None)


def _of_conda(code: CodeTree, path: str) -> Requirements:
    file = read_conda_file(code.read(path) or b"", path)
    reader = RequirementsFileReader(code)
    reader.read_text("".join(f"{line}\n" for line in file.pip), PIP_SECTION_FILE)
    made = _made(code, ("--requirement", PIP_SECTION_FILE) if file.pip else (), reader)
    return replace(made, conda=file if file.packages else None)


def _of_lock(code: CodeTree) -> Requirements:
    """Return the content of a `uv.lock` as requirements with hashes; nothing is resolved."""
    import uv

    if not code.is_whole:
        return Requirements(("--requirement", LOCKED_FILE))
    command = ["export", "--frozen", "--offline", "--no-dev", "--no-header", "--no-annotate", "--quiet", "--no-config"]
    ended = subprocess.run([uv.find_uv_bin(), *command], cwd=code.root, capture_output=True, check=False)
    if ended.returncode != 0:
        message = ended.stderr.decode(errors="replace").strip()
        raise SourceError(f"The job's uv.lock cannot be read: {message}. Make it anew with 'uv lock'.")
    reader = RequirementsFileReader(code)
    reader.read_text(ended.stdout.decode(errors="replace"), LOCKED_FILE)
    return _made(code, ("--requirement", LOCKED_FILE), reader)


def _of_project(code: CodeTree, project: Project) -> Requirements:
    """Read a project. Its dependencies are installed before it, so that one that cannot be built has them."""
    file = FILE if project.pyproject else SETUP
    for folder in project.folders():
        code.inside(folder, FILE)
    build_variables = project.version_variables if project.is_built else {}
    digests = [code.digest(".")] if project.is_built or not project.stands_alone else []
    if not project.stands_alone:
        key = json.dumps([file, project.is_built, digests])
        return Requirements(("--requirement", file), project.is_built, build_variables, local=(".",), key=key)
    lines = [str(line) for line in project.metadata.get("dependencies", ())]
    files = {_PROJECT_FILE: "".join(f"{line}\n" for line in lines).encode(), **_settings(code)}
    key = json.dumps([FILE, lines, project.is_built, digests, _settings_key(code)])
    return Requirements(
        ("--requirement", _PROJECT_FILE) if lines else (), project.is_built, build_variables, files, key=key
    )


def _made(code: CodeTree, arguments: tuple[str, ...], reader: RequirementsFileReader) -> Requirements:
    paths = tuple(sorted(set(reader.local)))
    packages = [package for path in paths if code.has_folder(path) and (package := find_project(code, path))]
    # A package that names others of the code is built with all of it.
    local = (".",) if "." in paths or any(package.names_others for package in packages) else paths
    build_variables = {name: value for package in packages for name, value in package.version_variables.items()}
    key = json.dumps([reader.lines, {path: code.digest(path) for path in local}, _settings_key(code)])
    files = {**reader.files, **_settings(code)}
    return Requirements(
        arguments, build_variables=build_variables, files=files, local=local, key=key, variables=dict(reader.variables)
    )


def _settings(code: CodeTree) -> dict[str, bytes]:
    """Return the files with uv's settings: its own, and a project's `[tool.uv]`."""
    named = {name: code.read(name) for name in (_UV_FILE, FILE)}
    wanted = {_UV_FILE: True, FILE: _uv_table(code) is not None}
    return {name: content for name, content in named.items() if content is not None and wanted[name]}


def _settings_key(code: CodeTree) -> str:
    return json.dumps([(code.read(_UV_FILE) or b"").decode(errors="replace"), _uv_table(code)], default=str)


def _uv_table(code: CodeTree) -> object:
    project = find_project(code)
    tool = project.pyproject.get("tool") if project else None
    return tool.get("uv") if isinstance(tool, Mapping) else None


def _passed_over(code: CodeTree, project: Project | None, found: Requirements) -> Iterable[str]:
    if project is not None and project.needs_anything and "." not in found.local:
        yield (
            f"{FILE if project.pyproject else SETUP} is not read, since {PIP_FILE} comes first: write '-e .' into that"
            f" to have the project itself installed, or make the job with --install '-r {PIP_FILE}' --install '-e .'."
        )
    if code.has_file(LOCK_FILE):
        yield f"{LOCK_FILE} is not read, since {PIP_FILE} comes first: remove the one that is not meant."


def _not_read(code: CodeTree, found: Requirements) -> Iterable[str]:
    others = [name for name in _OTHERS if code.has_file(name)]
    if others:
        instead = "the requirements are resolved anew" if found.arguments or found.project else "nothing is installed"
        yield f"{', '.join(others)} is not read, and {instead}: export it to a {PIP_FILE}, which is."
    if found.conda is not None:
        yield found.conda.refusal


def _of_variables(variables: Mapping[str, str]) -> Iterable[str]:
    for name, place in variables.items():
        yield (
            f"{place} names the environment variable ${{{name}}}: a run on local-process needs it in its env (of the"
            " queue or the item), and no image can be built with it."
        )


class RequirementsFileReader:
    """Reads requirements files and the files that they include.

    Attributes:
        files: each file, in uv's dialect, by its path in the code.
        lines: the requirements, without comments and blank lines.
        local: files and folders of the code that they name: packages, wheels, folders of wheels.
        variables: environment variables that they name, each with its place.
    """

    def __init__(self, code: CodeTree) -> None:
        self._code = code
        self.files: dict[str, bytes] = {}
        self.lines: list[str] = []
        self.local: list[str] = []
        self.variables: dict[str, str] = {}

    def read(self, path: str, named_by: str = "The job") -> None:
        """Read a file, and those that it includes.

        Raises:
            SourceError: when it is not in the code, cannot be decoded, or holds an invalid line; with the
                file and the line.
        """
        if path in self.files:
            return
        content = self._code.read(path)
        if content is None:
            raise SourceError(
                f"{named_by} names the requirements file {path!r}, which is not in the job's code. Add it, or see"
                " whether .launchignore or .gitignore leaves it out."
            )
        self.read_text(_decoded(content, path), path)

    def read_text(self, text: str, path: str) -> None:
        """Read the text of a file that is, or could be, at a path in the code.

        Raises:
            SourceError: as `read` does.
        """
        self.files[path] = b""  # Files may include each other.
        lines = text.splitlines()
        found: list[tuple[int, str]] = []
        for entry in _parsed(text, path):
            number = entry.line_number
            place = f"{path}:{number}"
            written = self._entry(entry, path, place)
            found.append((number, written))
            end = number
            while end < len(lines) and lines[end - 1].endswith("\\"):
                end += 1
            if written != entry.line or end != number:
                lines[number - 1 : end] = [written, *[""] * (end - number)]
        self.lines += [f"[{path}]", *(written for _, written in sorted(found))]
        self.files[path] = "".join(f"{line}\n" for line in lines).encode()

    def _entry(self, entry: Any, path: str, place: str) -> str:
        line: str = entry.line
        for name in _VARIABLE.findall(line):
            self.variables.setdefault(name, place)
        kind = type(entry).__name__
        if kind in ("InvalidRequirementLine", "IncorrectRequirementLine"):
            raise SourceError(_invalid(line, str(entry.error_message), place))
        if kind == "OptionLine":
            return self._options(entry, path, place)
        if entry.global_options or entry.install_options:
            raise SourceError(_invalid(line, "", place))
        local = _local_path(entry)
        if local is not None:
            self._take(local, place)
        return _editable(line) if entry.is_editable else line

    def _options(self, entry: Any, path: str, place: str) -> str:
        """Rewrite an option line. Paths of included files are relative to the file, folders of wheels to it or to the
        root."""
        line: str = entry.line
        written: list[str] = []
        for name, value in entry.options.items():
            if name in ("requirements", "constraints"):
                for included in value:
                    option = "-r" if name == "requirements" else "-c"
                    written.append(f"{option} {included}")
                    if not _SCHEME.match(included):
                        beside = posixpath.join(posixpath.dirname(path), included)
                        self.read(self._code.inside(beside, place), place)
            elif name == "find_links":
                written += [f"--find-links {self._wheels(one, path, place)}" for one in value]
            elif name == "index_url":
                written.append(f"--index-url {value}")
            elif name == "extra_index_urls":
                written += [f"--extra-index-url {one}" for one in value]
            elif name != "use_features":  # pip's own; it says nothing to another installer.
                written.append(line)
        plain = len(written) == 1 and not _SHORT_OPTION.match(line) and not re.search("[\"']", line)
        return line if plain and "find_links" not in entry.options else "\n".join(written)

    def _wheels(self, given: str, path: str, place: str) -> str:
        if "://" in given or given.startswith("/"):  # An index, or a folder of the machine that installs.
            return given
        given = given.removeprefix("file:")
        beside = posixpath.join(posixpath.dirname(path), given)
        folder = self._code.inside(beside if self._code.has_folder(posixpath.normpath(beside)) else given, place)
        if not self._code.has_folder(folder) and not self._code.has_file(folder):
            raise SourceError(f"{place} names the folder of wheels {given!r}, which is not in the job's code. Add it.")
        self.local.append(folder)
        return f"./{folder}"

    def _take(self, path: str, place: str) -> None:
        normal = self._code.inside(path, place)
        projects = [posixpath.normpath(f"{normal}/{name}") for name in (FILE, SETUP)]
        if not self._code.has_file(normal) and not any(self._code.has_file(one) for one in projects):
            raise SourceError(
                f"{place} names {path!r}, which is no file and no project (a folder with a pyproject.toml or setup.py)"
                " in the job's code. Add it, or see whether .launchignore or .gitignore leaves it out."
            )
        self.local.append(normal)


def _parsed(text: str, path: str) -> list[Any]:
    from pip_requirements_parser import RequirementsFile  # Takes 0.1 s, and not every job has such a file.

    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:  # It reads files only.
        # A mark, since it would take an encoding from the locale or from a comment, and the text is decoded.
        file.write(f"\ufeff{text}")
        file.flush()
        try:
            read = RequirementsFile.from_file(file.name)
        except Exception as error:
            raise SourceError(f"The requirements file {path!r} of the job cannot be read: {error}.") from error
    return sorted([*read.requirements, *read.options, *read.invalid_lines], key=lambda entry: entry.line_number)


def _decoded(content: bytes, path: str) -> str:
    """Decode a file as pip does: by a byte-order mark, by a coding comment, else as UTF-8."""
    from pip_requirements_parser import auto_decode

    try:
        return str(auto_decode(content))
    except (UnicodeError, LookupError) as error:
        raise SourceError(
            f"The requirements file {path!r} of the job cannot be read: {error}. Save it as UTF-8 (pip takes a"
            " byte-order mark, or a comment '# -*- coding: … -*-' in its first two lines, too)."
        ) from None


def _invalid(line: str, message: str, place: str) -> str:
    option = next((one for one in _OF_ONE if one in line), None)
    if option is not None:
        return (
            f"{place}: the option {option} of a single requirement is not taken by uv, which installs the requirements."
            " Leave it out; put a wheel that was built with it into the code and name that."
        )
    reason = message.replace("pip_requirements_parser: error: ", "").splitlines()
    return (
        f"{place}: {line!r} is no requirement that pip takes: {reason[0] if reason else 'not understood'}. Correct the"
        " line."
    )


def _editable(line: str) -> str:
    """Rewrite an editable requirement with a space after its option, and without quotes."""
    if not _SHORT_OPTION.match(line) and not re.match(r"(?:-e|--editable)(?:\s+|=)[\"']", line):
        return line
    rest = re.sub(r"^(?:-e|--editable)\s*=?\s*", "", line)
    quoted = rest[:1] in ("'", '"')
    return f"-e {' '.join(shlex.split(rest)) if quoted else rest}"


def _local_path(entry: Any) -> str | None:
    """Return the path in the code that a requirement names, if it names one."""
    link = str(entry.link.url if hasattr(entry.link, "url") else entry.link) if entry.link else ""
    link = re.sub(r"^[\w.-]+(?:\[[^\]]*\])?\s*@\s*", "", link)
    if not link or entry.is_vcs_url or (_SCHEME.match(link) and not link.startswith("file:")):
        return None
    path = re.sub(r"^file:(?://(?=/|\.))?", "", link)
    return unquote(path.split("#")[0].split("?")[0])
