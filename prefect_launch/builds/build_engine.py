"""Pushing an image with the Docker Engine. A push ends when its caller is cancelled; nothing else would end it."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar

import docker.auth
import docker.errors
import docker.utils
from docker.types import CancellableStream

from prefect_launch.errors import RegistryError, clause
from prefect_launch.registries.base import Credentials, is_digest
from prefect_launch.runners.docker.client import REFUSED, DockerEngine, engine_auth

T = TypeVar("T")

#: Takes the lines of a log; may be called from any thread.
LineSink = Callable[[str], None]

#: What is said of a layer many times a second, or before anything has happened.
_NO_NEWS: Final = frozenset({"Preparing", "Waiting", ""})


class PushRefusedError(RegistryError):
    """The registry does not let this user push; trying again changes nothing."""


class PushEngine(DockerEngine):
    """A Docker Engine that images are pushed from."""

    async def tag(self, image: str, name: str) -> None:
        """Give an image a name."""
        repository, tag = docker.utils.parse_repository_tag(name)
        await self._call(lambda client: client.tag(image, repository, tag=tag, force=True))

    async def push(self, name: str, credentials: Credentials | None, log: LineSink) -> str | None:
        """Push an image under its name, once.

        The layers go first and the manifest last, so that a push that breaks off leaves nothing under the name.

        Args:
            name: the image's, with its tag.
            credentials: who to be at its registry.
            log: takes what happens to each layer.

        Returns:
            The digest that the registry has given it, when the engine says so.

        Raises:
            RegistryError: when the registry does not take it; of the class `PushRefusedError` when it never will.
            InfrastructureError: when the engine fails.
        """
        opened: list[CancellableStream] = []

        def push(client: Any) -> str | None:
            stream = _open(client, name, credentials)
            opened.append(stream)
            return _follow(stream, name, log)

        return await self._until_cancelled(push, opened)

    async def _until_cancelled(self, work: Callable[[Any], T], opened: list[CancellableStream]) -> T:
        """Do work that reads streams; when its caller is cancelled, they are closed, and so it ends."""
        task = asyncio.ensure_future(self._call(work, abandon_on_cancel=True))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            for stream in opened:
                with suppress(Exception):  # It may have ended by itself just now.
                    await asyncio.to_thread(stream.close)
            task.cancel()
            await asyncio.wait({task})
            raise


def _open(client: Any, name: str, credentials: Credentials | None) -> CancellableStream:
    # The package's own call cannot be cut off, and shows its own credentials when it is given none.
    repository, tag = docker.utils.parse_repository_tag(name)
    headers = {"X-Registry-Auth": docker.auth.encode_header(engine_auth(credentials))}
    address = client._url("/images/{0}/push", repository)
    response = client._post_json(address, None, headers=headers, stream=True, params={"tag": tag})
    try:
        client._raise_for_status(response)
    except docker.errors.APIError as error:
        raise _failed(name, error.explanation or str(error)) from error
    return CancellableStream(client._stream_helper(response, decode=True), response)


def _follow(stream: CancellableStream, name: str, log: LineSink) -> str | None:
    told: dict[str, str] = {}
    digest = None
    for event in stream:
        if "error" in event:
            raise _failed(name, str(event["error"]))
        aux = event.get("aux") or {}
        digest = aux["Digest"] if is_digest(aux.get("Digest")) else digest
        layer, status = str(event.get("id") or ""), str(event.get("status") or "")
        if status not in _NO_NEWS and told.get(layer) != status:
            told[layer] = status
            log(f"{layer}: {status}\n" if layer else f"{status}\n")
    return digest


def _failed(name: str, reason: str) -> RegistryError:
    if REFUSED.search(reason):
        return PushRefusedError(f"The registry does not let the image {name!r} be pushed: {clause(reason)}.")
    return RegistryError(f"The image {name!r} could not be pushed: {clause(reason)}.")


# What building asks of a Docker Engine besides what running does: builds, steps in containers, commits, tags.

#: What the engine calls an image that has no name of a kind.
_NAMELESS: Final = ("<none>:<none>", "<none>@<none>")


@dataclass(frozen=True)
class StoredImage:
    """An image that an engine has.

    Attributes:
        id: its own.
        names: all of them, with a tag or a digest.
        size_bytes: with all that it stands on.
        labels: its labels.
    """

    id: str
    names: tuple[str, ...]
    size_bytes: int
    labels: Mapping[str, str]


class BuildEngine(PushEngine):
    """A Docker Engine that images are built on."""

    @property
    def is_local(self) -> bool:
        """Whether the engine sees this machine's folders."""
        return self.address.startswith("unix://")

    async def data_folder(self) -> str:
        """Return where it keeps its data, on its machine."""
        return str((await self._call(lambda client: client.info()))["DockerRootDir"])

    async def has_buildkit(self) -> bool:
        """Whether BuildKit is embedded in it: in Docker's own engine, since API 1.39."""
        about = await self._call(lambda client: client.version(api_version=False))
        is_docker = any(part.get("Name") == "Engine" for part in about.get("Components") or ())
        return is_docker and docker.utils.version_gte(about["ApiVersion"], "1.39")

    async def config_of(self, image: str) -> dict[str, Any]:
        """Return the configuration that an image has; empty when it is not there."""

        def look(client: Any) -> dict[str, Any]:
            try:
                return dict(client.inspect_image(image).get("Config") or {})
            except docker.errors.NotFound:
                return {}

        return await self._call(look)

    async def stored_images(self) -> list[StoredImage]:
        """Return the images that have a name, and the layers of builds that nothing stands on."""
        return [_stored(one) for one in await self._call(lambda client: client.images())]

    async def images_of_containers(self) -> set[str]:
        """Return the ids of the images that containers are made of, running or not."""
        return {str(one["ImageID"]) for one in await self._call(lambda client: client.containers(all=True))}

    async def untag(self, name: str) -> bool:
        """Take a name off an image, which goes with its last one; false when a container needs it."""

        def untag(client: Any) -> bool:
            try:
                client.remove_image(name)
            except docker.errors.NotFound:
                return True
            except docker.errors.APIError as error:
                if error.status_code != HTTPStatus.CONFLICT:
                    raise
                return False
            return True

        return await self._call(untag)

    async def find_child(self, parent: str, label: str) -> str | None:
        """Return the id of an image with a label (`name=value`) that was made of another one."""
        found = await self._call(lambda client: client.images(all=True, filters={"label": [label]}))
        return next((str(one["Id"]) for one in found if one.get("ParentId") == parent), None)

    async def build(self, context: BinaryIO, on_event: Callable[[Mapping[str, Any]], None], **params: Any) -> None:
        """Build with the engine's own builder.

        Args:
            context: a tar archive.
            on_event: gets each event of the build, in a thread.
            **params: of the engine's call, such as `dockerfile`.
        """
        opened: list[CancellableStream] = []

        def build(client: Any) -> None:
            # The package's own call cannot be cut off, and packs the context by itself.
            headers = {"Content-Type": "application/x-tar"}
            response = client._post(
                client._url("/build"), data=context, params=params, headers=headers, stream=True, timeout=None
            )
            client._raise_for_status(response)
            stream = CancellableStream(client._stream_helper(response, decode=False), response)
            opened.append(stream)
            with _closed_on_error(stream):
                for event in _events(stream):
                    on_event(event)

        await self._until_cancelled(build, opened)

    async def follow(self, container_id: str, on_piece: Callable[[bytes], None]) -> None:
        """Hand over a container's output until it ends."""
        opened: list[CancellableStream] = []

        def follow(client: Any) -> None:
            stream = client.logs(container_id, stream=True, follow=True)
            opened.append(stream)
            with _closed_on_error(stream):
                for piece in stream:
                    on_piece(piece)

        await self._until_cancelled(follow, opened)

    async def commit(self, container_id: str, changes: Iterable[str]) -> str:
        """Make an image of a container; return its id."""
        made = await self._call(lambda client: client.commit(container_id, changes=list(changes)))
        return str(made["Id"])

    async def names(self, prefix: str) -> list[tuple[str, str]]:
        """Return ids and names of the containers whose names start so."""
        found = await self._call(lambda client: client.containers(all=True, filters={"name": f"^/{prefix}"}))
        return [(one["Id"], name.lstrip("/")) for one in found for name in one["Names"][:1]]

    async def put_files(
        self, container_id: str, folder: str, secrets: Mapping[str, bytes], programs: Mapping[str, Path]
    ) -> None:
        """Put files that only root may read, and programs of this machine, into a folder of a container."""

        def pack() -> None:
            with tarfile.open(fileobj=packed, mode="w") as archive:
                for name, content in secrets.items():
                    member = tarfile.TarInfo(name)
                    member.size, member.mode = len(content), 0o400
                    archive.addfile(member, io.BytesIO(content))
                for name, path in programs.items():
                    archive.add(path.resolve(), name)

        with tempfile.TemporaryFile(prefix="launch-build-") as packed:
            await asyncio.to_thread(pack)
            packed.seek(0)
            await self.put_archive(container_id, folder, packed)


@contextmanager
def _closed_on_error(stream: CancellableStream) -> Iterator[None]:
    """Close a stream that is not read to its end: the engine goes on with a build for as long as it is open."""
    try:
        yield
    except BaseException:
        with suppress(Exception):  # It may have ended by itself just now.
            stream.close()
        raise


def _stored(about: Mapping[str, Any]) -> StoredImage:
    names = (*(about.get("RepoTags") or ()), *(about.get("RepoDigests") or ()))
    return StoredImage(
        id=str(about["Id"]),
        names=tuple(name for name in names if name not in _NAMELESS and not name.endswith(":<none>")),
        size_bytes=int(about["Size"]),
        labels=about.get("Labels") or {},
    )


def _events(stream: Iterable[bytes]) -> Iterable[Mapping[str, Any]]:
    """Read JSON objects, one after the other, of pieces that are cut anywhere."""
    decoder, text = json.JSONDecoder(), ""
    for piece in stream:
        text += piece.decode("utf-8", "replace")
        while text := text.lstrip():
            try:
                event, end = decoder.raw_decode(text)
            except ValueError:
                break
            text = text[end:]
            yield event
