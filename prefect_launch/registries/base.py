"""What is asked of a place that keeps images: is it there, as which digest, and who may read and write it.

`Registry` is the seam: a real registry over HTTP, the Docker Engine's own images, and a twin for tests are behind it.
A reference is an image's name as people write it, `[host[:port]/]repository[:tag][@sha256:…]`. Nothing is built,
pushed or pulled here.
"""

from __future__ import annotations

import ipaddress
import re
from abc import ABC, abstractmethod
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from prefect_launch.errors import SpecError
from prefect_launch.spec.job_naming import parse_image

#: The user that Docker's own files write when the password is a token that asks for further ones.
TOKEN_USER: Final = "<token>"


class Credentials(NamedTuple):
    """A user and a password (or a token in its place). Its text shows neither."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "Credentials(…)"


class Registry(ABC):
    """One place that keeps images, or several that look like one."""

    @abstractmethod
    async def digest_of(self, reference: str) -> str | None:
        """Return the digest (`sha256:…`) that an image has there now; None when there is no such image.

        Raises:
            RegistryError: when the registry fails, does not answer, or refuses to say.
            SpecError: when the reference is none.
        """

    @abstractmethod
    async def credentials_for(self, reference: str) -> Credentials | None:
        """Return who to be at the registry of an image; None: nobody in particular.

        Raises:
            AgentConfigError: when the credentials that are configured for it cannot be had.
        """


# The name of an image, taken apart: which registry, which repository there, which tag or digest.

DOCKER_HUB: Final = "docker.io"
#: Docker Hub's names among people, and where its API answers.
_HUB_NAMES: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_HUB_API: Final = "registry-1.docker.io"
_HUB_DEFAULT_NAMESPACE: Final = "library"
_SCHEME: Final = re.compile(r"https?://", re.IGNORECASE)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")


class ImageReference(BaseModel):
    """One image's name."""

    model_config = ConfigDict(frozen=True)

    host: str
    repository: str
    tag: str = "latest"
    digest: str | None = None
    #: The name as it was written, without tag and digest.
    name: str

    @property
    def version(self) -> str:
        """What names the version in the registry's API: its digest, or else its tag."""
        return self.digest or self.tag

    @property
    def api_host(self) -> str:
        """Where the registry's API answers."""
        return _HUB_API if self.host == DOCKER_HUB else self.host

    def at(self, digest: str) -> str:
        """Return the name that means this very digest for ever."""
        return f"{self.name}@{digest}"


def parse_reference(text: str) -> ImageReference:
    """Take an image's name apart.

    Raises:
        SpecError: when it is none.
    """
    name, tag = parse_image(text)
    digest = text.partition("@")[2] or None
    host, repository = _split(name)
    return ImageReference(host=host, repository=repository, tag=tag or "latest", digest=digest, name=name)


def parse_repository(text: str) -> str:
    """Return the repository that images are to be pushed to, without a scheme.

    Args:
        text: such as `registry.example:5000/team/train`.

    Raises:
        SpecError: when it is none, or has a tag or digest: the tag is made of what is built.
    """
    repository = _SCHEME.sub("", text.strip(), count=1).rstrip("/")
    if repository.count("/") == 0 and (":" in repository or "." in repository):
        raise SpecError(
            f"The repository {text!r} names a registry and no repository there. Write such as '{repository}/train'."
        )
    name, tag = parse_image(repository)
    if tag is not None or "@" in repository:
        raise SpecError(
            f"The repository {text!r} for built images may not have a tag or digest: the tag is made of what is built."
            f" Write {name!r}."
        )
    if not has_registry(name):
        example = f"registry.example:5000/{name}"
        raise SpecError(
            f"The repository {text!r} names no registry, so it is not clear where the image goes. Write it with the"
            f" registry's address, such as {example!r}, or 'docker.io/USER/{name.rpartition('/')[2]}'."
        )
    return name


def normal_host(address: str) -> str:
    """Return a registry's address as images are named by it: no scheme, no path, and one name for Docker Hub."""
    host = _SCHEME.sub("", address.strip(), count=1).partition("/")[0].lower()
    return DOCKER_HUB if host in _HUB_NAMES else host


def is_loopback(host: str) -> bool:
    """Whether an address, with or without a port, is this machine itself, where a registry needs no TLS."""
    name = host.rpartition(":")[0] or host
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def is_digest(text: object) -> bool:
    """Whether a text is an image's digest, as registries write it."""
    return isinstance(text, str) and _DIGEST.match(text) is not None


def _split(name: str) -> tuple[str, str]:
    if has_registry(name):
        first, _, rest = name.partition("/")
        host, repository = normal_host(first), rest
    else:
        host, repository = DOCKER_HUB, name
    if host == DOCKER_HUB and "/" not in repository:
        repository = f"{_HUB_DEFAULT_NAMESPACE}/{repository}"
    return host, repository


def has_registry(name: str) -> bool:
    """Whether an image's name begins with its registry's address; without one, it is Docker Hub's, or only local."""
    first, slash, _ = name.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")
