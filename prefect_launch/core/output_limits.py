"""Output limits: how much of a run's outputs is kept, and a description of what was left out.

An agent has limits, and a queue may have narrower ones. Files are taken in the order of their names, `outputs.json`
first; one that does not fit any more is left out, and so is what is no regular file. A hole in a sparse file counts
nothing where it costs nothing.
"""

from __future__ import annotations

import os
import posixpath
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator

from prefect_launch.core.units import counted, format_size, parse_size
from prefect_launch.inputs.outputs import OUTPUTS_FILE as OUTPUTS_FILE

#: What is nested in more folders is not kept: few programs can read or remove it.
MAX_DEPTH: Final = 100
TOO_DEEP: Final = f"it is nested in more than {MAX_DEPTH} folders"
#: How many files are named that were left out.
_NAMED: Final = 20
_NAME_CHARS: Final = 200
_NONE: Final = "none"
_KINDS: Final = (
    (stat.S_ISLNK, "a link"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class OutputLimits(BaseModel):
    """How much is kept of the outputs of one run.

    Attributes:
        max_bytes: all its files together, in bytes; a size such as "10g" is read, and "none" or None is no limit.
        max_files: how many files; "none" or None is no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int | None = Field(default=None, description="Of one run's outputs, all files together; none: no limit.")
    max_files: int | None = Field(default=None, ge=0, description="How many files of one run; none: no limit.")

    @field_validator("max_bytes", mode="before")
    @classmethod
    def _read_size(cls, value: Any) -> int | None:
        return None if _is_none(value) else parse_size(value)

    @field_validator("max_files", mode="before")
    @classmethod
    def _read_count(cls, value: Any) -> Any:
        if isinstance(value, bool):
            raise ValueError("it must be a whole number, or none")
        return None if _is_none(value) else value

    def within(self, other: OutputLimits) -> OutputLimits:
        """Return the narrower of both limits."""
        return OutputLimits(
            max_bytes=_least(self.max_bytes, other.max_bytes), max_files=_least(self.max_files, other.max_files)
        )

    def describe(self) -> str:
        """Say them in words; an empty text when there are none."""
        amount = None if self.max_bytes is None else format_size(self.max_bytes)
        count = None if self.max_files is None else counted(self.max_files, "file")
        return " and ".join(filter(None, (amount, count)))


class LeftOut(BaseModel):
    """Outputs that are not kept.

    Attributes:
        count: how many.
        named: the first of them, each with the reason.
        over_limit: whether a limit is the reason for any of them.
    """

    model_config = ConfigDict(frozen=True)

    count: int = 0
    named: tuple[str, ...] = ()
    over_limit: bool = False

    def __bool__(self) -> bool:
        return self.count > 0

    def __add__(self, other: LeftOut) -> LeftOut:
        return LeftOut(
            count=self.count + other.count,
            named=(*self.named, *other.named)[:_NAMED],
            over_limit=self.over_limit or other.over_limit,
        )

    def describe(self, limits: OutputLimits, *, what: str = "the run's outputs", done: str = "kept") -> str:
        """Tell of them in a few lines, for the run's log."""
        more = self.count - len(self.named)
        lines = [
            f"{self.summary(what=what, done=done)}:",
            *(f"  {one}" for one in self.named),
            *([f"  and {more:,} more"] if more else []),
        ]
        if self.over_limit:
            lines.append(
                f"At most {limits.describe()} are kept of a run: 'outputs' in the agent's and in the queue's config."
            )
        return "\n".join(lines)

    def summary(self, *, what: str = "the run's outputs", done: str = "kept") -> str:
        """Tell how many they are."""
        return f"{self.count:,} of {what} {'is' if self.count == 1 else 'are'} not {done}"


class Selection:
    """The choice of the files that are kept, while they are gone through."""

    def __init__(self, limits: OutputLimits) -> None:
        self._limits = limits
        self._bytes = self._files = 0
        #: What was left out so far.
        self.left_out = LeftOut()

    def takes(self, name: str, size: int) -> bool:
        """Whether a regular file is kept; it is counted then, else named as left out."""
        most_bytes, most_files = self._limits.max_bytes, self._limits.max_files
        if most_files is not None and self._files >= most_files:
            self.leave_out(name, f"it is over the limit of {counted(most_files, 'file')}", over_limit=True)
        elif most_bytes is not None and self._bytes + size > most_bytes:
            kept = f", and {format_size(self._bytes)} are kept already" if self._bytes else ""
            self.leave_out(name, f"it has {format_size(size)}{kept}", over_limit=True)
        else:
            self._files, self._bytes = self._files + 1, self._bytes + size
            return True
        return False

    def leave_out(self, name: str, why: str, *, over_limit: bool = False) -> None:
        """Note that something is not kept, and whether a limit is the reason."""
        self.left_out += LeftOut(count=1, named=(f"{shown_name(name)}: {why}",), over_limit=over_limit)


def kind_of(mode: int) -> str:
    """Say what something is that is no regular file."""
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), "no regular file")


