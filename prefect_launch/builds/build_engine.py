"""Docker Engine calls of image builds: build, steps in containers, commit, tag; and the push of an image to a registry.

They add to the calls of `DockerEngine`. A call that streams ends when its caller is cancelled: the engine continues
with a build or a push for as long as its stream is open.

A registry takes an image's layers first and its manifest last, and only the manifest has the name. So a push
that breaks off leaves the name as it was, and the next push continues with the layers that the registry has.
"""

from __future__ import annotations

import asyncio
import io
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO, Final

import docker.auth
import docker.errors
import docker.utils
from docker.types import CancellableStream

from prefect_launch.builds.builder import LineSink
from prefect_launch.errors import RegistryError, clause
from prefect_launch.registries.base import Credentials, Registry, is_digest, parse_reference
from prefect_launch.runners.docker.client import REFUSED, DockerEngine, engine_auth
from prefect_launch.runners.docker.engine import Engine

#: Statuses of a layer that come many times a second, or before anything has happened.
_UNLOGGED_STATUSES: Final = frozenset({"Preparing", "Waiting", ""})
#: How the engine writes a missing name.
_NAMELESS: Final = ("<none>:<none>", "<none>@<none>")


class PushRefusedError(RegistryError):
    """The registry does not let this user push; trying again changes nothing."""


@dataclass(frozen=True)
class StoredImage:
    """An image that an engine has.

    Attributes:
        id: its id.
        names: all its names, with a tag or a digest.
        size_bytes: its size, with all that it is built on.
        labels: its labels.
    """

    id: str
    names: tuple[str, ...]
    size_bytes: int
    labels: Mapping[str, str]


class BuildEngine(DockerEngine):
    """A Docker Engine that images are built on and pushed from."""

    async def data_folder(self) -> str:
        """Return the folder of the engine's data, on its machine."""
        return str((await self._call(lambda client: client.info()))["DockerRootDir"])

    async def has_buildkit(self) -> bool:
        """Whether BuildKit is embedded in the engine: in Docker's own engine, since API 1.39."""
        about = await self._call(lambda client: client.version(api_version=False))
        is_docker = any(part.get("Name") == "Engine" for part in about.get("Components") or ())
        return is_docker and docker.utils.version_gte(about["ApiVersion"], "1.39")

    async def config_of(self, image: str) -> dict[str, Any]:
        """Return the configuration of an image; empty when the engine does not have it."""

        def inspect(client: Any) -> dict[str, Any]:
            try:
                return dict(client.inspect_image(image).get("Config") or {})
            except docker.errors.NotFound:
                return {}

        return await self._call(inspect)

    async def stored_images(self) -> list[StoredImage]:
        """Return the images that have a name, and the layers of builds that no image uses."""
        return [_stored(one) for one in await self._call(lambda client: client.images())]

    async def images_of_containers(self) -> set[str]:
        """Return the ids of the images of all containers, running or not."""
        return {str(one["ImageID"]) for one in await self._call(lambda client: client.containers(all=True))}

    async def tag(self, image: str, name: str) -> None:
        """Give an image a name."""
        repository, tag = docker.utils.parse_repository_tag(name)
        await self._call(lambda client: client.tag(image, repository, tag=tag, force=True))

    async def untag(self, name: str) -> bool:
        """Remove a name from an image, and the image with its last name; return false when a container needs it."""

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
        """Return the id of an image with a label (`name=value`) that was made from another image."""
        found = await self._call(lambda client: client.images(all=True, filters={"label": [label]}))
        return next((str(one["Id"]) for one in found if one.get("ParentId") == parent), None)

    async def names(self, prefix: str) -> list[tuple[str, str]]:
        """Return ids and names of the containers whose names begin with a prefix."""
        found = await self._call(lambda client: client.containers(all=True, filters={"name": f"^/{prefix}"}))
        return [(one["Id"], name.lstrip("/")) for one in found for name in one["Names"][:1]]

    async def build(self, context: BinaryIO, on_event: Callable[[Mapping[str, Any]], None], **params: Any) -> None:
        """Build a tar archive with the engine's classic builder; `on_event` is called in a thread."""

        def start(client: Any) -> CancellableStream:
            # The package's own call cannot be cancelled, and packs the context itself.
            headers = {"Content-Type": "application/x-tar"}
            response = client._post(
                client._url("/build"), data=context, params=params, headers=headers, stream=True, timeout=None
            )
            client._raise_for_status(response)
            return CancellableStream(client._stream_helper(response, decode=True), response)

        await self._read_stream(start, on_event)

    async def follow(self, container_id: str, on_piece: Callable[[bytes], None]) -> None:
        """Hand over a container's output until it ends."""
        await self._read_stream(lambda client: client.logs(container_id, stream=True, follow=True), on_piece)

    async def push(self, name: str, credentials: Credentials | None, log: LineSink) -> str | None:
        """Push an image under its name, once.

        The engine pushes the layers first and the manifest last, so a push that breaks off leaves nothing under the
        name.

        Returns:
            The digest in the registry, when the engine reports it.

        Raises:
            RegistryError: when the registry does not accept it; of the class `PushRefusedError` when it never will.
            InfrastructureError: when the engine fails.
        """
        digest: str | None = None
        statuses: dict[str, str] = {}

        def start(client: Any) -> CancellableStream:
            # The package's own call cannot be cancelled, and shows its own credentials when it is given none.
            repository, tag = docker.utils.parse_repository_tag(name)
            headers = {"X-Registry-Auth": docker.auth.encode_header(engine_auth(credentials))}
            address = client._url("/images/{0}/push", repository)
            response = client._post_json(address, None, headers=headers, stream=True, params={"tag": tag})
            try:
                client._raise_for_status(response)
            except docker.errors.APIError as error:
                raise _push_error(name, error.explanation or str(error)) from error
            return CancellableStream(client._stream_helper(response, decode=True), response)

        def read(event: Mapping[str, Any]) -> None:
            nonlocal digest
            if "error" in event:
                raise _push_error(name, str(event["error"]))
            aux = event.get("aux") or {}
            digest = aux["Digest"] if is_digest(aux.get("Digest")) else digest
            layer, status = str(event.get("id") or ""), str(event.get("status") or "")
            if status not in _UNLOGGED_STATUSES and statuses.get(layer) != status:
                statuses[layer] = status
                log(f"{layer}: {status}\n" if layer else f"{status}\n")

        await self._read_stream(start, read)
        return digest

    async def commit(self, container_id: str, changes: Iterable[str]) -> str:
        """Make an image of a container; return its id."""
        made = await self._call(lambda client: client.commit(container_id, changes=list(changes)))
        return str(made["Id"])

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

    async def _read_stream(self, start: Callable[[Any], CancellableStream], on_item: Callable[[Any], None]) -> None:
        """Hand over what a stream of the engine brings; close it when the caller is cancelled, or an item fails."""
        opened: list[CancellableStream] = []

        def read(client: Any) -> None:
            stream = start(client)
            opened.append(stream)
            try:
                for item in stream:
                    on_item(item)
            except BaseException:
                with suppress(Exception):  # It may have ended by itself just now.
                    stream.close()
                raise

        task = asyncio.ensure_future(self._call(read, abandon_on_cancel=True))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            for stream in opened:
                with suppress(Exception):  # The same.
                    await asyncio.to_thread(stream.close)
            task.cancel()
            await asyncio.wait({task})
            raise


