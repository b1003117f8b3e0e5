"""Problems of single places of a cluster, each logged once: what is wrong in one namespace stops no other."""

from __future__ import annotations

import logging

from prefect_launch.errors import LaunchError
from prefect_launch.runners.remote.kubernetes.handles import Place

log = logging.getLogger(__name__)


class PlaceProblems:
    """The places that cannot be looked at now."""

    def __init__(self) -> None:
        self._known: set[Place] = set()

    def note(self, place: Place, error: LaunchError) -> None:
        """Log why a place cannot be looked at, unless that is known."""
        if place not in self._known:
            self._known.add(place)
            log.warning("cannot see the %s: %s Their runs count as running.", _described(place), error)

    def clear(self, place: Place) -> None:
        """Note that a place can be looked at."""
        if place in self._known:
            self._known.remove(place)
            log.info("the %s can be seen again", _described(place))


def _described(place: Place) -> str:
    context = f" (context {place.context})" if place.context else ""
    return f"{place.resource.plural} of the namespace {place.namespace}{context}"
