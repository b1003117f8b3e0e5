"""Pushing to a real registry, asking it, and pulling from it; and a registry or a line that fails meanwhile."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prefect_docker.credentials import DockerRegistryCredentials
from pydantic import SecretStr

from prefect_launch.builds.build_engine import BuildEngine, PushRefusedError, push_image
from prefect_launch.errors import AgentConfigError, ImagePullError, RegistryError
from prefect_launch.registries.base import Credentials
from prefect_launch.registries.client import RemoteRegistries
from prefect_launch.registries.keychain import Keychain, read_registries
from tests.support.bad_line import BadLine
from tests.support.docker_engine import DockerEngine
from tests.support.docker_registry import PASSWORD, USER, DockerRegistry

pytestmark = pytest.mark.engine

ImageIn = Callable[[str], str]
#: Well inside the one large layer of the image.
MID_PUSH_BYTES = 600_000
_TLS_HELLO = b"\x16"


def log_in(folder: Path, host: str, password: str = PASSWORD) -> None:
    auth = base64.b64encode(f"{USER}:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}}))


@asynccontextmanager
async def failing_registry(status: int) -> AsyncIterator[tuple[str, list[str]]]:
    """A registry that answers everything so; gives its address, and what it was asked."""
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.read(1)
        if head == _TLS_HELLO:  # It has no TLS, as a client that begins with it must see.
            writer.close()
            return
        head += await reader.readuntil(b"\r\n\r\n")
        asked.append(head.split(b" HTTP/")[0].decode(errors="replace"))
        writer.write(f"HTTP/1.1 {status} Word\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


def forget(engine: DockerEngine, image: str) -> None:
    """Take an image off the machine."""
    client = engine.client()
    try:
        for found in client.images.list(image.partition("@")[0].rpartition(":")[0]):
            client.images.remove(found.id, force=True)
    finally:
        client.close()


async def test_pushed_image_is_pulled_again_by_its_digest(
    engine: DockerEngine, push_engine: BuildEngine, open_registry: DockerRegistry, image_in: ImageIn
) -> None:
    name, registries, lines = image_in(open_registry.host), RemoteRegistries(), list[str]()
    assert await registries.digest_of(name) is None

    pinned = await push_image(push_engine, registries, name, lines.append)

    repository, _, digest = pinned.partition("@")
    assert name == f"{repository}:1"
    assert await registries.digest_of(name) == await registries.digest_of(pinned) == digest
    assert any("Pushed" in line for line in lines)
    forget(engine, name)
    assert await push_engine.image(pinned) is None
    await push_engine.pull(pinned)
    image = await push_engine.image(pinned)
    assert image is not None
    assert pinned in image.digests


async def test_same_image_pushed_again_has_the_same_digest(
    push_engine: BuildEngine, open_registry: DockerRegistry, image_in: ImageIn
) -> None:
    name, registries = image_in(open_registry.host), RemoteRegistries()

    first = await push_image(push_engine, registries, name, lambda line: None)
    assert await push_image(push_engine, registries, name, lambda line: None) == first


async def test_registry_with_a_password_takes_who_is_logged_in(
    engine: DockerEngine,
    push_engine: BuildEngine,
    closed_registry: DockerRegistry,
    image_in: ImageIn,
    docker_folder: Path,
) -> None:
    name = image_in(closed_registry.host)
    log_in(docker_folder, closed_registry.host)
    registries = RemoteRegistries()

    pinned = await push_image(push_engine, registries, name, lambda line: None)

    forget(engine, name)
    await push_engine.pull(pinned, credentials=await registries.credentials_for(pinned))
    assert await push_engine.image(pinned) is not None


async def test_push_without_credentials_is_refused_at_once_with_the_next_step(
    push_engine: BuildEngine, closed_registry: DockerRegistry, image_in: ImageIn
) -> None:
    name = image_in(closed_registry.host)

    with pytest.raises(PushRefusedError, match=r"as nobody.*DockerRegistryCredentials"):
        await asyncio.wait_for(push_image(push_engine, RemoteRegistries(), name, lambda line: None), 20)


async def test_push_and_look_with_a_wrong_password_are_refused(
    push_engine: BuildEngine, closed_registry: DockerRegistry, image_in: ImageIn, docker_folder: Path
) -> None:
    name = image_in(closed_registry.host)
    log_in(docker_folder, closed_registry.host, password="wrong")
    registries = RemoteRegistries()

    with pytest.raises(PushRefusedError, match="as the user that is configured"):
        await push_image(push_engine, registries, name, lambda line: None)
    with pytest.raises(RegistryError, match="refuses the user and password") as caught:
        await registries.digest_of(name)
    assert "wrong:" not in str(caught.value)


async def test_pull_without_credentials_tells_where_to_put_them(
    engine: DockerEngine,
    push_engine: BuildEngine,
    closed_registry: DockerRegistry,
    image_in: ImageIn,
    docker_folder: Path,
) -> None:
    name = image_in(closed_registry.host)
    log_in(docker_folder, closed_registry.host)
    pinned = await push_image(push_engine, RemoteRegistries(), name, lambda line: None)
    forget(engine, name)
    (docker_folder / "config.json").unlink()
    logged_out = BuildEngine()

    with pytest.raises(ImagePullError, match="a block under 'registries'"):
        await logged_out.pull(pinned)
    with pytest.raises(ImagePullError, match="refuses the user and password that are configured"):
        await logged_out.pull(pinned, credentials=Credentials(USER, "wrong"))
    await logged_out.aclose()


async def test_line_that_breaks_during_a_push_costs_a_try_and_no_more(
    push_engine: BuildEngine, open_registry: DockerRegistry, image_in: ImageIn
) -> None:
    async with BadLine(open_registry.port) as line:
        name = image_in(line.host)
        line.cut_after(MID_PUSH_BYTES)

        pinned = await push_image(push_engine, RemoteRegistries(), name, lambda line: None, pauses=(0.5,))

        assert line.reached.is_set()
        assert await RemoteRegistries().digest_of(pinned) == pinned.partition("@")[2]


async def test_push_that_is_cancelled_leaves_nothing_under_the_name_and_the_next_one_works(
    push_engine: BuildEngine, open_registry: DockerRegistry, image_in: ImageIn
) -> None:
    async with BadLine(open_registry.port) as line:
        name, registries = image_in(line.host), RemoteRegistries()
        at_the_registry = name.replace(line.host, open_registry.host)
        line.hold_after(MID_PUSH_BYTES)
        pushing = asyncio.create_task(push_image(push_engine, registries, name, lambda line: None))
        await asyncio.wait_for(line.reached.wait(), 60)

        pushing.cancel()
        await asyncio.wait({pushing}, timeout=60)

        assert pushing.cancelled()
        assert await registries.digest_of(at_the_registry) is None
        line.let_go()
        pinned = await push_image(push_engine, registries, name, lambda line: None)
        assert await registries.digest_of(at_the_registry) == pinned.partition("@")[2]


async def test_error_over_a_registry_that_always_fails_says_so(push_engine: BuildEngine, image_in: ImageIn) -> None:
    async with failing_registry(500) as (host, asked):
        # The engine itself asks five times, which takes it most of a minute.
        with pytest.raises(RegistryError, match="500 Word"):
            await push_image(push_engine, RemoteRegistries(), image_in(host), lambda line: None, pauses=())
        with pytest.raises(RegistryError, match=r"failed \(HTTP 500\), 2 times"):
            await RemoteRegistries(pauses=(0.1,)).digest_of(f"{host}/team/train:1")

    assert asked


async def test_error_over_a_registry_that_is_not_there_says_how_often_it_was_tried(
    push_engine: BuildEngine, image_in: ImageIn
) -> None:
    async with failing_registry(500) as (host, _):
        pass
    name, lines = image_in(host), list[str]()

    with pytest.raises(RegistryError, match=r"connection refused.*It was tried 2 times"):
        await push_image(push_engine, RemoteRegistries(), name, lines.append, pauses=(0.1,))
    with pytest.raises(RegistryError, match="does not answer"):
        await RemoteRegistries(pauses=()).digest_of(name)
    assert any("Trying again" in line for line in lines)


async def test_image_that_is_not_here_cannot_be_pushed(push_engine: BuildEngine, open_registry: DockerRegistry) -> None:
    name = f"{open_registry.host}/team/never-built:1"

    with pytest.raises(RegistryError, match="does not exist"):
        await push_image(push_engine, RemoteRegistries(), name, lambda line: None, pauses=())


@pytest.mark.usefixtures("prefect_server")
async def test_block_made_with_prefect_docker_opens_the_registry(
    push_engine: BuildEngine, closed_registry: DockerRegistry, image_in: ImageIn
) -> None:
    block = DockerRegistryCredentials(username=USER, password=SecretStr(PASSWORD), registry_url=closed_registry.host)
    await block.save("of-the-tests", overwrite=True)
    registries = RemoteRegistries(Keychain(read_registries({closed_registry.host: {"credentials": "of-the-tests"}})))

    name = image_in(closed_registry.host)
    pinned = await push_image(push_engine, registries, name, lambda line: None)

    assert await registries.digest_of(name) == pinned.partition("@")[2]


@pytest.mark.usefixtures("prefect_server")
async def test_error_names_a_block_that_is_missing_or_for_another_registry(closed_registry: DockerRegistry) -> None:
    block = DockerRegistryCredentials(username=USER, password=SecretStr(PASSWORD), registry_url="elsewhere.example")
    await block.save("of-elsewhere", overwrite=True)

    for name, words in (("of-elsewhere", "is for the registry 'elsewhere.example'"), ("of-nobody", "There is no")):
        keychain = Keychain(read_registries({closed_registry.host: {"credentials": name}}))
        with pytest.raises(AgentConfigError, match=words):
            await keychain.credentials_for(closed_registry.host)
