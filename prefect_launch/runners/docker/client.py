"""The one door to a real Docker Engine, over the `docker` package's low-level client.

It connects when it is first used, to `DOCKER_HOST` or the machine's own socket. Each call runs in a thread of a small
pool of its own: the engine works on few things at once, so more threads would only wait. Errors name the engine's
address and what to do.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, TypeVar

import anyio
import docker
import docker.errors
import docker.utils
import requests
import urllib3

from prefect_launch.errors import InfrastructureError, QueueError, SpecError, UnreachableError
from prefect_launch.registries.base import Credentials
from prefect_launch.runners.docker.engine import Container, Engine, Image, LogStream, NameTakenError, TooLargeError
from prefect_launch.runners.docker.events import EngineEvents, EventSource
from prefect_launch.runners.docker.pull import pull_image
from prefect_launch.runners.docker.responses import read_inspected, read_listed, read_memory
from prefect_launch.runners.docker.streams import EngineEventStream, EngineLogStream, open_log

T = TypeVar("T")

_DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
#: Starting a container on a busy machine takes seconds; an engine that is silent for this long hangs.
_CALL_SECONDS = 120
_THREADS = 8
#: How often one who waits looks by himself while the engine is down.
_OUTAGE_POLL_SECONDS = 2.0
_EVENTS = ["start", "die", "oom", "destroy"]
#: Exit codes of a start that failed for the program's sake: it cannot be run, it is not there.
_PROGRAM_FAULTS = (126, 127)
#: How the engine says that a folder to be mounted is not there.
_MISSING_FOLDER = re.compile(r"bind source path does not exist: (\S+)")

#: It was reached, and stopped to speak in the middle of an answer.
_BROKEN_OFF = (requests.ReadTimeout, requests.exceptions.ChunkedEncodingError)
_TRANSPORT_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, OSError)


class DockerEngine(Engine):
    """A Docker Engine.

    Args:
        address: such as "unix:///run/docker.sock" or "tcp://host:2376"; by default what `DOCKER_HOST` and its fellows
            say.
        event_labels: only containers that have these labels are listened to.
    """

    def __init__(self, address: str | None = None, *, event_labels: tuple[str, ...] = ()) -> None:
        self.address = address or os.environ.get("DOCKER_HOST") or _DEFAULT_ADDRESS
        self._event_labels = event_labels
        self._client: Any = None
        self._lock = threading.Lock()
        self._limiter: anyio.CapacityLimiter | None = None
        self._events = EngineEvents(self._open_events)

    async def ping(self) -> None:
        await self._call(lambda client: client.ping(), abandon_on_cancel=True)

    async def image(self, name: str) -> Image | None:
        found = await self._call(lambda client: _or_none(client.inspect_image, name))
        if found is None:
            return None
        config = found.get("Config") or {}
        return Image(
            id=found["Id"],
            digests=tuple(found.get("RepoDigests") or ()),
            user=config.get("User") or "",
            working_dir=config.get("WorkingDir") or "/",
        )

    async def pull(self, name: str, platform: str | None = None, credentials: Credentials | None = None) -> None:
        await self._call(lambda client: pull_image(client, name, platform, credentials), abandon_on_cancel=True)

    async def create(self, name: str, config: Mapping[str, Any], platform: str | None = None) -> str:
        def create(client: Any) -> str:
            try:
                made = client.create_container_from_config(dict(config), name, platform)
            except docker.errors.APIError as error:
                if error.status_code == 409:
                    raise NameTakenError(f"A container named {name!r} exists already.") from error
                if error.status_code == 400 and (missing := _MISSING_FOLDER.search(str(error.explanation))):
                    raise QueueError(
                        f"The queue's config mounts {missing[1]!r}, which is not on the machine of the Docker Engine."
                        " Make it there, or correct the queue's volume or mount: no folder of the host is made for it."
                    ) from error
                if error.status_code == 400:
                    raise SpecError(
                        f"The Docker Engine refuses the container's options: {error.explanation}. Correct"
                        " resource_args."
                    ) from error
                raise
            return str(made["Id"])

        return await self._call(create)

    async def container(self, id_or_name: str) -> Container | None:
        found = await self._call(lambda client: _or_none(client.inspect_container, id_or_name))
        return None if found is None else read_inspected(found)

    async def containers(self, labels: Mapping[str, str]) -> list[Container]:
        wanted = [f"{key}={value}" for key, value in labels.items()]
        found = await self._call(lambda client: client.containers(all=True, filters={"label": wanted}))
        return [read_listed(one) for one in found]

    async def start(self, container_id: str) -> None:
        def start(client: Any) -> None:
            try:
                client.start(container_id)
            except docker.errors.APIError as error:
                state = client.inspect_container(container_id)["State"]
                if state["ExitCode"] not in _PROGRAM_FAULTS:
                    raise InfrastructureError(
                        f"The Docker Engine cannot start the container: {error.explanation}."
                        " Look at the engine, and at the queue's container options."
                    ) from error

        await self._call(start)

    async def kill(self, container_id: str, signal: str) -> None:
        def kill(client: Any) -> None:
            try:
                client.kill(container_id, signal)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # Gone, or not running.
                    raise

        await self._call(kill)

    async def ended(self, container_id: str) -> Container | None:
        with self._events.waiter(container_id) as news:
            while True:
                pause = None
                try:
                    container = await self.container(container_id)
                except InfrastructureError:
                    pause = _OUTAGE_POLL_SECONDS  # The engine is away; the container may well go on.
                else:
                    if container is None:
                        return None
                    if container.ended:
                        return container.model_copy(update={"oom_killed": container.oom_killed or news.oom})
                await news.wait(pause)

    async def memory(self, container_id: str) -> int | None:
        def memory(client: Any) -> int | None:
            return read_memory(_or_none(client.stats, container_id, stream=False, one_shot=True) or {})

        return await self._call(memory)

    async def remove(self, container_id: str) -> None:
        def remove(client: Any) -> None:
            try:
                client.remove_container(container_id, force=True, v=True)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # Gone, or on its way out.
                    raise

        await self._call(remove)

    async def changed_at(self, container_id: str, path: str) -> str | None:
        def changed_at(client: Any) -> str | None:
            # The package has the archive itself only; what is asked for here is its header.
            address = client._url("/containers/{0}/archive", container_id)
            response = client.head(address, params={"path": path}, timeout=_CALL_SECONDS)
            if response.status_code == 404:
                return None
            response.raise_for_status()
            return str(json.loads(base64.b64decode(response.headers["X-Docker-Container-Path-Stat"]))["mtime"])

        return await self._call(changed_at)

    async def put_archive(self, container_id: str, path: str, archive: bytes | BinaryIO) -> None:
        await self._call(lambda client: client.put_archive(container_id, path, archive))

    async def get_archive(self, container_id: str, path: str, into: BinaryIO, max_bytes: int) -> bool:
        def get_archive(client: Any) -> bool:
            found = _or_none(client.get_archive, container_id, path)
            if found is None:
                return False
            written = 0
            for chunk in found[0]:
                written += len(chunk)
                if written > max_bytes:
                    found[0].close()
                    raise TooLargeError(f"{path!r} in the container has more than {max_bytes:,} bytes.")
                into.write(chunk)
            return True

        return await self._call(get_archive)

    def open_log(self, container_id: str, since: int, *, follow: bool) -> LogStream:
        with self._errors():
            stream = _or_none(open_log, self._connected(), container_id, since, follow=follow)
        return EngineLogStream(stream, self._errors)

    async def aclose(self) -> None:
        self._events.close()
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            await asyncio.to_thread(client.close)

    async def _call(self, ask: Callable[[Any], T], *, abandon_on_cancel: bool = False) -> T:
        def call() -> T:
            with self._errors():
                return ask(self._connected())

        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(_THREADS)
        return await anyio.to_thread.run_sync(call, limiter=self._limiter, abandon_on_cancel=abandon_on_cancel)

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                settings = docker.utils.kwargs_from_env()
                settings["base_url"] = self.address
                self._client = docker.APIClient(version="auto", timeout=_CALL_SECONDS, max_pool_size=64, **settings)
            return self._client

    def _open_events(self) -> EventSource:
        filters = {"type": "container", "event": _EVENTS, "label": list(self._event_labels)}
        with self._errors():
            return EngineEventStream(self._connected().events(decode=True, filters=filters), self._errors)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except docker.errors.APIError as error:
            raise InfrastructureError(
                f"The Docker Engine at {self.address} failed: {error.explanation or error}. Look at its log."
            ) from error
        except (docker.errors.DockerException, *_TRANSPORT_ERRORS) as error:
            kind = InfrastructureError if isinstance(error, _BROKEN_OFF) else UnreachableError
            raise kind(
                f"The Docker Engine at {self.address} does not answer ({error}). Start it, allow this user to use it,"
                " or set DOCKER_HOST to the right address."
            ) from error


def _or_none(ask: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    try:
        return ask(*arguments, **options)
    except docker.errors.NotFound:
        return None
