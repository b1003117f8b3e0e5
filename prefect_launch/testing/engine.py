"""In-memory Docker Engine: the fake of `DockerEngine`, for tests of what is built on an engine.

Containers are scripts. Several `InMemoryEngine` share one `InMemoryDocker`, as several clients share one engine. While
its `reachable` is False every call fails as if the engine were down, and its containers continue.
"""

from __future__ import annotations

import asyncio
import io
import signal
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Any, BinaryIO
from uuid import uuid4

from prefect_launch.errors import ImagePullError, InfrastructureError, UnreachableError
from prefect_launch.registries.base import Credentials
from prefect_launch.runners.docker.engine import (
    Container,
    Engine,
    Image,
    LogPiece,
    LogStream,
    NameTakenError,
    PathStat,
    TooLargeError,
)
from prefect_launch.runners.usage import Usage
from prefect_launch.testing.script import Err, Script, ScriptedProcess


@dataclass
class _Container:
    about: Container
    config: dict[str, Any]
    script: Script
    files: dict[str, bytes]
    #: When those were written that are not of the image.
    times: dict[str, datetime] = field(default_factory=dict)
    log: list[LogPiece] = field(default_factory=list)
    process: ScriptedProcess | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def set(self, **changes: Any) -> None:
        self.about = self.about.model_copy(update=changes)


@dataclass
class InMemoryDocker:
    """The engine itself: its state, shared by all connections.

    Args:
        script: says what a container does, by its configuration.
        images: its images, and the files in each, by absolute path.
        registry: the images that can be pulled.
        registry_user: who alone can pull them; None: anybody.
        is_local: whether it sees this machine's folders.
    """

    script: Callable[[Mapping[str, Any]], Script] = lambda config: Script()
    images: dict[str, dict[str, bytes]] = field(default_factory=dict)
    registry: dict[str, dict[str, bytes]] = field(default_factory=dict)
    registry_user: Credentials | None = None
    containers: dict[str, _Container] = field(default_factory=dict)
    pulled: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    reachable: bool = True
    is_local: bool = True
    lock: threading.Condition = field(default_factory=threading.Condition)


