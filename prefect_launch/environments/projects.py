"""A job's code as a Python project: whether its build backend installs it, and what of it is not read.

The build backend decides what a project needs and what it gives, whichever it is (setuptools, Hatch, Poetry, PDM,
flit). As for uv, one without a `[build-system]`, or with `[tool.uv] package = false`, is not installed itself; its
dependencies are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from prefect_launch.environments.code_tree import CodeTree
from prefect_launch.errors import SourceError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE: Final = "pyproject.toml"
SETUP: Final = "setup.py"


@dataclass(frozen=True)
class Project:
    """The project at the root of a job's code, or of a package in it.

    Attributes:
        told: what pyproject.toml says; empty for a project with a setup.py alone.
        is_built: whether the build backend installs it.
        names_others: whether it names other folders of the code: packages of a workspace, dependencies by their path.
    """

    told: Mapping[str, Any] = field(default_factory=dict)
    is_built: bool = True
    names_others: bool = False

    @property
    def metadata(self) -> Mapping[str, Any]:
        """The table `[project]`."""
        return _table(self.told, "project")

    @property
    def is_static(self) -> bool:
        """Whether its dependencies are written in `[project]`, so that they can be had without a build."""
        return "name" in self.metadata and "dependencies" not in self.metadata.get("dynamic", ())

    @property
    def stands_alone(self) -> bool:
        """Whether its dependencies are said by `[project] dependencies` alone, in pip's words."""
        sources = _table(self.told, "tool", "uv", "sources")
        return self.is_static and not self.names_others and not sources

    @property
    def version_variables(self) -> dict[str, str]:
        """What tells its build a version, where that would be the repository's, which a job's code has not."""
        name = re.sub(r"[-_.]+", "_", str(self.metadata.get("name", ""))).upper()
        told = {"PDM_BUILD_SCM_VERSION": "0.0.0"}
        if name:
            told[f"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{name}"] = "0.0.0"
        if any("hatch-vcs" in str(one) for one in _table(self.told, "build-system").get("requires", ())):
            told["SETUPTOOLS_SCM_PRETEND_VERSION"] = "0.0.0"  # It asks under no name, so its dependencies see it too.
        return told

    @property
    def needs_anything(self) -> bool:
        """Whether there is something to install."""
        if self.is_built or self.metadata.get("dependencies"):
            return True
        return "dependencies" in self.metadata.get("dynamic", ())

    def notes(self, code: CodeTree) -> Iterator[str]:
        """Say what of it is not installed."""
        extras = sorted(self.metadata.get("optional-dependencies") or _table(self.told, "tool", "poetry", "extras"))
        groups = sorted(
            {
                *_table(self.told, "dependency-groups"),
                *_table(self.told, "tool", "poetry", "group"),
                *_table(self.told, "tool", "pdm", "dev-dependencies"),
            }
        )
        parts = [f"the extra {name}" for name in extras] + [f"the dependency group {name}" for name in groups]
        if parts:
            step = f"'-e .[{extras[0]}]'" if extras and self.is_built else "what the job needs of them"
            yield f"Not installed: {', '.join(parts)} of {FILE}. A requirements.txt with {step} comes first."
        poetry = _table(self.told, "tool", "poetry")
        if not self.is_built and not self.metadata and poetry.get("dependencies"):
            yield (
                f"Not installed: [tool.poetry.dependencies] of {FILE}. Only Poetry's build backend reads them, and it"
                " builds no project without a [build-system] or with package-mode = false. Write a requirements.txt:"
                " poetry export -o requirements.txt."
            )
        elif not self.is_built and self.metadata and code.has_folder("src"):
            yield (
                f"Not installed: the project of {FILE} itself, only its dependencies, since it"
                f" {'says so' if 'build-system' in self.told else 'has no [build-system]'}. What lies in src/ cannot be"
                " imported by its name."
            )


def find_project(code: CodeTree, folder: str = ".") -> Project | None:
    """Return the project in a folder of the code; None when there is none.

    A pyproject.toml that only sets up tools, and a setup.py that no packaging library is used in, are none.

    Raises:
        SourceError: when pyproject.toml is no TOML.
    """
    prefix = "" if folder == "." else f"{folder}/"
    content = code.read(f"{prefix}{FILE}")
    setup = (code.read(f"{prefix}{SETUP}") or b"").decode(errors="replace")
    told = _parsed(content, f"{prefix}{FILE}") if content is not None else {}
    is_setup = bool(re.search(r"^\s*(?:from|import)\s+(?:setuptools|distutils|skbuild)\b", setup, re.MULTILINE))
    tool = _table(told, "tool")
    if not ({"project", "build-system"} & told.keys() or _table(tool, "poetry") or is_setup):
        return None
    left_out = (
        _table(tool, "uv").get("package") is False
        or _table(tool, "poetry").get("package-mode") is False
        or _table(tool, "pdm").get("distribution") is False
    )
    is_built = not left_out and ("build-system" in told or is_setup or _table(tool, "uv").get("package") is True)
    text = setup + (content or b"").decode(errors="replace")
    return Project(told, is_built, _names_others(told) or ".." in text)


def _parsed(content: bytes, path: str) -> dict[str, Any]:
    try:
        told: dict[str, Any] = tomllib.loads(content.decode("utf-8-sig"))
    except ValueError as error:
        raise SourceError(f"The job's {path} cannot be read: {error}. Correct it.") from None
    return told


def _names_others(value: Any) -> bool:
    """Whether anything says where else something lies: `path = …`, `workspace = true`, `file:…`."""
    if isinstance(value, Mapping):
        said = isinstance(value.get("path"), str) or bool(value.get("workspace"))
        return said or any(_names_others(each) for each in value.values())
    if isinstance(value, list):
        return any(_names_others(each) for each in value)
    return isinstance(value, str) and bool(re.search(r"@\s*(?:file:|\{root:uri\})", value))


def _table(told: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    for name in names:
        inner = told.get(name)
        told = inner if isinstance(inner, Mapping) else {}
    return told
