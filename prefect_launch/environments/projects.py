"""Python projects in a job's code: the code's files, and whether a build backend installs the project.

The build backend decides what a project needs and provides, whichever it is (setuptools, Hatch, Poetry, PDM, flit). As
for uv, a project without a `[build-system]`, or with `[tool.uv] package = false`, is not installed itself; its
dependencies are.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prefect_launch.core.filesystem import walk
from prefect_launch.errors import SourceError
from prefect_launch.jobs.archive import NEVER_TAKEN

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE: Final = "pyproject.toml"
SETUP: Final = "setup.py"
#: Tables of pyproject.toml that hold dependency groups.
_GROUPS: Final = (("dependency-groups",), ("tool", "poetry", "group"), ("tool", "pdm", "dev-dependencies"))


@dataclass(frozen=True)
class Project:
    """A project, at the root of a job's code or in a folder of it.

    Attributes:
        pyproject: content of pyproject.toml; empty for a project with a setup.py alone.
        is_built: whether the build backend installs it.
        names_others: whether it names other folders of the code: packages of a workspace, dependencies by path.
    """

    pyproject: Mapping[str, Any] = field(default_factory=dict)
    is_built: bool = True
    names_others: bool = False

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The table `[project]`."""
        return _table(self.pyproject, "project")

    @property
    def is_static(self) -> bool:
        """Whether `[project]` states its dependencies, so that they can be read without a build."""
        return "name" in self.metadata and "dependencies" not in self.metadata.get("dynamic", ())

    @property
    def stands_alone(self) -> bool:
        """Whether `[project] dependencies` alone states its dependencies, in pip's syntax."""
        sources = _table(self.pyproject, "tool", "uv", "sources")
        return self.is_static and not self.names_others and not sources

    @property
    def states_dependencies(self) -> bool:
        """Whether its pyproject.toml says what it needs, or from where its build backend reads it."""
        poetry = _table(self.pyproject, "tool", "poetry", "dependencies").keys() - {"python"}
        return bool(self.metadata.get("dependencies") or "dependencies" in self.metadata.get("dynamic", ()) or poetry)

    def folders(self) -> Iterator[str]:
        """Yield the folders of dependencies that uv or Poetry takes from a path."""
        needed = {
            _normal_name(re.split(r"[^\w.-]", str(line), maxsplit=1)[0])
            for line in self.metadata.get("dependencies", ())
        }
        poetry = _table(self.pyproject, "tool", "poetry", "dependencies")
        named = {
            name: source
            for name, source in _table(self.pyproject, "tool", "uv", "sources").items()
            if _normal_name(name) in needed
        }
        for source in (*named.values(), *poetry.values()):
            if isinstance(source, Mapping) and isinstance(source.get("path"), str):
                yield source["path"]

    @property
    def version_variables(self) -> dict[str, str]:
        """Variables that give its build a version, which it would read from a repository; a job's code has none."""
        name = re.sub(r"[-_.]+", "_", str(self.metadata.get("name", ""))).upper()
        variables = {"PDM_BUILD_SCM_VERSION": "0.0.0"}
        if name:
            variables[f"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{name}"] = "0.0.0"
        if any("hatch-vcs" in str(one) for one in _table(self.pyproject, "build-system").get("requires", ())):
            # It has no name in it, so the dependencies see it too.
            variables["SETUPTOOLS_SCM_PRETEND_VERSION"] = "0.0.0"
        return variables

    @property
    def needs_anything(self) -> bool:
        """Whether there is something to install."""
        if self.is_built or self.metadata.get("dependencies"):
            return True
        return "dependencies" in self.metadata.get("dynamic", ())

    def notes(self, code: CodeTree) -> Iterator[str]:
        """Yield notes on what of it is not installed."""
        extras = sorted(
            self.metadata.get("optional-dependencies") or _table(self.pyproject, "tool", "poetry", "extras")
        )
        groups = sorted({name for path in _GROUPS for name in _table(self.pyproject, *path)})
        parts = [f"the extra {name}" for name in extras] + [f"the dependency group {name}" for name in groups]
        if parts:
            step = f"'-e .[{extras[0]}]'" if extras and self.is_built else "what the job needs of them"
            named = ", ".join(parts)
            yield f"Not installed: {named} of {FILE}. A requirements.txt or --install with {step} comes first."
        poetry = _table(self.pyproject, "tool", "poetry")
        if not self.is_built and not self.metadata and poetry.get("dependencies"):
            yield (
                f"Not installed: [tool.poetry.dependencies] of {FILE}. Only Poetry's build backend reads them, and it"
                " builds no project without a [build-system] or with package-mode = false. Write a requirements.txt:"
                " poetry export -o requirements.txt."
            )
        elif not self.is_built and self.metadata and code.has_folder("src"):
            yield (
                f"Not installed: the project of {FILE} itself, only its dependencies, since it "
                f"{'says so' if 'build-system' in self.pyproject else 'has no [build-system]'}. What lies in src/"
                " cannot be imported by its name."
            )