class InMemoryEngine(Engine):
    """A connection to an in-memory engine."""

    def __init__(self, docker: InMemoryDocker) -> None:
        self.docker = docker

    @property
    def is_local(self) -> bool:
        return self.docker.is_local

    def client_program(self) -> tuple[str, ...]:
        return ("docker",)

    async def ping(self) -> None:
        self._docker()

    async def image(self, name: str) -> Image | None:
        known = name.removeprefix("sha256:")
        return Image(id=f"sha256:{known}") if known in self._docker().images else None

    async def pull(self, name: str, platform: str | None = None, credentials: Credentials | None = None) -> None:
        docker = self._docker()
        if docker.registry_user is not None and credentials != docker.registry_user:
            raise ImagePullError(f"The image {name!r} is not on this machine and cannot be pulled: unauthorized.")
        if name not in docker.registry:
            raise ImagePullError(f"The image {name!r} is not on this machine and cannot be pulled: not found.")
        docker.pulled.append(name)
        docker.images[name] = docker.registry[name]

    async def create(self, name: str, config: Mapping[str, Any], platform: str | None = None) -> str:
        docker = self._docker()
        if any(one.about.name == name for one in docker.containers.values()):
            raise NameTakenError(f"A container named {name!r} exists already.")
        about = Container(
            id=uuid4().hex,
            name=name,
            status="created",
            labels=dict(config["Labels"]),
            image=config["Image"],
            image_id=f"sha256:{config['Image']}",
        )
        files = dict(docker.images[config["Image"]])
        docker.containers[about.id] = _Container(about, dict(config), docker.script(config), files)
        return about.id

    async def container(self, id_or_name: str) -> Container | None:
        found = self._find(id_or_name)
        return found.about if found else None

    async def containers(self, labels: Mapping[str, str]) -> list[Container]:
        every = self._docker().containers.values()
        return [one.about for one in every if labels.items() <= one.about.labels.items()]

    async def start(self, container_id: str) -> None:
        one = self._find(container_id)
        if one is None:
            raise InfrastructureError(f"There is no container {container_id!r}.")
        if one.script.missing:
            one.set(exit_code=127, error=f"{one.config.get('Entrypoint')!r}: executable file not found in $PATH")
            one.ended.set()
            return
        self.docker.started.append(one.about.name)
        one.set(status="running", started_at=datetime.now(timezone.utc))
        one.process = ScriptedProcess(one.script, lambda piece: self._write(one, piece), lambda: self._end(one))

    async def kill(self, container_id: str, signal: str) -> None:
        one = self._find(container_id)
        if one is not None and one.process is not None:
            one.process.kill(_number(signal))

    async def ended(self, container_id: str, *, runs: Callable[[], object] | None = None) -> Container | None:
        one = self.docker.containers.get(container_id)
        if one is None:
            return None
        if runs is not None and not one.ended.is_set():
            runs()
        await one.ended.wait()
        return one.about if container_id in self.docker.containers else None

    async def usage(self, container_id: str) -> Usage | None:
        one = self._find(container_id)
        return one.process.usage if one is not None and one.process is not None else None

    async def remove(self, container_id: str) -> None:
        self._docker()
        one = self.docker.containers.pop(container_id, None)
        if one is not None and one.process is not None:
            one.process.kill(9)

    async def changed_at(self, container_id: str, path: str) -> str | None:
        one = self._find(container_id)
        return None if one is None else str(sum(name.startswith(f"{path}/") for name in one.files))

    async def stat(self, container_id: str, path: str) -> PathStat | None:
        one = self._find(container_id)
        if one is None or not any(name == path or name.startswith(f"{path}/") for name in one.files):
            return None
        content = one.files.get(path)
        never = datetime.fromtimestamp(0, timezone.utc)
        return PathStat(content is not None, len(content or b""), one.times.get(path, never))

    async def changes(self, container_id: str) -> list[str]:
        one = self._find(container_id)
        files = {PurePosixPath(name) for name in (one.times if one else ())}
        return sorted(str(path) for path in files.union(*(file.parents for file in files)))

    async def put_archive(self, container_id: str, path: str, archive: bytes | BinaryIO) -> None:
        one = self._find(container_id)
        with tarfile.open(fileobj=io.BytesIO(archive) if isinstance(archive, bytes) else archive) as packed:
            for member in packed:
                content = packed.extractfile(member)
                if one is not None and content is not None:
                    name = f"{path.rstrip('/')}/{member.name}"
                    one.files[name] = content.read()
                    one.times[name] = datetime.fromtimestamp(member.mtime, timezone.utc)

    async def get_archive(self, container_id: str, path: str, into: BinaryIO, max_bytes: int) -> bool:
        one = self._find(container_id)
        above = path.rpartition("/")[0]
        found = {n: c for n, c in one.files.items() if n == path or n.startswith(f"{path}/")} if one else {}
        if sum(map(len, found.values())) > max_bytes:
            raise TooLargeError(f"{path!r} in the container has more than {max_bytes:,} bytes.")
        with tarfile.open(fileobj=into, mode="w") as packed:
            for name, content in found.items():
                member = tarfile.TarInfo(name.removeprefix(f"{above}/"))
                member.size = len(content)
                packed.addfile(member, io.BytesIO(content))
        return bool(found)

    def open_log(self, container_id: str, since: int, *, follow: bool) -> LogStream:
        return _Log(self.docker, self._find(container_id), since, follow)

    async def aclose(self) -> None:
        return

    def _docker(self) -> InMemoryDocker:
        if not self.docker.reachable:
            raise UnreachableError("The Docker Engine does not answer. Start it.")
        return self.docker

    def _find(self, id_or_name: str) -> _Container | None:
        every = self._docker().containers
        return every.get(id_or_name) or next((one for one in every.values() if one.about.name == id_or_name), None)

    def _write(self, one: _Container, piece: bytes) -> None:
        stamp = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")
        with self.docker.lock:
            one.log.append(LogPiece(f"{stamp} ".encode() + piece, isinstance(piece, Err)))
            self.docker.lock.notify_all()

    def _end(self, one: _Container) -> None:
        code = one.process.exit_code if one.process is not None else None
        for folder, files in (("/launch/outputs", one.script.outputs), ("/workspace", one.script.code)):
            for name, content in files.items():
                one.files[f"{folder}/{name}"] = content
                one.times[f"{folder}/{name}"] = datetime.now(timezone.utc)
        one.set(status="exited", exit_code=code, oom_killed=one.script.oom_killed, ended_at=datetime.now(timezone.utc))
        with self.docker.lock:
            one.ended.set()
            self.docker.lock.notify_all()


class _Log(LogStream):
    def __init__(self, docker: InMemoryDocker, one: _Container | None, since: int, follow: bool) -> None:
        self._docker = docker
        self._one = one
        self._since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since)).encode()
        self._follow = follow
        self._closed = False

    def __iter__(self) -> Iterator[LogPiece]:
        one, read = self._one, 0
        while one is not None:
            with self._docker.lock:
                new, read = one.log[read:], len(one.log)
                goes_on = self._follow and not self._closed and not one.ended.is_set()
                if not new and goes_on:
                    self._docker.lock.wait(0.5)
            yield from (piece for piece in new if piece.content >= self._since)
            if not new and not goes_on:
                return

    def close(self) -> None:
        with self._docker.lock:
            self._closed = True
            self._docker.lock.notify_all()


def _number(name: str) -> int:
    return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])
