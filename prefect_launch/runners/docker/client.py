"""Docker Engine client: `DockerEngine`, over the `docker` package's low-level client.

It connects when it is first used, to `DOCKER_HOST` or the machine's own socket. Each call runs in a thread of a small
pool of its own: the engine works on few things at once, so more threads would only wait. One thread reads the engine's
event stream and wakes the coroutines that wait for a container. An event only triggers an inspect call, so a broken
stream loses nothing. Errors name the engine's address and what to do.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import re
import shutil
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, BinaryIO, Final, Protocol, TypeVar

import anyio
import docker
import docker.auth
import docker.errors
import docker.utils
import requests
import urllib3
from docker.types.daemon import CancellableStream

from prefect_launch.errors import (
    AgentConfigError,
    ImagePullError,
    InfrastructureError,
    QueueError,
    SpecError,
    UnreachableError,
    clause,
)
from prefect_launch.registries.base import TOKEN_USER, Credentials
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

log = logging.getLogger(__name__)

#: Programs that run a command in a container, each with its option for the engine's address.
_CLIENT_PROGRAMS: Final = {"docker": "--host", "podman": "--url"}
#: Between two attempts to connect while the engine is down.
_RETRY_SECONDS = 1.0


class EventSource(Protocol):
    """An open event stream."""

    def __iter__(self) -> Iterator[Mapping[str, Any]]: ...

    def close(self) -> None: ...


class Waiter:
    """One coroutine's interest in one container."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.oom = False
        self._loop = loop
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Wake it, from any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._woken.set)

    async def wait(self, timeout: float | None = None) -> None:
        """Return when something may have happened since the last call, or the time has passed."""
        try:
            with anyio.move_on_after(timeout):
                await self._woken.wait()
        finally:
            self._woken.clear()


class EngineEvents:
    """Who waits for which container.

    Args:
        connect: opens the event stream; blocks; raises `InfrastructureError` when the engine does not answer.
    """

    def __init__(self, connect: Callable[[], EventSource]) -> None:
        self._connect = connect
        self._waiters: dict[str, list[Waiter]] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._source: EventSource | None = None

    @contextmanager
    def waiter(self, container_id: str) -> Iterator[Waiter]:
        """Listen for one container's news as long as the context lasts; must be entered in a running event loop."""
        waiter = Waiter(asyncio.get_running_loop())
        with self._lock:
            self._waiters.setdefault(container_id, []).append(waiter)
            if self._thread is None:
                self._thread = threading.Thread(target=self._read, name="docker-events", daemon=True)
                self._thread.start()
        try:
            yield waiter
        finally:
            with self._lock:
                self._waiters[container_id].remove(waiter)
                if not self._waiters[container_id]:
                    del self._waiters[container_id]

    def close(self) -> None:
        """End the stream and its thread."""
        self._closed.set()
        with self._lock:
            source = self._source
        if source is not None:
            source.close()

    def _read(self) -> None:
        while not self._closed.is_set():
            try:
                source = self._connect()
                with self._lock:
                    self._source = source
                self._wake_all()
                if not self._closed.is_set():
                    for event in source:
                        self._dispatch(event)
            except InfrastructureError:
                pass  # Waiting callers ask the engine themselves, and get its outage as an error.
            except Exception:
                # On its own thread, nobody else would see the error; callers have a timeout as well.
                log.exception("The engine's event stream failed; it is opened again.")
            self._closed.wait(_RETRY_SECONDS)

    def _dispatch(self, event: Mapping[str, Any]) -> None:
        container_id = event.get("Actor", {}).get("ID") or event.get("id", "")
        with self._lock:
            waiters = list(self._waiters.get(container_id, ()))
        for waiter in waiters:
            waiter.oom = waiter.oom or event.get("Action") == "oom"
            waiter.wake()

    def _wake_all(self) -> None:
        with self._lock:
            waiters = [waiter for those in self._waiters.values() for waiter in those]
        for waiter in waiters:
            waiter.wake()


