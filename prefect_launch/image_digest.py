"""Which image a name means, by its digest, before an agent has it."""

from __future__ import annotations


async def resolve_digest(image: str) -> str | None:
    """Return the digest of an image; `None` when only an agent can tell, at the start.

    A name that has its digest in it needs nobody to be asked. No registry is asked here.
    """
    _, at, digest = image.partition("@")
    return digest if at else None
