"""Docker Engine interface: images, containers, files in them, logs and their ends.

`DockerEngine` implements it for a real engine, `prefect_launch.testing.InMemoryEngine` is the in-memory fake. All calls
are coroutines that do not block the event loop; only a log stream is read by its own thread. Nothing here knows of runs
or plans.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, BinaryIO, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from prefect_launch.errors import InfrastructureError, LaunchError
from prefect_launch.registries.base import Credentials
from prefect_launch.runners.usage import Usage


class NameTakenError(InfrastructureError):
    """A container of that name exists."""


class TooLargeError(LaunchError):
    """What was to be copied out of a container is larger than allowed."""


class Image(BaseModel):
    """An image that the engine has."""

    model_config = ConfigDict(frozen=True)

    id: str
    digests: tuple[str, ...] = Field(default=(), description="repository@sha256:… of each registry that has it.")
    user: str = Field(default="", description="The user that its containers run as; empty: root.")
    working_dir: str = "/"

    def reference(self, name: str = "") -> str:
        """Return a name that always means this very image: its digest in the repository of a name, or else its id."""
        named, _, wanted = name.partition("@")
        same = [digest for digest in self.digests if wanted and digest.endswith(f"@{wanted}")]
        repository = named.rpartition(":")[0] or named
        near = [digest for digest in self.digests if digest.partition("@")[0] in (repository, named)]
        return next(iter([*same, *near, *self.digests]), self.id)


class Container(BaseModel):
    """A container, as the engine describes it."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    status: str = Field(description="created, running, paused, restarting, removing, exited or dead.")
    labels: dict[str, str] = Field(default_factory=dict)
    image: str = ""
    image_id: str = ""
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = Field(default="", description="Why it could not be started, in the engine's words.")
    stop_signal: str = "SIGTERM"
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether its process is gone, or could not be made."""
        return self.status in ("exited", "dead") or self.failed_to_start

    @property
    def waits_for_start(self) -> bool:
        """Whether it was made and nobody has tried to start it."""
        return self.status == "created" and not self.error

    @property
    def failed_to_start(self) -> bool:
        """Whether the engine tried to start it and could not."""
        return self.status == "created" and bool(self.error)


class PathStat(NamedTuple):
    """What the engine says of a path in a container.

    Attributes:
        is_file: whether it is a regular file.
        size: in bytes.
        changed_at: when its content was changed last.
    """

    is_file: bool
    size: int
    changed_at: datetime


class LogPiece(NamedTuple):
    """A piece of a container's log.

    Attributes:
        content: `<timestamp> <bytes>`, as the engine keeps it.
        is_error: whether it was written to the standard error.
    """

    content: bytes
    is_error: bool


class LogStream(ABC):
    """A container's log, piece by piece. Read in a thread."""

    @abstractmethod
    def __iter__(self) -> Iterator[LogPiece]:
        """Yield the pieces in the engine's order.

        Raises:
            InfrastructureError: when the stream breaks.
        """

    @abstractmethod
    def close(self) -> None:
        """End the stream from another thread."""


class Engine(ABC):
    """One Docker Engine. Every method raises `InfrastructureError` when the engine fails, and `UnreachableError`
    when it cannot be reached."""

    @property
    @abstractmethod
    def is_local(self) -> bool:
        """Whether the engine sees this machine's folders."""

    @abstractmethod
    def client_program(self) -> tuple[str, ...]:
        """Return how the command line of a program begins that speaks to this engine, such as `docker`.

        Raises:
            AgentConfigError: when this machine has none.
        """

    @abstractmethod
    async def ping(self) -> None:
        """Return when the engine answers."""

    @abstractmethod
    async def image(self, name: str) -> Image | None:
        """Return an image when the engine has it."""

    @abstractmethod
    async def pull(self, name: str, platform: str | None = None, credentials: Credentials | None = None) -> None:
        """Fetch an image from its registry.

        Args:
            platform: such as linux/amd64; None: the engine's own.
            credentials: who to be there; None: nobody in particular, or as the engine's machine is logged in.
        """

    @abstractmethod
    async def create(self, name: str, config: Mapping[str, Any], platform: str | None = None) -> str:
        """Make a container from a configuration of the Engine API, and return its id.

        Raises:
            SpecError: when the engine refuses the configuration.
            NameTakenError: when there is a container of that name.
        """

    @abstractmethod
    async def container(self, id_or_name: str) -> Container | None:
        """Return a container when it exists."""

    @abstractmethod
    async def containers(self, labels: Mapping[str, str]) -> list[Container]:
        """Return all containers with these labels, running or not. Exit codes are left out."""

    @abstractmethod
    async def start(self, container_id: str) -> None:
        """Start a container. One whose program cannot be run is `failed_to_start` then; that raises nothing."""

    @abstractmethod
    async def kill(self, container_id: str, signal: str) -> None:
        """Send a signal to a container's process; nothing when it is not running."""

    @abstractmethod
    async def ended(self, container_id: str, *, runs: Callable[[], object] | None = None) -> Container | None:
        """Wait until a container has ended, and return it; None when it was removed. Outages of the engine are waited
        through.

        Args:
            runs: is called once when the container has not ended yet.
        """

    @abstractmethod
    async def usage(self, container_id: str) -> Usage | None:
        """Return what the processes of a container use; None when it does not run."""

    @abstractmethod
    async def remove(self, container_id: str) -> None:
        """Remove a container with its unnamed volumes; nothing when it is gone."""

    @abstractmethod
    async def changed_at(self, container_id: str, path: str) -> str | None:
        """Return a text that changes when something is added to a folder in a container; None when there is no such
        folder."""

    @abstractmethod
    async def stat(self, container_id: str, path: str) -> PathStat | None:
        """Look at a path in a container, links not followed; None when there is nothing."""

    @abstractmethod
    async def changes(self, container_id: str) -> list[str]:
        """List the absolute paths of what was added or changed in a container since it was made of its image.

        Raises:
            TooLargeError: when there is too much of it to be listed.
        """

    @abstractmethod
    async def put_archive(self, container_id: str, path: str, archive: bytes | BinaryIO) -> None:
        """Unpack a tar archive into a folder of a container."""

    @abstractmethod
    async def get_archive(self, container_id: str, path: str, into: BinaryIO, max_bytes: int) -> bool:
        """Copy a file or folder of a container into a tar archive; return whether it was there.

        Raises:
            TooLargeError: when the archive would have more than `max_bytes` bytes.
        """

    @abstractmethod
    def open_log(self, container_id: str, since: int, *, follow: bool) -> LogStream:
        """Open a container's log, both streams, from a time on; blocks, so call it in a thread.

        Args:
            since: seconds since 1970, pieces of that second included; 0 is the whole log.
            follow: continue until the container ends.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Close connections and threads. Containers continue."""
