"""Which image a name means, by its digest, before an agent has it.

A tag can be moved while an item waits, so the digest that it meant when the item was queued is in the item's spec, when
it can be had then: for an image whose name has its registry's address in it, unless the item or its queue wants none
(`docker.pin: false`). It is looked up from the machine that queues, in a second; a registry that does not tell, or is
out of its sight, keeps nobody from queuing: then an agent sees the digest at the start. An item or a queue that asks
for it (`docker.pin: true`) has it looked up for any image, with a warning when it cannot be had, and nothing else is
run; without that, whatever has the name at the start will do where the digest cannot be had.
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

#: For an image whose digest was asked for: whoever queues an item waits for it.
SECONDS: Final = 2.0
#: For all images of one call whose digests nobody has asked for.
UNASKED_SECONDS: Final = 1.0

_logger = get_logger("launch.enqueue")


def digest_in(image: str) -> str | None:
    """Return the digest that an image's name has in it; `None` when it has none."""
    return image.partition("@")[2] or None


def at_digest(image: str, digest: str | None) -> str:
    """Return an image's name with a digest in the place of its tag; as it is when it has its own, or none is known."""
    if digest is None or digest_in(image):
        return image
    name, colon, tag = image.rpartition(":")
    return f"{image if not colon or '/' in tag else name}@{digest}"


def image_to_run(image: str, docker: DockerSource) -> str:
    """Return the name of the image that must be run: by its digest, if somebody wants just that one."""
    return image if _is_unasked(docker) else at_digest(image, docker.digest)


def resolved_image(image: str, docker: DockerSource) -> str | None:
    """Return an image by the digest that was looked up unasked: run where it can be had. `None`: there is none."""
    return at_digest(image, docker.digest) if image and _is_unasked(docker) and not digest_in(image) else None


def _is_unasked(docker: DockerSource) -> bool:
    return docker.resolved and docker.digest is not None and not docker.pin


class Digests:
    """The digests of the images of one call: each is looked up once, however many items want it.

    Args:
        seen: by the session that the call is made with.
    """

    def __init__(self, seen: DigestCache) -> None:
        self._seen = seen
        self._known: dict[str, str | None] = {}
        self._unasked: dict[str, str | None] = {}
        self._seconds_left = UNASKED_SECONDS

    async def asked_for(self, image: str) -> str | None:
        """Return the digest of an image that is to be pinned, as its registry tells it now; warn when it does not."""
        if image not in self._known:
            self._known[image] = digest_in(image) or await self._ask(image)
        return self._known[image]

    async def unasked(self, image: str) -> str | None:
        """Return the digest of an image if its registry tells it in the time that is left."""
        if image not in self._unasked:
            self._seen.load()
            begun = time.monotonic()
            self._unasked[image] = await self._seen.digest_of(image, self._seconds_left)
            self._seconds_left = max(0.0, self._seconds_left - (time.monotonic() - begun))
        return self._unasked[image]

    async def _ask(self, image: str) -> str | None:
        reason = f"its registry gave no answer within {SECONDS:g} s"
        digest, registry = None, self._seen.registry
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
    """Return a spec with the digest of its image in it, when that is wanted and its registry tells in time.

    Args:
        spec: what is asked for.
        job: that it names.
        digests: of the call.
        by_queue: what the queue says of `docker.pin`; what the spec itself says wins.
    """
    image = spec.image or (job.image if job is not None else None)
    if spec.docker.resolved:
        # Copied from an older item: nobody has asked for that one, and the tag may mean another by now.
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
