"""Events of Kubernetes runs that wait without a word: of their objects, and of a pod that has not started.

They are read seldom, and less and less often. An agent need not have the right to read them: then the reason stays
unknown.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from prefect_launch.core.backoff import Backoff
from prefect_launch.errors import LaunchError
from prefect_launch.runners.remote.kubernetes.client import KubernetesClient, Object
from prefect_launch.runners.remote.kubernetes.handles import KubernetesHandle

#: How long a run waits without a reason before its events are read; then twice as long …
_FIRST_SECONDS: Final = 5.0
_MOST_SECONDS: Final = 60.0


class _Known(NamedTuple):
    due: float
    pauses: Backoff
    events: list[Object]


class RunEvents:
    """What the events of runs have said.

    Args:
        client: returns the connection to the cluster of a context.
    """

    def __init__(self, client: Callable[[str], KubernetesClient]) -> None:
        self._client = client
        self._known: dict[KubernetesHandle, _Known] = {}

    async def of(self, handle: KubernetesHandle, pods: Collection[Object]) -> list[Object]:
        """Return the events of a run's object and of some of its pods, oldest first; as they were read last."""
        now = time.monotonic()
        known = self._known.get(handle)
        if known is None:
            pauses = Backoff(_FIRST_SECONDS, _MOST_SECONDS)
            known = self._known[handle] = _Known(now + pauses.next(), pauses, [])
        if now < known.due:
            return known.events
        # At once: others that ask meanwhile get what is known.
        self._known[handle] = known._replace(due=now + known.pauses.next())
        found = await asyncio.gather(
            *(self._of_one(handle, uid) for uid in (handle.uid, *(pod["metadata"]["uid"] for pod in pods)))
        )
        events = sorted((event for one in found for event in one), key=_time)
        if handle in self._known:
            self._known[handle] = self._known[handle]._replace(events=events)
        return events

    def forget(self, handle: KubernetesHandle) -> None:
        """Forget a run."""
        self._known.pop(handle, None)

    async def _of_one(self, handle: KubernetesHandle, uid: str) -> list[Object]:
        path = f"/api/v1/namespaces/{handle.place.namespace}/events"
        query = {"fieldSelector": f"involvedObject.uid={uid}"}
        try:
            found = await self._client(handle.place.context).list(path, query, what="list events")
        except LaunchError:
            return []
        items: list[Object] = found["items"]
        return items


def _time(event: Object) -> str:
    """Return when an event was seen last; newer servers say it in other fields."""
    series = event.get("series") or {}
    times = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"))
    return max((str(one) for one in times if one), default="")
