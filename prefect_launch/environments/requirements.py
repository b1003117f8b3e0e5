"""What a code folder says that it needs, as one flat text: the key of its environment, and what uv is given.

The first of these that is there counts: `requirements.txt`, `uv.lock` beside a `pyproject.toml`, its `[project]
dependencies`, `requirements.frozen.txt`. Included files (`-r`, `-c`) are read in; a package that lies in the code
itself is named with a digest of its content.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from prefect_launch.errors import SourceError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_INCLUDE = re.compile(r"(?:-r|-c|--requirement|--constraint)(?:\s+|=)(?P<file>\S+)\Z")
_EDITABLE = re.compile(r"(?:-e|--editable)(?:\s+|=)")
_WHEELS = re.compile(r"(?P<option>-f|--find-links)(?:\s+|=)(?P<folder>\S+)\Z")
_LOCAL = re.compile(r"\.{0,2}/|\.\.?(?:\[|\s|;|\Z)")


@dataclass(frozen=True)
class Requirements:
    """A flat requirements file.

    Attributes:
        lines: what uv is given; a package in the code stands there by its absolute path.
        constraints: the same, of constraint files.
        key: text that is the same exactly when the same packages are asked for.
        local: packages and folders of wheels in the code, by their absolute paths.
    """

    lines: tuple[str, ...] = ()
    constraints: tuple[str, ...] = ()
    key: str = ""
    local: tuple[Path, ...] = ()


def read_requirements(code_dir: Path | None) -> Requirements:
    """Return what the code in a folder needs; nothing when it does not say.

    Raises:
        SourceError: when a file cannot be read, or an included one is missing or outside the code.
    """
    if code_dir is None:
        return Requirements()
    reader = _Reader(code_dir.resolve())
    if (code_dir / "requirements.txt").is_file():
        reader.read(code_dir / "requirements.txt", reader.lines)
    elif (code_dir / "uv.lock").is_file() and (code_dir / "pyproject.toml").is_file():
        reader.add(_locked(code_dir), reader.root, reader.lines)
    elif dependencies := _project_dependencies(code_dir / "pyproject.toml"):
        reader.lines += dependencies
    elif (code_dir / "requirements.frozen.txt").is_file():
        reader.read(code_dir / "requirements.frozen.txt", reader.lines)
    key = "\n".join([*reader.lines, "--constraints", *reader.constraints, *reader.digests])
    key = key.replace(str(reader.root), "<code>")
    return Requirements(tuple(reader.lines), tuple(reader.constraints), key, tuple(dict.fromkeys(reader.local)))


class _Reader:
    """Reads requirement files with what they include."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lines: list[str] = []
        self.constraints: list[str] = []
        self.digests: list[str] = []
        self.local: list[Path] = []
        self._seen: set[Path] = set()

    def read(self, file: Path, into: list[str]) -> None:
        real = file.resolve()
        if self.root not in real.parents:
            raise SourceError(
                f"The requirements file {str(file)!r} lies outside of the job's code. Put a copy into the code."
            )
        if real in self._seen:
            return
        self._seen.add(real)
        try:
            text = real.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            name = file.relative_to(self.root) if self.root in file.parents else file
            raise SourceError(f"The requirements file {str(name)!r} of the job cannot be read: {error}.") from error
        self.add(text, real.parent, into)

    def add(self, text: str, folder: Path, into: list[str]) -> None:
        for line in _logical_lines(text):
            self._add(line, folder, into)

    def _add(self, line: str, folder: Path, into: list[str]) -> None:
        included = _INCLUDE.match(line)
        if included:
            self.read(folder / included["file"], self.constraints if line.startswith(("-c", "--c")) else into)
            return
        wheels = _WHEELS.match(line)
        if wheels and "://" not in wheels["folder"]:
            self.local.append((folder / wheels["folder"]).resolve())
            line = f"{wheels['option']} {self.local[-1]}"
        # An environment is shared by runs and outlives their code, so nothing in it may point there.
        requirement = _EDITABLE.sub("", line)
        if _LOCAL.match(requirement):
            path, rest = re.match(r"([^\[\s;]*)(.*)", requirement, re.DOTALL).groups()  # type: ignore[union-attr]
            package = (self.root / path).resolve()
            if package != self.root and self.root not in package.parents:
                raise SourceError(
                    f"The requirement {line!r} lies outside of the job's code. Put the package into the code."
                )
            self.digests.append(_content_digest(package))
            self.local.append(package)
            requirement = f"{package}{rest}"
        into.append(requirement)


def _logical_lines(text: str) -> list[str]:
    joined = re.sub(r"\\\r?\n", " ", text)
    lines = (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def _project_dependencies(file: Path) -> list[str]:
    if not file.is_file():
        return []
    try:
        project = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError) as error:
        raise SourceError(f"The job's pyproject.toml cannot be read: {error}.") from error
    return [str(line) for line in project.get("dependencies", [])]


def _locked(code_dir: Path) -> str:
    """Return what a `uv.lock` fixes, as requirements with hashes; the lock itself decides, nothing is resolved."""
    import uv

    command = ["export", "--frozen", "--offline", "--no-emit-project", "--no-dev", "--no-header", "--no-annotate"]
    ended = subprocess.run(
        [uv.find_uv_bin(), *command, "--quiet", "--no-config"], cwd=code_dir, capture_output=True, check=False
    )
    if ended.returncode != 0:
        said = ended.stderr.decode(errors="replace").strip()
        raise SourceError(f"The job's uv.lock cannot be read: {said}. Make it anew with 'uv lock'.")
    return ended.stdout.decode(errors="replace")


def _content_digest(path: Path) -> str:
    digest = hashlib.sha256()
    files = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    for file in files:
        if file.is_file():
            digest.update(f"{file.relative_to(path)}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
