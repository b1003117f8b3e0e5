"""Log of a Kubernetes run: every container of every pod, followed, and read on from a position after a break.

The kubelet keeps a log of each container, whose order never changes, and reads it from a whole second on. So a position
says how many lines from its second on are kept, and the last of their stamps: those are skipped. Where the kubelet has
rotated some of them away meanwhile, a line in the log says so. A run of one container has its lines as they are; where
there are several, each line begins with its pod and container.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping
from contextlib import aclosing
from datetime import datetime, timezone
from typing import Any, Final, NamedTuple

from prefect_launch.errors import UnreachableError
from prefect_launch.runners.remote.jobs import LogPart
from prefect_launch.runners.remote.kubernetes.client import KubernetesClient, Object, lines
from prefect_launch.runners.remote.kubernetes.errors import NotReadyError, NotThereError
from prefect_launch.runners.remote.kubernetes.watch import PODS, SeenRun

#: A stream of a silent job is opened anew after this time: nothing else tells that a connection is dead.
_SILENCE_SECONDS: Final = 300.0
#: How long a stream may stay open, silent, once its container has ended.
_END_SECONDS: Final = 5.0
#: The pause before a stream is opened anew that ended while its container runs.
_AGAIN_SECONDS: Final = 0.2
#: Seconds that are counted apart: lines of the two streams may stand in the log a little out of order.
_WINDOW: Final = 3
#: How many pieces wait to be written before the streams are read no further, and how many are written at a time.
_WAITING: Final = 32
#: The runtime cuts longer lines into pieces of this size.
_PIECE_BYTES: Final = 16 * 1024
_STAMP: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)$")
_INNER_STAMP: Final = re.compile(rb"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d) ")
_LOST: Final = b"[prefect-launch] the node has rotated this log: lines between %s and %s may be lost\n"


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


class LogMark:
    """How far the log of one container is kept.

    Args:
        kept: the `value` of the mark to go on from; None for the beginning.
    """

    def __init__(self, kept: Mapping[str, Any] | None = None) -> None:
        kept = kept or {}
        self._counts: dict[str, int] = dict(kept.get("counts") or {})
        self._last: str = kept.get("last") or ""
        self._open: int | None = kept.get("open")
        self._skip, self._skip_until = 0, ""

    @property
    def value(self) -> dict[str, Any]:
        """The mark as JSON holds it."""
        return {"counts": self._counts, "last": self._last, "open": self._open}

    @property
    def since(self) -> str:
        """The second to read from, as the API takes it; empty for the beginning."""
        first = min(self._counts, default="")
        return f"{first}Z" if first else ""

    def rewind(self) -> None:
        """Begin to read from `since` on: what is kept comes again."""
        self._skip, self._skip_until = sum(self._counts.values()), self._last

    def take(self, line: bytes) -> bytes:
        """Take a line as the kubelet gives it; return what is new of it, without its stamp."""
        stamp, blank, content = line.partition(b" ")
        order = in_order(stamp.decode("ascii", "replace")) if blank else ""
        if not order:
            return b"" if self._skip else line
        content = _whole(content)
        lost = b""
        if self._skip:
            if order <= self._skip_until:
                self._skip -= 1
                return self._rest(content) if not self._skip else b""
            # Kept lines are all up to that stamp, so this one is new, and some of them are there no more.
            lost = _LOST % (self._skip_until.encode(), order.encode())
            self._skip = 0
        second = order[:19]
        if second >= min(self._counts, default=""):
            self._counts[second] = self._counts.get(second, 0) + 1
            if len(self._counts) > _WINDOW:
                del self._counts[min(self._counts)]
        self._last = max(self._last, order)
        self._open = None if content.endswith(b"\n") else len(content)
        return lost + content

    def _rest(self, content: bytes) -> bytes:
        """Return what was written of the last line that is kept after its stream was cut."""
        if self._open is None or len(content) <= self._open:
            return b""
        rest = content[self._open :]
        self._open = None if content.endswith(b"\n") else len(content)
        return rest


class RunLog:
    """The log of one run.

    Args:
        client: of the cluster.
        namespace: of the run.
        run: as the watch sees it.
        after: the position to go on from; None for the beginning.
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
            for line in found:
                if new := mark.take(line):
                    content += container.prefix + new
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
            aclosing(_joined(lines(pieces))) as batches,
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
                        return  # It was cut: go on from the mark.
                    raise
                finally:
                    if not next_batch.done():
                        next_batch.cancel()
                        await asyncio.wait({next_batch})
                if batch is None:
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
        pods: that are there, the oldest first.
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


def in_order(stamp: str) -> str:
    """Return a stamp of the kubelet as text whose order is that of time, in UTC; empty for what is no stamp.

    The kubelet leaves out the zeros at a stamp's end, and writes it in the zone of its node.
    """
    found = _STAMP.match(stamp)
    if found is None:
        return ""
    second, fraction, zone = found.groups()
    if zone != "Z":
        second = datetime.fromisoformat(f"{second}{zone}").astimezone(timezone.utc).isoformat()[:19]
    return f"{second}.{(fraction or ''):0<9}"


def _whole(content: bytes) -> bytes:
    """Take the stamps out of a long line: older kubelets put one before each piece that the runtime cuts it into."""
    if len(content) <= _PIECE_BYTES:
        return content
    pieces, rest = [], content
    while len(rest) > _PIECE_BYTES:
        pieces.append(rest[:_PIECE_BYTES])
        rest = _INNER_STAMP.sub(b"", rest[_PIECE_BYTES:], count=1)
    return b"".join([*pieces, rest])