def _normal_name(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def find_project(code: CodeTree, folder: str = ".") -> Project | None:
    """Return the project in a folder of the code; None when there is none.

    A pyproject.toml that only sets up tools, and a setup.py that no packaging library is used in, are none.

    Raises:
        SourceError: when pyproject.toml is no TOML.
    """
    prefix = "" if folder == "." else f"{folder}/"
    content = code.read(f"{prefix}{FILE}")
    setup = (code.read(f"{prefix}{SETUP}") or b"").decode(errors="replace")
    pyproject = _parsed(content, f"{prefix}{FILE}") if content is not None else {}
    is_setup = bool(re.search(r"^\s*(?:from|import)\s+(?:setuptools|distutils|skbuild)\b", setup, re.MULTILINE))
    tool = _table(pyproject, "tool")
    has_groups = any(_table(pyproject, *path) for path in _GROUPS)
    if not ({"project", "build-system"} & pyproject.keys() or _table(tool, "poetry") or is_setup or has_groups):
        return None
    left_out = (
        _table(tool, "uv").get("package") is False
        or _table(tool, "poetry").get("package-mode") is False
        or _table(tool, "pdm").get("distribution") is False
    )
    is_built = not left_out and ("build-system" in pyproject or is_setup or _table(tool, "uv").get("package") is True)
    text = setup + (content or b"").decode(errors="replace")
    return Project(pyproject, is_built, _names_others(pyproject) or ".." in text)


def _parsed(content: bytes, path: str) -> dict[str, Any]:
    try:
        pyproject: dict[str, Any] = tomllib.loads(content.decode("utf-8-sig"))
    except ValueError as error:
        raise SourceError(f"The job's {path} cannot be read: {error}. Correct it.") from None
    return pyproject


def _names_others(value: Any) -> bool:
    """Whether a value names another folder: `path = …`, `workspace = true`, `file:…`."""
    if isinstance(value, Mapping):
        names_path = isinstance(value.get("path"), str) or bool(value.get("workspace"))
        return names_path or any(_names_others(each) for each in value.values())
    if isinstance(value, list):
        return any(_names_others(each) for each in value)
    return isinstance(value, str) and bool(re.search(r"@\s*(?:file:|\{root:uri\})", value))


def _table(table: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        inner = table.get(name)
        table = inner if isinstance(inner, Mapping) else {}
    return table


class CodeTree:
    """The files of a job's code, as the readers of its requirements see them.

    Args:
        root: its folder.
        paths: the files that belong to it, as relative POSIX paths; by default all.
        is_whole: whether all files of `paths` exist; if not, missing files are read as empty.
    """

    def __init__(self, root: Path, paths: Collection[str] | None = None, *, is_whole: bool = True) -> None:
        self.root = root.resolve()
        self.is_whole = is_whole
        self._paths = None if paths is None else set(paths)

    def has_file(self, path: str) -> bool:
        """Whether a file belongs to the code."""
        listed = self._paths is None or path in self._paths
        return listed and ((self.root / path).is_file() or not self.is_whole)

    def has_folder(self, path: str) -> bool:
        """Whether a folder belongs to the code."""
        if path == ".":
            return True
        listed = self._paths is None or any(one.startswith(f"{path}/") for one in self._paths)
        return listed and ((self.root / path).is_dir() or not self.is_whole)

    def read(self, path: str) -> bytes | None:
        """Return a file's content; None when it is not in the code.

        Raises:
            SourceError: when it cannot be read.
        """
        if not self.has_file(path):
            return None
        self.inside(path, "The job's code")
        if not self.is_whole and not (self.root / path).is_file():
            return b""
        try:
            return (self.root / path).read_bytes()
        except OSError as error:
            raise SourceError(f"The file {path!r} of the job's code cannot be read: {error}.") from error

    def inside(self, path: str, named_by: str) -> str:
        """Return a path that a file of the code names, normalised.

        Args:
            path: relative to the code's root.
            named_by: the place that names it, for the message, such as `requirements.txt:3`.

        Raises:
            SourceError: when it leaves the code, by its text or through a link.
        """
        normal = posixpath.normpath(path)
        real = (self.root / normal).resolve()
        if normal.startswith(("/", "..")) or not (real == self.root or self.root in real.parents):
            raise SourceError(
                f"{named_by} names {path!r}, which lies outside of the job's code (or of its build context, when it has"
                " one). A requirement must be in it. Put a copy there; or leave the build context out, and name the"
                " project by its folder: --install '-e FOLDER'."
            )
        return normal

    def digest(self, path: str) -> str:
        """Return the hex SHA-256 of a file, or of a folder without repositories and caches."""
        whole = hashlib.sha256()
        for name in self.files(path):
            file = self.root / name
            link = os.readlink(file) if file.is_symlink() else None
            content = link.encode() if link is not None else file.read_bytes()
            mark = "l" if link is not None else "x" if file.stat().st_mode & 0o100 else "f"
            whole.update(f"{mark}\0{posixpath.relpath(name, path)}\0".encode())
            whole.update(hashlib.sha256(content).digest())
        return whole.hexdigest()

    def files(self, path: str) -> Iterator[str]:
        """List a file, or the files and links in a folder, by their paths from the root, sorted."""
        if not (self.root / path).is_dir():
            yield from [path] if self.has_file(path) else []
            return
        for parent, folders, names in walk(self.root / path):
            folders[:] = sorted(name for name in folders if name not in NEVER_TAKEN)
            links = [name for name in folders if Path(parent, name).is_symlink()]
            for name in sorted([*names, *links]):
                file = Path(parent, name)
                if file.is_symlink() or file.is_file():
                    yield file.relative_to(self.root).as_posix()
