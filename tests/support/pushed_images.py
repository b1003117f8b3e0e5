"""Images that tests put into a registry under a name, and how they are told apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine


def noise_of(engine: DockerEngine, image: str) -> str:
    """What tells the images of the fixture `image_in` apart: what `sha256sum /noise` prints in one."""
    client = engine.client()
    try:
        return str(client.containers.run(image, ["sha256sum", "/noise"], remove=True).decode().strip())
    finally:
        client.close()


def push(engine: DockerEngine, image: str, name: str) -> str:
    """Put an image of this machine into a registry under a name; return its digest there."""
    client = engine.client()
    try:
        client.images.get(image).tag(name)
        answer = client.images.push(name)
        assert "errorDetail" not in answer, answer
        repository = name.rpartition(":")[0]
        digests = client.images.get(name).attrs["RepoDigests"]
        return next(str(digest).partition("@")[2] for digest in digests if digest.startswith(f"{repository}@"))
    finally:
        client.close()


def give_name(engine: DockerEngine, image: str, name: str) -> None:
    """Give an image of this machine a name here alone, as one has that was loaded from a file."""
    client = engine.client()
    try:
        client.images.get(image).tag(name)
    finally:
        client.close()


def forget(engine: DockerEngine, *images: str) -> None:
    """Take images off the machine, whatever they are called."""
    client = engine.client()
    try:
        for image in images:
            client.images.remove(client.images.get(image).id, force=True)
    finally:
        client.close()
