"""Log of a Kubernetes run: every container of every pod, followed, and read on from a position after a break.

A position has a mark for each container (`log_marks`). A run of one container has its lines as they are; where there
are several, each line begins with its pod and container.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from contextlib import aclosing
from typing import Any, Final, NamedTuple

from prefect_launch.errors import UnreachableError
from prefect_launch.runners.remote.jobs import LogPart
from prefect_launch.runners.remote.kubernetes.client import KubernetesClient, Object, lines
from prefect_launch.runners.remote.kubernetes.errors import NotReadyError, NotThereError
from prefect_launch.runners.remote.kubernetes.log_marks import END, LogMark
from prefect_launch.runners.remote.kubernetes.watch import PODS, SeenRun

#: A stream of a silent job is opened anew after this time: nothing else tells that a connection is dead.
_SILENCE_SECONDS: Final = 300.0
#: How long a stream may stay open, silent, once its container has ended.
_END_SECONDS: Final = 5.0
#: The pause before a stream is opened anew that ended while its container runs.
_AGAIN_SECONDS: Final = 0.2
#: How many pieces wait to be written before the streams are read no further, and how many are written at a time.
_WAITING: Final = 8
#: A line that is longer comes in parts: a progress bar, or binary data, may have no end of a line for hours.
_PART_BYTES: Final = 64 * 1024


class Container(NamedTuple):
    """A container whose log is to be read.

    Attributes:
        pod: its pod's name.
        name: its own.
        uid: of its pod.
        restarts: which time it runs in its pod, from 0.
        has_ended: whether it writes no more.
        prefix: that its lines get.
    """

    pod: str
    name: str
    uid: str
    restarts: int
    has_ended: bool
    prefix: bytes

    @property
    def key(self) -> str:
        """Names it in a position."""
        return f"{self.uid}/{self.name}/{self.restarts}"


class RunLog:
    """The log of one run.

    Args:
        client: of the cluster.
        namespace: of the run.
        run: as the watch sees it.
        after: the position to continue from; None for the beginning.
        containers: returns the containers of the run that have written something, or may write now.
        has_ended: whether the run has ended, so that no container comes any more.
    """

    def __init__(
        self,
        client: KubernetesClient,
        namespace: str,
        run: SeenRun,
        after: str | None,
        *,
        containers: Callable[[], list[Container]],
        has_ended: Callable[[], bool],
    ) -> None:
        self._client, self._namespace, self._run = client, namespace, run
        self._containers, self._has_ended = containers, has_ended
        self._marks = {key: LogMark(kept) for key, kept in (json.loads(after) if after else {}).items()}
        self._pieces: asyncio.Queue[tuple[Container, list[bytes]]] = asyncio.Queue(_WAITING)

    async def read(self) -> AsyncIterator[LogPart]:
        """Yield what is new, until the run has ended and all of it was read."""
        readers: dict[str, asyncio.Task[None]] = {}
        getting: asyncio.Task[tuple[Container, list[bytes]]] | None = None
        changing: asyncio.Task[bool] | None = None
        try:
            while True:
                self._run.changed.clear()
                is_last = self._has_ended()
                for one in self._containers():
                    if one.key not in readers:
                        readers[one.key] = asyncio.create_task(self._read_one(one))
                if is_last and all(task.done() for task in readers.values()) and self._pieces.empty():
                    break
                getting = getting or asyncio.create_task(self._pieces.get())
                changing = changing or asyncio.create_task(self._run.changed.wait())
                running = [task for task in readers.values() if not task.done()]
                await asyncio.wait({getting, changing, *running}, return_when=asyncio.FIRST_COMPLETED)
                if changing.done():
                    changing = None
                if getting.done():
                    pieces = [getting.result()]
                    getting = None
                    while not self._pieces.empty():
                        pieces.append(self._pieces.get_nowait())
                    if part := self._part(pieces):
                        yield part
                    for _ in pieces:
                        self._pieces.task_done()
                elif failed := [task for task in readers.values() if task.done() and task.exception() is not None]:
                    await failed[0]
            for task in readers.values():
                await task
        finally:
            tasks: list[asyncio.Task[Any]] = [*readers.values(), *filter(None, (getting, changing))]
            for open_task in tasks:
                open_task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _part(self, pieces: Collection[tuple[Container, list[bytes]]]) -> LogPart | None:
        """Return what is new of pieces of the containers' logs, with the position after them; None: nothing is."""
        content = bytearray()
        for container, found in pieces:
            mark = self._marks[container.key]
            for piece in found:
                if new := mark.take(piece):
                    content += (container.prefix if not content or content.endswith(b"\n") else b"") + new
            if container.prefix and content and not content.endswith(b"\n"):
                # The line of another container follows.
                content += b"\n"
        if not content:
            return None
        return LogPart(bytes(content), json.dumps({key: one.value for key, one in self._marks.items()}))

    async def _read_one(self, container: Container) -> None:
        """Put the lines of one container into the queue until it has ended."""
        mark = self._marks.setdefault(container.key, LogMark())
        while True:
            is_last = self._is_over(container)
            await self._pieces.join()  # The mark is only right once all lines before are taken.
            mark.rewind()
            try:
                await self._follow(container, mark, follow=not is_last)
            except NotThereError:
                return  # The pod is gone, and its log with it.
            except NotReadyError:
                if is_last:
                    return
                pass
            if is_last:
                return
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _follow(self, container: Container, mark: LogMark, *, follow: bool) -> None:
        query: dict[str, str | int] = {"container": container.name, "timestamps": "true"}
        if follow:
            query["follow"] = "true"
        if any(
            one.uid == container.uid and one.name == container.name and one.restarts == container.restarts + 1
            for one in self._containers()
        ):
            query["previous"] = "true"
        if mark.since:
            query["sinceTime"] = mark.since
        path = PODS.path(self._namespace, container.pod) + "/log"
        what = f"read the log of the pod {container.pod}"
        async with (
            self._client.stream(path, query, idle_seconds=_SILENCE_SECONDS, what=what) as pieces,
            aclosing(_joined(lines(pieces, _PART_BYTES))) as batches,
        ):
            while True:
                next_batch = asyncio.ensure_future(anext(batches, None))
                try:
                    while not next_batch.done():
                        await asyncio.wait({next_batch}, timeout=_END_SECONDS)
                        if not next_batch.done() and follow and self._is_over(container):
                            return  # Its end was missed: what is left is read at once.
                    batch = next_batch.result()
                except UnreachableError:
                    if follow:
                        return  # It was cut: continue from the mark.
                    raise
                finally:
                    if not next_batch.done():
                        next_batch.cancel()
                        await asyncio.wait({next_batch})
                if batch is None:
                    if not follow:
                        await self._pieces.put((container, [END]))
                    return
                await self._pieces.put((container, batch))

    def _is_over(self, container: Container) -> bool:
        now = {one.key: one for one in self._containers()}.get(container.key)
        return now is None or now.has_ended or self._has_ended()


