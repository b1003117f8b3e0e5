"""What is asked of a place that keeps images: is it there, as which digest, and who may read and write it.

`Registry` is the seam: a real registry over HTTP, the Docker Engine's own images, and a twin for tests are behind it.
A reference is an image's name as people write it, `[host[:port]/]repository[:tag][@sha256:…]`. Nothing is built,
pushed or pulled here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Final, NamedTuple

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