class LocalImages(Registry):
    """The images of one engine, as a registry: images that are pushed nowhere are kept there."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def digest_of(self, reference: str) -> str | None:
        image = await self._engine.image(reference)
        return None if image is None else image.reference(reference).rpartition("@")[2]

    async def credentials_for(self, reference: str) -> Credentials | None:
        return None


def _push_error(name: str, reason: str) -> RegistryError:
    if REFUSED.search(reason):
        return PushRefusedError(f"The registry does not let the image {name!r} be pushed: {clause(reason)}.")
    return RegistryError(f"The image {name!r} could not be pushed: {clause(reason)}.")


def _stored(about: Mapping[str, Any]) -> StoredImage:
    names = (*(about.get("RepoTags") or ()), *(about.get("RepoDigests") or ()))
    return StoredImage(
        id=str(about["Id"]),
        names=tuple(name for name in names if name not in _NAMELESS and not name.endswith(":<none>")),
        size_bytes=int(about["Size"]),
        labels=about.get("Labels") or {},
    )


# Image push: an image of the engine is put into a registry under its final name, and looked up there.

#: Before each further try. The engine itself tries a layer five times.
PAUSES_SECONDS: Final = (2.0, 10.0)


async def push_image(
    engine: BuildEngine,
    registry: Registry,
    name: str,
    log: LineSink,
    *,
    pauses: tuple[float, ...] = PAUSES_SECONDS,
) -> str:
    """Push an image that the engine has under this name.

    Returns:
        The image by its digest there, `repository@sha256:…`.

    Raises:
        RegistryError: when the registry does not accept it, or does not have it afterwards.
        AgentConfigError: when its configured credentials cannot be read.
        InfrastructureError: when the engine fails.
    """
    log(f"Pushing {name}.\n")
    left = iter(pauses)
    while True:
        try:
            return await _push(engine, registry, name, log)
        except PushRefusedError:
            raise
        except RegistryError as error:
            pause = next(left, None)
            if pause is None:
                raise RegistryError(
                    f"{error} It was tried {len(pauses) + 1} times. Look at the registry, its disk and its log; the"
                    " next try continues with the layers that the registry has."
                ) from error
            log(f"{error} Trying again in {pause:g} s.\n")
            await asyncio.sleep(pause)


async def _push(engine: BuildEngine, registry: Registry, name: str, log: LineSink) -> str:
    credentials = await registry.credentials_for(name)
    try:
        digest = await check_pushed(name, registry, await engine.push(name, credentials, log))
    except PushRefusedError as error:
        who = "the user that is configured for it" if credentials else "nobody: no credentials are known here"
        raise PushRefusedError(
            f"{error} It was asked as {who}. Name a DockerRegistryCredentials block of one who may push there under"
            " 'registries' in the config, or use 'docker login'."
        ) from error
    log(f"Pushed {digest}.\n")
    return digest


async def check_pushed(name: str, registry: Registry, pushed: str | None) -> str:
    """Return an image by its digest, if its registry has what was pushed.

    Its tag may be another build's by now, of the same code: the digest is what counts, where it is known.

    Raises:
        RegistryError: when it has not.
    """
    wanted = name if pushed is None else parse_reference(name).at(pushed)
    there = await registry.digest_of(wanted)
    if there is None or (pushed is not None and there != pushed):
        raise RegistryError(
            f"The image {name!r} was pushed as {pushed or 'an unknown digest'}, but its registry has"
            f" {there or 'nothing'} under the name {wanted!r}."
        )
    return parse_reference(name).at(there)
