"""What registries tell about images, for one session.

Calls that ask at the same time share one answer, but none is kept for the next call: the tag may have been moved in
between. A registry that gives no answer is left in peace for a while. Asking is never a fault: who queues an item has
not asked for this, and must not be kept from it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

import anyio
from prefect.logging import get_logger

from prefect_launch.registries.base import parse_reference

if TYPE_CHECKING:
    from prefect_launch.registries.base import Registry

#: For how long a registry must have been waited for to be called silent: nearly all that a call may take.
PATIENCE_SECONDS: Final = 0.9
#: For an image that a registry refused to tell about, and a registry that did not answer.
PEACE_SECONDS: Final = 60.0

_logger = get_logger("launch.enqueue")


class DigestCache:
    """What registries tell, and which of them do not.

    Args:
        registries: opens them, as this machine is configured now. It may import much, and may raise what is wrong with
            the configuration.
    """

    def __init__(self, registries: Callable[[], Registry]) -> None:
        self._registries = registries
        self._told: dict[str, tuple[float, str | None]] = {}
        self._silent: dict[str, float] = {}
        self._asking: dict[str, anyio.Lock] = {}

    @property
    def registry(self) -> Registry:
        """Who is asked, as this machine is configured now."""
        return self._registries()

    def load(self) -> None:
        """Load the code that asking needs: on a busy machine, that takes as long as an answer may take."""
        try:
            self._registries()
        except Exception:
            # What is wrong with the configuration of registries is not the item's fault.
            _logger.debug("No registry can be asked", exc_info=True)

    async def digest_of(self, image: str, seconds: float) -> str | None:
        """Return the digest that an image has now; None when it cannot be told in time.

        Args:
            image: a name with its registry's address.
            seconds: for how long to wait.
        """
        host = parse_reference(image).host
        begun = monotonic()
        asked = None
        # What is known costs no time, and waits for nobody.
        if (known := self._known(image, host, begun)) is not None:
            return known[0]
        with anyio.move_on_after(seconds):
            # Those who ask at the same time wait for the first one's answer.
            async with self._asking.setdefault(host, anyio.Lock()):
                if (known := self._known(image, host, begun)) is not None:
                    return known[0]
                asked = monotonic()
                return await self._ask(image)
        if asked is not None:
            waited = seconds - (asked - begun)
            _logger.debug("The registry %s gave no digest of %s within %.1f s", host, image, waited)
            # One that was asked at the end of a call's time had no fair chance.
            if waited >= PATIENCE_SECONDS:
                self._silent[host] = monotonic() + PEACE_SECONDS
        return None

    def _known(self, image: str, host: str, begun: float) -> tuple[str | None] | None:
        """Return what a call that began at that time can be told unasked; `None`: the registry must be asked."""
        now = monotonic()
        self._told = {known: told for known, told in self._told.items() if now < told[0] + PEACE_SECONDS}
        until, digest = self._told.get(image, (0.0, None))
        if begun < until:
            return (digest,)
        return (None,) if now < self._silent.get(host, 0.0) else None

    async def _ask(self, image: str) -> str | None:
        digest, keep = None, 0.0
        try:
            digest = await self.registry.digest_of(image)
        except Exception:
            # Whatever is wrong with a registry, or with what is configured for it, is not the item's fault.
            _logger.debug("No digest of the image %s", image, exc_info=True)
            keep = PEACE_SECONDS
        self._told[image] = monotonic() + keep, digest
        return digest
