"""Image pinning: the digest that an image's name has when an item is queued, and the image that runs.

A tag can be moved while an item waits. So the item's spec holds the digest that the tag had when the item was queued,
if the image's name has its registry's address in it, unless the item or its queue says no (`docker.pin: false`). The
submitter's machine looks it up, within a second. If the registry does not answer, the item is queued all the same: an
agent then looks the digest up at the start, and runs the image that has the name. With `docker.pin: true` every image
is looked up, a warning says when the digest is missing, and no other image runs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import anyio
from prefect.logging import get_logger

from prefect_launch.errors import LaunchError
from prefect_launch.registries.base import has_registry
from prefect_launch.registries.digest_cache import DigestCache
from prefect_launch.spec.launch_spec import DockerSource, LaunchSpec

if TYPE_CHECKING:
    from prefect_launch.jobs.model import Job

#: Time limit for an image that is to be pinned.
SECONDS: Final = 2.0
#: Time limit for all other images of one call.
UNASKED_SECONDS: Final = 1.0

_logger = get_logger("launch.enqueue")


def digest_in(image: str) -> str | None:
    """Return the digest in an image's name; `None` when it has none."""
    return image.partition("@")[2] or None


def at_digest(image: str, digest: str | None) -> str:
    """Return an image's name with a digest in the place of its tag; unchanged when it has one, or none is known."""
    if digest is None or digest_in(image):
        return image
    name, colon, tag = image.rpartition(":")
    return f"{image if not colon or '/' in tag else name}@{digest}"


def image_to_run(image: str, docker: DockerSource) -> str:
    """Return the name of the image that must run: with its digest when it is pinned."""
    return image if _is_unasked(docker) else at_digest(image, docker.digest)


def resolved_image(image: str, docker: DockerSource) -> str | None:
    """Return an image that is not pinned with the digest that it had when it was queued; `None` when none is known.

    It runs where it can be pulled.
    """
    return at_digest(image, docker.digest) if image and _is_unasked(docker) and not digest_in(image) else None


def _is_unasked(docker: DockerSource) -> bool:
    return docker.resolved and docker.digest is not None and not docker.pin


class Digests:
    """The digests of the images of one call: each is looked up once, however many items use it."""

    def __init__(self, cache: DigestCache) -> None:
        self._cache = cache
        self._known: dict[str, str | None] = {}
        self._unasked: dict[str, str | None] = {}
        self._seconds_left = UNASKED_SECONDS

    async def asked_for(self, image: str) -> str | None:
        """Return the digest of an image that is to be pinned; warn when its registry does not tell it."""
        if image not in self._known:
            self._known[image] = digest_in(image) or await self._ask(image)
        return self._known[image]

    async def unasked(self, image: str) -> str | None:
        """Return the digest of an image if its registry tells it in the rest of the call's time."""
        if image not in self._unasked:
            self._cache.load()
            begun = time.monotonic()
            self._unasked[image] = await self._cache.digest_of(image, self._seconds_left)
            self._seconds_left = max(0.0, self._seconds_left - (time.monotonic() - begun))
        return self._unasked[image]

    async def _ask(self, image: str) -> str | None:
        reason = f"its registry gave no answer within {SECONDS:g} s"
        digest, registry = None, self._cache.registry
        with anyio.move_on_after(SECONDS):
            try:
                digest = await registry.digest_of(image)
                reason = "its registry has no such image"
            except LaunchError as error:
                reason = str(error)
        if digest is None:
            _logger.warning("The image %s is queued without its digest: %s", image, reason)
        return digest


async def with_digest(
    spec: LaunchSpec, job: Job | None, digests: Digests, *, by_queue: bool | None = None
) -> LaunchSpec:
    """Return a spec with the digest of its image, if it is wanted and the registry answers in time."""
    image = spec.image or (job.image if job is not None else None)
    if spec.docker.resolved:
        # Copied from an older item: nobody has pinned it, and the tag may have another digest by now.
        spec = _changed(spec, digest=None, resolved=False)
    pin = by_queue if spec.docker.pin is None else spec.docker.pin
    if spec.docker.digest or not image or pin is False:
        return spec
    if pin:
        return _changed(spec, pin=True, digest=await digests.asked_for(image))
    digest = await digests.unasked(image) if has_registry(image) and not digest_in(image) else None
    return spec if digest is None else _changed(spec, digest=digest, resolved=True)


def _changed(spec: LaunchSpec, **docker: object) -> LaunchSpec:
    return spec.model_copy(update={"docker": spec.docker.model_copy(update=docker)})
