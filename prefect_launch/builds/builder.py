"""Image build and builder: what is built, as a frozen value whose digest is the image's tag, and what builds it.

The same input has the same tag on every agent, so an image that exists under the tag is not built again. The tag has
128 bits of the digest: nobody meets a collision, by accident or by design of the code alone. An image gets its tag when
it is complete, so nothing half-made ever has it.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from prefect_launch.builds.context import BuildContext
from prefect_launch.builds.dockerfile import Recipe, write_dockerfile
from prefect_launch.environments.pip_config import PipAccess
from prefect_launch.errors import BuildError, InfrastructureError, clause

#: To be raised when a change of this package builds another image from the same input.
_FORMAT: Final = "1"
_TAG_CHARS: Final = 32
#: The repository of images that stay on the engine that built them.
LOCAL_REPOSITORY: Final = "prefect-launch/built"
#: Takes the lines of a build's log. It may be called from any thread.
LineSink = Callable[[str], None]
_SHOWN_LINES: Final = 15
_KEPT_LINES: Final = 40
#: How the engine, pip and uv report a fault of the machine rather than of the build.
_MACHINE_FAULTS: Final = re.compile(
    r"no space left on device|failed to fetch|error sending request|dns error|connection (?:refused|reset)|timed out"
    r"|temporary failure in name resolution|invalid peer certificate"
    r"|HTTP status (?:server error|client error \(40[137])|tls handshake|cannot allocate memory"
    r"|CERTIFICATE_VERIFY_FAILED",
    re.IGNORECASE,
)
_MISSING: Final = (
    re.compile(r"Because (?P<name>[\w.\-\[\]]+)(?:==\S+)? was not found"),
    re.compile(r"there (?:is|are) no versions? of (?P<name>[\w.\-\[\]]+)"),
    re.compile(r"No matching distribution found for (?P<name>\S+)"),
    re.compile(r"Failed to (?:build|download)(?: and build)? `?(?P<name>[\w.\-\[\]=]+)"),
)


class ImageLabels:
    """The labels of built images."""

    TAG: Final = "prefect-launch.image"
    BASE: Final = "prefect-launch.base"
    STEP: Final = "prefect-launch.step"


@dataclass(frozen=True)
class ImageBuild:
    """An image to build.

    Attributes:
        context: the files that go in.
        dockerfile: path of the Dockerfile in the context; None: it is generated from the recipe.
        recipe: the input of a generated Dockerfile.
        base: the base image of a generated Dockerfile, and its digest.
        platform: such as linux/amd64.
        entry_point: the run's command in the image. It is not baked in, so it is no part of the tag.
        repository: the image's name, without its tag.
    """

    context: BuildContext
    dockerfile: str | None = None
    recipe: Recipe | None = None
    base: str = ""
    platform: str | None = None
    entry_point: tuple[str, ...] = ()
    repository: str = LOCAL_REPOSITORY
    tag: str = field(init=False, default="")

    def __post_init__(self) -> None:
        parts = {
            "format": _FORMAT,
            "context": self.context.digest,
            "dockerfile": self.dockerfile or "",
            "generated": write_dockerfile(self.recipe) if self.recipe else "",
            "base": self.base,
            "platform": self.platform or "",
        }
        whole = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        object.__setattr__(self, "tag", whole[:_TAG_CHARS])

    @property
    def image(self) -> str:
        """The image's full name."""
        return f"{self.repository}:{self.tag}"

    @property
    def labels(self) -> dict[str, str]:
        """The labels of the image."""
        return {ImageLabels.TAG: self.tag, **({ImageLabels.BASE: self.base} if self.base else {})}


class Builder(ABC):
    """One way to build images."""

    #: The name shown to people.
    name: str
    #: Whether folders of this machine can be mounted into a build step.
    mounts_folders: ClassVar[bool] = False

    @abstractmethod
    async def build(self, target: ImageBuild, access: PipAccess, log: LineSink) -> str:
        """Build an image and return its id, or the image's name when it has that already. Cancelling stops it.

        Raises:
            BuildError: when a step fails; it names the step, with the last lines.
            InfrastructureError: when the engine, the network or the disk fails.
        """