def with_default_limits(given: Any) -> Any:
    """Return an agent's `outputs` setting with its defaults for what it does not say."""
    return {**DEFAULT_OUTPUT_LIMITS.model_dump(), **given} if isinstance(given, Mapping) else given


def shown_name(name: str) -> str:
    """Return a file's name as a log can hold it: any byte may be in one."""
    text = name.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)[:_NAME_CHARS]


def _is_none(value: Any) -> bool:
    return value is None or (isinstance(value, str) and value.strip().lower() == _NONE)


def _least(one: int | None, other: int | None) -> int | None:
    return min((each for each in (one, other) if each is not None), default=None)


#: An agent's, unless its config says otherwise.
DEFAULT_OUTPUT_LIMITS: Final = OutputLimits(max_bytes=20 * 1024**3, max_files=10_000)


#: As many links on the way to a file as Linux follows.
_MOST_HOPS: Final = 40
#: As many links as are looked at; a job may leave millions.
_MOST: Final = 10_000
#: The log of W&B's service, in its cache, to which it leaves a link in each run.
_WANDB_SERVICE_LOG: Final = re.compile(r"/wandb/logs/core-debug-[^/]+\.log\Z")


class OutputLinks:
    """The links of one outputs folder, collected while it is gone through.

    Args:
        roots: absolute paths of the folder, as its job and as this machine know it.
    """

    def __init__(self, roots: Collection[str]) -> None:
        self._roots = tuple(root.rstrip("/") for root in roots)
        self._targets: dict[str, str] = {}
        self._unseen = 0

    def add(self, name: str, target: str) -> None:
        """Remember a link by its path in the folder, and what it points to."""
        if len(self._targets) < _MOST:
            self._targets[name] = target
        else:
            self._unseen += 1

    def leave_out(self, kept: Path, selection: Selection) -> None:
        """Note the links that are a loss as left out.

        Args:
            kept: a folder that holds what is kept, by its path in the outputs folder.
            selection: takes the notes.
        """
        for name, target in self._targets.items():
            end = self._end_of(name)
            if end is None and not _WANDB_SERVICE_LOG.search(target):
                selection.leave_out(name, "it is a link that leads out of the outputs folder")
            elif end is not None and not os.path.lexists(kept / end):
                selection.leave_out(name, "it is a link to what is not kept")
        if self._unseen:
            selection.leave_out(f"{self._unseen:,} further links", "no link is kept")

    def _end_of(self, name: str) -> str | None:
        """Return the path in the folder that a link leads to, through other links; None when it leads out of it."""
        path = name
        for _ in range(_MOST_HOPS):
            link = next((one for one in _from_the_top(path) if one in self._targets), None)
            if link is None:
                return path
            target, rest = self._targets[link], path[len(link) :]
            if posixpath.isabs(target):
                root = next((root for root in self._roots if f"{target}/".startswith(f"{root}/")), None)
                if root is None:
                    return None
                path = posixpath.normpath(f".{target[len(root) :]}{rest}")
            else:
                path = posixpath.normpath(f"{posixpath.dirname(link) or '.'}/{target}{rest}")
            if path.startswith(("../", "/")) or path == "..":
                return None
        return name  # A circle: nothing of that name is kept.


def _from_the_top(path: str) -> Iterator[str]:
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts) + 1))