async def _joined(batches: AsyncIterator[Any]) -> AsyncGenerator[list[bytes], None]:
    async for batch in batches:
        yield list(batch)


def containers_of(pods: Collection[Object], *, is_one: bool) -> list[Container]:
    """Return the containers of pods whose logs can be read.

    Args:
        pods: the existing ones, the oldest first.
        is_one: whether the run has one pod and one container that runs the job, whose lines get no prefix.
    """
    found = []
    for pod in pods:
        metadata, status = pod["metadata"], pod.get("status") or {}
        for kind in ("initContainerStatuses", "containerStatuses"):
            for one in status.get(kind) or ():
                state = one.get("state") or {}
                if not ("running" in state or "terminated" in state):
                    continue
                is_main = kind == "containerStatuses"
                label = one["name"] if is_one else f"{metadata['name']} {one['name']}"
                prefix = b"" if is_one and is_main else f"[{label}] ".encode()
                found.append(
                    Container(
                        pod=metadata["name"],
                        name=one["name"],
                        uid=metadata["uid"],
                        restarts=int(one.get("restartCount") or 0),
                        # A pod whose node was taken away says nothing more of its containers.
                        has_ended="terminated" in state or status.get("phase") in ("Succeeded", "Failed"),
                        prefix=prefix,
                    )
                )
    return found
