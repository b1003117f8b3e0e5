"""Dockerfile selection: which Dockerfile builds a job's code, in which folder, and from which base images.

The first match wins, in the reference's order: a Dockerfile that the run names, or else the job; `Dockerfile.wandb`
next to the entry point, whose folder becomes the context; without one, a Dockerfile is generated. Nothing outside the
code is read.

Base images are read as Docker reads them: comments, continued lines and here-documents hold no instructions, and the
defaults of build arguments before the first stage count. Names that only a build could tell are left out.
"""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prefect_launch.errors import SourceError
from prefect_launch.jobs.archive import list_code
from prefect_launch.jobs.code_checks import entry_file, unknown_build_context
from prefect_launch.spec.code_options import BuildRequest

OWN_DOCKERFILE: Final = "Dockerfile.wandb"
_ESCAPE: Final = re.compile(r"#\s*escape\s*=\s*(?P<sign>[\\`])\s*", re.IGNORECASE)
_HERE: Final = re.compile(r"(?:^|\s)\d*<<(?P<dash>-?)(?P<quote>[\"']?)(?P<word>\w+)(?P=quote)(?=[\s|&;>)]|$)")
_INSTRUCTION: Final = re.compile(r"\s*(?P<word>[A-Za-z]+)\s+(?P<flags>(?:--\S+\s+)*)(?P<rest>.*)", re.DOTALL)
_FROM: Final = re.compile(r"(?P<image>\S+)(?:\s+AS\s+(?P<stage>\S+))?", re.IGNORECASE)
_TAKEN: Final = re.compile(r"(?:^|[\s,-])from=(?P<image>[^,\s]+)")
_VARIABLE: Final = re.compile(r"\$(?:\{(?P<long>\w+)(?::?-(?P<other>[^{}]*))?\}|(?P<short>\w+))")
#: Instructions that may copy files from another image.
_TAKERS: Final = ("COPY", "RUN")


@dataclass(frozen=True)
class DockerfileSelection:
    """How an image is built.

    Attributes:
        context: the folder that goes into the build.
        dockerfile: the Dockerfile's path in it; None: one is generated.
        entry_point: the run's command, relative to that folder.
    """

    context: Path
    dockerfile: str | None
    entry_point: tuple[str, ...]


def select_dockerfile(code_dir: Path, request: BuildRequest) -> DockerfileSelection:
    """Return which Dockerfile builds code, and where.

    Raises:
        SourceError: when a named Dockerfile or build context is not in the code.
    """
    root = code_dir.resolve()
    context = _inside(root, request.build_context or ".", root, "build context")
    if not context.is_dir():
        raise unknown_build_context(request.build_context or ".", list_code(root), where="the job's code")
    if request.dockerfile:
        file = _inside(context, request.dockerfile, root, "Dockerfile")
        if not file.is_file():
            raise SourceError(
                f"Dockerfile does not exist at {request.dockerfile!r} in the build context"
                f" {request.build_context or '.'!r} of the job's code. Name one that does, or none to have one"
                " generated."
            )
        return DockerfileSelection(context, posixpath.normpath(request.dockerfile), request.entry_point)
    return _beside_entry_point(context, request) or DockerfileSelection(context, None, request.entry_point)


def _beside_entry_point(context: Path, request: BuildRequest) -> DockerfileSelection | None:
    script = entry_file(request.entry_point)
    if script is None:
        return None
    folder = posixpath.dirname(script)
    place = (context / folder).resolve()
    inside = place == context or context in place.parents
    if not inside or not (place / OWN_DOCKERFILE).is_file():
        return None
    name = posixpath.basename(script)
    moved = tuple(name if posixpath.normpath(part) == script else part for part in request.entry_point)
    return DockerfileSelection(place, OWN_DOCKERFILE, moved if folder else request.entry_point)


def _inside(folder: Path, path: str, root: Path, what: str) -> Path:
    real = (folder / path).resolve()
    limit = root if what == "build context" else folder
    if real != limit and limit not in real.parents:
        raise SourceError(
            f"The {what} {path!r} leaves the {'code' if limit is root else 'build context'} of the job. Put it inside."
        )
    return real


def read_base_images(dockerfile: Path) -> tuple[str, ...]:
    """Return the images that a Dockerfile copies from, then those that its stages are built on.

    Raises:
        SourceError: when it cannot be read.
    """
    try:
        text = dockerfile.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"The Dockerfile {dockerfile.name!r} cannot be read: {error}.") from error
    arguments: dict[str, str] = {}
    stages, bases, taken = {"scratch"}, list[str](), list[str]()
    for word, flags, rest in _instructions(text):
        if word == "ARG" and stages == {"scratch"}:
            arguments |= _defaults(rest, arguments)
        elif word == "FROM" and (match := _FROM.match(rest)):
            bases += _images([_filled_in(match["image"], arguments)], stages)
            stages.add((match["stage"] or "").lower())
        elif word in _TAKERS:
            taken += _images(_TAKEN.findall(flags), stages)
    return tuple(dict.fromkeys([*taken, *bases]))


def _images(names: Iterable[str], stages: Collection[str]) -> list[str]:
    """Return the names that are no stage, by name or number, and hold no unknown variable."""
    return [name for name in names if name.lower() not in stages and not name.isdigit() and "$" not in name]


def _instructions(text: str) -> Iterator[tuple[str, str, str]]:
    """Yield the keyword, the flags and the rest of each instruction."""
    lines = text.splitlines()
    sign = next((match["sign"] for line in lines[:2] if (match := _ESCAPE.fullmatch(line.strip()))), "\\")
    continued = ""
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.lstrip().startswith("#") or (continued and not line.strip()):
            continue
        if line.rstrip().endswith(sign):
            continued += f"{line.rstrip()[:-1]} "
            continue
        whole, continued = f"{continued}{line}", ""
        if match := _INSTRUCTION.match(whole):
            yield match["word"].upper(), match["flags"], match["rest"]
            number = _behind_documents(whole, lines, number)


def _behind_documents(instruction: str, lines: list[str], number: int) -> int:
    """Return the line after the here-documents of an instruction; one without an end is none."""
    for match in _HERE.finditer(instruction):
        ends = (line.lstrip("\t") if match["dash"] else line for line in lines[number:])
        number = next((place for place, line in enumerate(ends, number + 1) if line == match["word"]), number)
    return number


def _defaults(rest: str, known: Mapping[str, str]) -> dict[str, str]:
    try:
        parts = shlex.split(rest)
    except ValueError:
        return {}
    pairs = (part.partition("=") for part in parts)
    return {name: _filled_in(value, known) for name, sign, value in pairs if sign}


def _filled_in(text: str, arguments: Mapping[str, str]) -> str:
    """Replace variables by the arguments' values; a variable without one stays."""

    def value(match: re.Match[str]) -> str:
        return arguments.get(match["long"] or match["short"]) or match["other"] or match[0]

    return _VARIABLE.sub(value, text)
