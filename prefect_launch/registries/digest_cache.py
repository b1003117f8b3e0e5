"""Digest cache of one session: what registries answer about images, and which registries do not answer.

Calls that run at the same time share one answer. No answer is kept for the next call, because the tag may move in
between. After no answer or a refusal, a registry or an image is not asked for again for a minute. No error is raised,
since the submitter has not asked for the lookup.
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

#: A registry that did not answer for this long is called silent: nearly all the time that one call may take.
PATIENCE_SECONDS: Final = 0.9
#: How long a silent registry, or a refused image, is not asked again.
PEACE_SECONDS: Final = 60.0

_logger = get_logger("launch.enqueue")


class DigestCache:
    """The answers of registries.

    Args:
        registries: opens the registries, as this machine is configured now. It may import much, and may raise what is
            wrong with the configuration.
    """

    def __init__(self, registries: Callable[[], Registry]) -> None:
        self._registries = registries
        self._answers: dict[str, tuple[float, str | None]] = {}
        self._not_before: dict[str, float] = {}
        self._locks: dict[str, anyio.Lock] = {}

    @property
    def registry(self) -> Registry:
        """The registries, as this machine is configured now."""
        return self._registries()

    def load(self) -> None:
        """Import the code that asks registries: on a busy machine, that takes as long as an answer may take."""
        try:
            self._registries()
        except Exception:
            _logger.debug("No registry can be asked", exc_info=True)

    async def digest_of(self, image: str, seconds: float) -> str | None:
        """Return the digest that an image has now; None when no registry tells it in time."""
        host = parse_reference(image).host
        begun = monotonic()
        asked = None
        if (known := self._known(image, host, begun)) is not None:
            return known[0]
        with anyio.move_on_after(seconds):
            # Calls that ask at the same time wait for the first one's answer.
            async with self._locks.setdefault(host, anyio.Lock()):
                if (known := self._known(image, host, begun)) is not None:
                    return known[0]
                asked = monotonic()
                return await self._ask(image)
        if asked is not None:
            waited = seconds - (asked - begun)
            _logger.debug("The registry %s gave no digest of %s within %.1f s", host, image, waited)
            if waited >= PATIENCE_SECONDS:  # Else it was asked at the end of the call's time, and had no fair chance.
                self._not_before[host] = monotonic() + PEACE_SECONDS
        return None

    def _known(self, image: str, host: str, begun: float) -> tuple[str | None] | None:
        """Return the answer for a call that began at that time; `None` when the registry must be asked."""
        now = monotonic()
        if now < max(self._not_before.get(image, 0.0), self._not_before.get(host, 0.0)):
            return (None,)
        answered, digest = self._answers.get(image, (-1.0, None))
        return (digest,) if begun < answered else None

    async def _ask(self, image: str) -> str | None:
        digest = None
        try:
            digest = await self.registry.digest_of(image)
        except Exception:
            _logger.debug("No digest of the image %s", image, exc_info=True)
            self._not_before[image] = monotonic() + PEACE_SECONDS
        self._answers[image] = monotonic(), digest
        return digest
