"""Which image a name means, by its digest, before an agent has it.

A tag can be moved while an item waits. When the item or its queue asks for it (`docker.pin`), the digest that the tag
meant when it was queued is in its spec, and that is run. It is looked up from the machine that queues, within two
seconds; a registry that does not tell, or is out of its sight, keeps nobody from queuing: then an agent sees the digest
at the start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import anyio
from prefect.logging import get_logger

from prefect_launch.builds.registries.keychain import Keychain
from prefect_launch.builds.registries.remote import RemoteRegistries
from prefect_launch.errors import LaunchError
from prefect_launch.spec import LaunchSpec

if TYPE_CHECKING:
    from prefect_launch.builds.registries.base import Registry
    from prefect_launch.jobs.model import Job

#: In all: whoever queues an item waits for it.
SECONDS: Final = 2.0

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


#: The digests that were looked up for one call, or were not to be had.
Digests = dict[str, "str | None"]


async def with_digest(
    spec: LaunchSpec,
    job: Job | None,
    known: Digests | None = None,
    registry: Registry | None = None,
    *,
    by_queue: bool = False,
) -> LaunchSpec:
    """Return a spec with the digest of its image in it, when that is asked for and its registry tells in time.

    Args:
        spec: what is asked for.
        job: that it names.
        known: of earlier specs of the same call: a registry is asked once for an image, however many items want it.
        registry: the registries; by default all, as this machine is logged in.
        by_queue: whether the queue asks for it; what the spec itself says wins.
    """
    image = spec.image or (job.image if job is not None else None)
    is_asked = by_queue if spec.docker.pin is None else spec.docker.pin
    if not is_asked or spec.docker.digest or not image:
        return spec
    known = {} if known is None else known
    if image not in known:
        known[image] = digest_in(image) or await _ask(image, registry or RemoteRegistries(_this_machine(), pauses=()))
    docker = spec.docker.model_copy(update={"pin": True, "digest": known[image]})
    return spec.model_copy(update={"docker": docker})


def _this_machine() -> Keychain:
    from prefect_launch.agent.config import resolve_agent_config

    return resolve_agent_config().keychain


async def _ask(image: str, registry: Registry) -> str | None:
    reason = f"its registry gave no answer within {SECONDS:g} s"
    digest = None
    with anyio.move_on_after(SECONDS):
        try:
            digest = await registry.digest_of(image)
            reason = "its registry has no such image"
        except LaunchError as error:
            reason = str(error)
    if digest is None:
        _logger.warning("The image %s is queued without its digest: %s", image, reason)
    return digest