# --- answers of the engine as values ---

#: How the engine writes "has not happened".
_NEVER = "0001-01-01"


def read_inspected(found: Mapping[str, Any]) -> Container:
    """Read what the engine says when it is asked for one container."""
    state, config = found["State"], found["Config"]
    return Container(
        id=found["Id"],
        name=found["Name"].lstrip("/"),
        status=state["Status"],
        labels=config.get("Labels") or {},
        image=config.get("Image") or "",
        image_id=found.get("Image") or "",
        exit_code=state["ExitCode"],
        oom_killed=state.get("OOMKilled", False),
        error=state.get("Error") or "",
        stop_signal=config.get("StopSignal") or "SIGTERM",
        started_at=_time(state.get("StartedAt")),
        ended_at=_time(state.get("FinishedAt")),
    )


def read_listed(found: Mapping[str, Any]) -> Container:
    """Read one line of the engine's list of containers, which has fewer fields."""
    return Container(
        id=found["Id"],
        name=(found.get("Names") or [""])[0].lstrip("/"),
        status=found["State"],
        labels=found.get("Labels") or {},
        image=found.get("Image") or "",
    )


def read_usage(found: Mapping[str, Any]) -> Usage | None:
    """Read what a container's processes use, as `docker stats` counts it: of memory, what the kernel can drop of files
    at once is left out. None for a container that does not run."""
    memory = found.get("memory_stats") or {}
    if not memory.get("usage"):
        return None
    parts = memory.get("stats") or {}
    # The kernel's first version of control groups, and its second.
    droppable = parts.get("total_inactive_file", parts.get("inactive_file", 0))
    nanoseconds = found.get("cpu_stats", {}).get("cpu_usage", {}).get("total_usage", 0)
    return Usage(nanoseconds / 1e9, int(memory["usage"] - min(droppable, memory["usage"])))


def _time(text: str | None) -> datetime | None:
    """Read the engine's time, whose nanoseconds Python 3.10 cannot."""
    return None if not text or text.startswith(_NEVER) else _moment(text)


def _moment(text: str) -> datetime:
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise InfrastructureError(f"The engine gives a time of an unknown form: {text!r}.")
    whole, fraction, zone = found.groups(default="")
    return datetime.fromisoformat(f"{whole}.{(fraction + '000000')[:6]}{zone.replace('Z', '+00:00')}")


#: The bits of Go's file mode that stand for anything but a regular file.
_NO_FILE: Final = 0x8F280000
_MOMENT: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|[+-]\d\d:\d\d)")
#: The kind of a change that is a removal.
_REMOVED: Final = 2
#: Some 200,000 changed files.
_MAX_CHANGES_BYTES: Final = 16 * 1024**2


def _look(client: Any, container_id: str, path: str) -> dict[str, Any] | None:
    """Return what the engine says of a path in a container; None when there is nothing."""
    # The package has the archive itself only; what is asked for here is its header.
    address = client._url("/containers/{0}/archive", container_id)
    response = client.head(address, params={"path": path}, timeout=_CALL_SECONDS)
    if response.status_code == 404:
        return None
    response.raise_for_status()
    found: dict[str, Any] = json.loads(base64.b64decode(response.headers["X-Docker-Container-Path-Stat"]))
    return found


# --- pulling an image ---

#: The engine's words for a registry that wants to know who asks, or does not let this user have the image.
REFUSED: Final = re.compile(
    r"unauthorized|authentication required|no basic auth|denied|insufficient[_ ]scope|forbidden|incorrect username",
    re.IGNORECASE,
)


def engine_auth(credentials: Credentials | None) -> dict[str, str]:
    """Return credentials as the Engine API takes them; empty ones are nobody's."""
    if credentials is None:
        return {}
    user, password = credentials
    return {"identitytoken": password} if user == TOKEN_USER else {"username": user, "password": password}


