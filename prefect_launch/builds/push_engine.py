"""Pushing an image with the Docker Engine. A push ends when its caller is cancelled; nothing else would end it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar

import docker.auth
import docker.errors
import docker.utils
from docker.types import CancellableStream

from prefect_launch.errors import RegistryError, clause
from prefect_launch.registries.base import Credentials
from prefect_launch.registries.reference import is_digest
from prefect_launch.runners.docker.client import DockerEngine
from prefect_launch.runners.docker.pull import REFUSED, engine_auth

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
