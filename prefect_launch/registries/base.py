"""Registry interface, and names of images.

`Registry` stands for a registry over HTTP, the Docker Engine's own images, or an in-memory fake. Image names are
written `[host[:port]/]repository[:tag][@sha256:…]`. `ubuntu` means `docker.io/library/ubuntu:latest`, as for Docker; a
first part is a registry's address when it has a dot or a port, or is `localhost`. Nothing is built, pushed or pulled
here.
"""

from __future__ import annotations

import ipaddress
import re
from abc import ABC, abstractmethod
from typing import Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from prefect_launch.errors import SpecError
from prefect_launch.spec.code_options import parse_image

#: The user in Docker's own files when the password is a refresh token.
TOKEN_USER: Final = "<token>"
DOCKER_HUB: Final = "docker.io"
#: Docker Hub's names, and the address of its API.
_HUB_NAMES: Final = frozenset({DOCKER_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_HUB_API: Final = "registry-1.docker.io"
_HUB_DEFAULT_NAMESPACE: Final = "library"
_SCHEME: Final = re.compile(r"https?://", re.IGNORECASE)
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}\Z")


class Credentials(NamedTuple):
    """A user and a password (or a token in its place). Its text shows neither."""

    user: str
    password: str

    def __repr__(self) -> str:
        return "Credentials(…)"


class Registry(ABC):
    """A place that keeps images, or several such places behind one interface."""

    @abstractmethod
    async def digest_of(self, reference: str) -> str | None:
        """Return the digest (`sha256:…`) that an image has there now; None when there is no such image.

        Raises:
            RegistryError: when the registry fails, does not answer, or refuses to tell.
            SpecError: when the reference is no image name.
        """

    @abstractmethod
    async def credentials_for(self, reference: str) -> Credentials | None:
        """Return the credentials for the registry of an image; None: anonymous access.

        Raises:
            AgentConfigError: when its configured credentials cannot be read.
        """

    def is_insecure(self, host: str) -> bool:
        """Whether a registry may do without TLS: on the loopback, or where the operator says so."""
        return is_loopback(host)


class ImageReference(BaseModel):
    """The parts of an image's name."""

    model_config = ConfigDict(frozen=True)

    host: str
    repository: str
    tag: str = "latest"
    digest: str | None = None
    #: The name as written, without tag and digest.
    name: str

    @property
    def version(self) -> str:
        """The version in the registry's API: the digest, or else the tag."""
        return self.digest or self.tag

    @property
    def api_host(self) -> str:
        """The address of the registry's API."""
        return _HUB_API if self.host == DOCKER_HUB else self.host

    def at(self, digest: str) -> str:
        """Return the name with a digest in the place of its tag."""
        return f"{self.name}@{digest}"


def parse_reference(text: str) -> ImageReference:
    """Return the parts of an image's name.

    Raises:
        SpecError: when it is no image name.
    """
    name, tag = parse_image(text)
    digest = text.partition("@")[2] or None
    host, repository = _split(name)
    return ImageReference(host=host, repository=repository, tag=tag or "latest", digest=digest, name=name)


def parse_repository(text: str) -> str:
    """Return a repository to push images to, such as `registry.example:5000/team/train`, without its scheme.

    Raises:
        SpecError: when it is no repository, or has a tag or digest: the tag is a digest of what is built.
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
    """Return a registry's address as image names have it: no scheme, no path, one name for Docker Hub."""
    host = _SCHEME.sub("", address.strip(), count=1).partition("/")[0].lower()
    return DOCKER_HUB if host in _HUB_NAMES else host


def is_loopback(host: str) -> bool:
    """Whether an address, with or without a port, is this machine's, where a registry needs no TLS."""
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
    """Whether an image's name begins with its registry's address; if not, it is on Docker Hub, or only local."""
    first, slash, _ = name.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")