class BuildPlace(ABC):
    """Where images are built, and found again by their tags."""

    @abstractmethod
    async def base_digest(self, base: str) -> str | None:
        """Return the digest of a base image as it is there; None when it must be fetched, or there is none."""

    @abstractmethod
    async def fetch_base(self, base: str, log: LineSink) -> str:
        """Return the digest of a base image, which is fetched when it is not there.

        Raises:
            ImagePullError: when it cannot be had.
        """

    @abstractmethod
    async def find(self, target: ImageBuild) -> str | None:
        """Return the name that runs use of an image that was built before; None when there is none."""

    @abstractmethod
    async def build(self, target: ImageBuild, item: str, log: LineSink) -> str | None:
        """Return when the image exists: built by this call, or by a build that runs already. Cancelling leaves it.

        Returns:
            The name that runs use, of what was built; None when somebody has removed it since.

        Raises:
            BuildError: when a step of the build fails, here or there.
            AgentConfigError: when the configured builder is not there.
            RegistryError: when the image cannot be pushed.
            InfrastructureError: when what builds fails.
        """

    async def note_use(self, target: ImageBuild, image: str) -> None:  # noqa: B027 - some places keep no count
        """Record that an image is used now, so that it is not removed as an old one."""

    @abstractmethod
    def explaining_full_disks(self) -> AbstractAsyncContextManager[None]:
        """Raise a `BuildDiskError` that says whose disk is full in place of an error that a full disk causes."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close connections."""


class BuildOutput:
    """Logs pieces of output as they come, and keeps the last lines.

    Args:
        log: takes the pieces.
    """

    def __init__(self, log: LineSink) -> None:
        self._log = log
        self._rest = ""
        self._kept: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def lines(self) -> list[str]:
        """The last lines."""
        return [*self._kept, *([self._rest] if self._rest else [])]

    def take(self, piece: bytes | str) -> None:
        """Take a piece, which may end in the middle of a line."""
        text = piece if isinstance(piece, str) else piece.decode("utf-8", "replace")
        self._log(text)
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self.take_line(line)

    def take_line(self, line: str) -> None:
        """Keep a whole line."""
        self._kept.append(line)


def failure(step: str, reason: str, lines: Sequence[str]) -> BuildError | InfrastructureError:
    """Return the error of a failed build, from its step, the builder's message and the last lines."""
    shown = [line for line in lines if line.strip()][-_SHOWN_LINES:]
    text = " ".join(line.strip(" ╰─▶×│") for line in shown)
    tail = "".join(f"\n  {line}" for line in shown)
    if _MACHINE_FAULTS.search(reason) or _MACHINE_FAULTS.search(text):
        return InfrastructureError(
            f"The image cannot be built here: the step {step!r} failed: {clause(reason)}. Look at this machine's"
            f" disk, network and package index.{tail}"
        )
    missing = next((match["name"] for sign in _MISSING if (match := sign.search(text))), None)
    what = f" The package {missing.strip('`')!r} cannot be had." if missing else ""
    return BuildError(
        f"The image cannot be built: the step {step!r} failed: {clause(reason)}.{what} Correct the Dockerfile or the"
        f" requirements.{tail}"
    )


class BuildLog:
    """Writes a build's output into a file that others follow, from any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("ab")
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        """Append a piece of output; after `close`, nothing is written.

        Raises:
            InfrastructureError: when it cannot be written.
        """
        with self._lock:
            if self._file.closed:
                return
            try:
                self._file.write(text.encode("utf-8", "replace"))
                self._file.flush()
            except OSError as error:
                raise InfrastructureError(
                    f"The build's log {str(self._path)!r} cannot be written: {error}. Look at this machine's disk."
                ) from error

    def close(self) -> None:
        """Close the file; an error that `write` has raised already is not raised again."""
        with self._lock, suppress(OSError):
            self._file.close()