def pull_image(client: Any, name: str, platform: str | None, credentials: Credentials | None) -> None:
    """Pull an image.

    Args:
        client: the `docker` package's low-level client.
        name: of the image.
        platform: such as linux/amd64; None: the engine's own.
        credentials: who to be at its registry; None: as this machine's Docker is logged in.

    Raises:
        ImagePullError: when the registry does not give it.
    """
    repository, tag = docker.utils.parse_repository_tag(name)
    auth = engine_auth(credentials) or None
    try:
        for line in client.pull(
            repository, tag=tag or "latest", stream=True, decode=True, platform=platform, auth_config=auth
        ):
            if "error" in line:
                raise _failed(name, line["error"], credentials)
    except docker.errors.APIError as error:
        raise _failed(name, error.explanation or str(error), credentials) from error


def _failed(name: str, reason: str, credentials: Credentials | None) -> ImagePullError:
    if credentials is not None and REFUSED.search(reason):
        step = (
            "Its registry refuses the user and password that are configured for it, or does not let that user have it."
        )
    else:
        step = (
            "Check its name, that the registry can be reached from here, and that its credentials are known: a block"
            " under 'registries' in the agent's config, or 'docker login' on this machine."
        )
    return ImagePullError(f"The image {name!r} is not on this machine and cannot be pulled: {clause(reason)}. {step}")


# --- log and event streams ---

#: Before each piece of a log: of which stream it is, and how long.
_HEADER: Final = struct.Struct(">BxxxL")
_ERROR: Final = 2


def open_log(client: Any, container_id: str, since: int, *, follow: bool) -> CancellableStream:
    """Open a container's log, as the package's `logs` does, but with the stream that each piece is of.

    Args:
        client: the package's.
        container_id: of the container.
        since: seconds since 1970; 0 is the whole log.
        follow: continue until the container ends.
    """
    wanted = {"stdout": 1, "stderr": 1, "timestamps": 1, "follow": int(follow), "tail": "all", "since": since}
    address = client._url("/containers/{0}/logs", container_id)
    response = client._get(address, params={name: value for name, value in wanted.items() if value}, stream=True)
    client._raise_for_status(response)
    return CancellableStream(_pieces(client, response), response)


def _pieces(client: Any, response: Any) -> Iterator[LogPiece]:
    client._disable_socket_timeout(client._get_raw_response_socket(response))
    while header := response.raw.read(_HEADER.size):
        stream, length = _HEADER.unpack(header)
        content = response.raw.read(length) if length else b""
        if content:
            yield LogPiece(content, stream == _ERROR)


class EngineStream(LogStream):
    """A stream of the package, with our errors. None stands for a container that is gone."""

    def __init__(self, stream: Any, errors: Callable[[], Any]) -> None:
        self._stream = stream
        self._errors = errors

    def __iter__(self) -> Iterator[Any]:
        if self._stream is not None:
            with self._errors():
                yield from self._stream

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()


# --- the client ---

T = TypeVar("T")

_DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
#: Starting a container on a busy machine takes seconds; an engine that is silent for this long hangs.
_CALL_SECONDS = 120
_THREADS = 8
#: The exit code of what a SIGKILL has ended, and how long the engine gets to say that memory was the reason.
_KILLED: Final = 137
_OOM_LAG_SECONDS: Final = 1.0
#: How often one who waits looks by himself while the engine is down.
_OUTAGE_POLL_SECONDS = 2.0
_EVENTS = ["start", "die", "oom", "destroy"]
#: Exit codes of a start that failed for the program's sake: it cannot be run, it is not there.
_PROGRAM_FAULTS = (126, 127)
#: How the engine says that a limit is above what its machine allows: the fault of the asker, not of the machine.
_RLIMIT = "error setting rlimit"
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
        self._killed_here: set[str] = set()
        self._events = EngineEvents(self._open_events)

    @property
    def is_local(self) -> bool:
        return self.address.startswith("unix://")

    def client_program(self) -> tuple[str, ...]:
        for program, option in _CLIENT_PROGRAMS.items():
            if shutil.which(program):
                return program, option, self.address
        raise AgentConfigError(
            f"This machine has none of the programs {', '.join(_CLIENT_PROGRAMS)}, which run commands in containers."
            " Install one (Debian: docker-cli), and try again."
        )

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
                if _RLIMIT in str(error.explanation):
                    raise SpecError(
                        "The machine of the Docker Engine does not allow so much of the option 'ulimit' of"
                        f" local-container: {error.explanation}. Ask for less, or leave it out."
                    ) from error
                if state["ExitCode"] not in _PROGRAM_FAULTS:
                    raise InfrastructureError(
                        f"The Docker Engine cannot start the container: {error.explanation}."
                        " Look at the engine, and at the queue's container options."
                    ) from error

        await self._call(start)

    async def kill(self, container_id: str, signal: str) -> None:
        if signal == "SIGKILL":
            self._killed_here.add(container_id)

        def kill(client: Any) -> None:
            try:
                client.kill(container_id, signal)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # Gone, or not running.
                    raise

        await self._call(kill)

    async def ended(self, container_id: str, *, runs: Callable[[], object] | None = None) -> Container | None:
        with self._events.waiter(container_id) as news:
            while True:
                pause = None
                try:
                    container = await self.container(container_id)
                except InfrastructureError:
                    pause = _OUTAGE_POLL_SECONDS  # The engine is away; the container may well run on.
                else:
                    if container is None:
                        return None
                    if container.ended:
                        is_known = container.oom_killed or container_id in self._killed_here
                        if container.exit_code == _KILLED and not is_known:
                            # The engine gets the end and its cause in two ways, the cause sometimes later.
                            with anyio.move_on_after(_OOM_LAG_SECONDS):
                                while not news.oom:
                                    await news.wait(None)
                        return container.model_copy(update={"oom_killed": container.oom_killed or news.oom})
                    if runs is not None:
                        runs()
                        runs = None
                await news.wait(pause)

    async def usage(self, container_id: str) -> Usage | None:
        def usage(client: Any) -> Usage | None:
            return read_usage(_or_none(client.stats, container_id, stream=False, one_shot=True) or {})

        return await self._call(usage)

    async def remove(self, container_id: str) -> None:
        self._killed_here.discard(container_id)

        def remove(client: Any) -> None:
            try:
                client.remove_container(container_id, force=True, v=True)
            except docker.errors.APIError as error:
                if error.status_code not in (404, 409):  # Gone, or on its way out.
                    raise

        await self._call(remove)

    async def changed_at(self, container_id: str, path: str) -> str | None:
        found = await self._call(lambda client: _look(client, container_id, path))
        return None if found is None else str(found["mtime"])

    async def stat(self, container_id: str, path: str) -> PathStat | None:
        found = await self._call(lambda client: _look(client, container_id, path))
        if found is None:
            return None
        return PathStat(not found["mode"] & _NO_FILE, found["size"], _moment(found["mtime"]))

    async def changes(self, container_id: str) -> list[str]:
        def changes(client: Any) -> list[str]:
            # The package's own call reads whatever a job has left into memory.
            address = client._url("/containers/{0}/changes", container_id)
            with client.get(address, stream=True, timeout=_CALL_SECONDS) as response:
                response.raise_for_status()
                listed = response.raw.read(_MAX_CHANGES_BYTES + 1, decode_content=True)
            if len(listed) > _MAX_CHANGES_BYTES:
                raise TooLargeError("the engine lists too many changed files")
            return [each["Path"] for each in json.loads(listed) or () if each["Kind"] != _REMOVED]

        return await self._call(changes)

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
        return EngineStream(stream, self._errors)

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
            return EngineStream(self._connected().events(decode=True, filters=filters), self._errors)

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
