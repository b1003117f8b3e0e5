"""Requirements files as pip reads them, brought to what uv reads: the same lines at the same places.

pip's own parser (pip-requirements-parser) reads encodings, continuation lines and options. uv wants a space after a
short option, no quotes, a `./` before a folder of wheels, and a requirement on one line: such a line is written anew,
every other is left as it is, so that uv's messages tell places in the user's file.
"""

from __future__ import annotations

import posixpath
import re
import shlex
import tempfile
from typing import Any, Final
from urllib.parse import unquote

from prefect_launch.environments.code_tree import CodeTree
from prefect_launch.environments.projects import FILE, SETUP
from prefect_launch.errors import SourceError

_VARIABLE: Final = re.compile(r"\$\{([A-Z0-9_]+)\}")
_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_SHORT_OPTION: Final = re.compile(r"-[a-z](?=[^\s=])")
#: pip takes these of one requirement; uv takes none of them.
_OF_ONE: Final = ("--config-settings", "--config-setting", "--global-option", "--install-option")


class PipFiles:
    """Reads requirements files with what they include.

    Args:
        code: the job's code.

    Attributes:
        files: each file, in uv's dialect, by its path in the code.
        lines: what they ask for, without comments and blank lines.
        local: files and folders of the code that they name: packages, wheels, folders of wheels.
        variables: environment variables that they name, each with its place.
    """

    def __init__(self, code: CodeTree) -> None:
        self._code = code
        self.files: dict[str, bytes] = {}
        self.lines: list[str] = []
        self.local: list[str] = []
        self.variables: dict[str, str] = {}

    def read(self, path: str, said: str = "The job") -> None:
        """Read a file, and those that it includes.

        Args:
            path: in the code.
            said: who names it, for messages.

        Raises:
            SourceError: when it is not in the code, cannot be decoded, or holds a line that cannot be had; with the
                file and the line.
        """
        if path in self.files:
            return
        content = self._code.read(path)
        if content is None:
            raise SourceError(
                f"{said} names the requirements file {path!r}, which is not in the job's code. Add it, or see whether"
                " .launchignore or .gitignore leaves it out."
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
        """Write an option line; paths of included files are relative to the file, folders of wheels to it or to the
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
    """Decode as pip does: by a byte-order mark, by a coding comment, else as UTF-8."""
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
    """Write an editable requirement with a space behind its option, and without quotes."""
    if not _SHORT_OPTION.match(line) and not re.match(r"(?:-e|--editable)(?:\s+|=)[\"']", line):
        return line
    rest = re.sub(r"^(?:-e|--editable)\s*=?\s*", "", line)
    quoted = rest[:1] in ("'", '"')
    return f"-e {' '.join(shlex.split(rest)) if quoted else rest}"


def _local_path(entry: Any) -> str | None:
    """Return the path of the code that a requirement names, if it names one."""
    link = str(entry.link.url if hasattr(entry.link, "url") else entry.link) if entry.link else ""
    link = re.sub(r"^[\w.-]+(?:\[[^\]]*\])?\s*@\s*", "", link)
    if not link or entry.is_vcs_url or (_SCHEME.match(link) and not link.startswith("file:")):
        return None
    path = re.sub(r"^file:(?://(?=/|\.))?", "", link)
    return unquote(path.split("#")[0].split("?")[0])
