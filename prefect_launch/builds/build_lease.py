"""One build of an image at a time, across the agents of one server: the others wait, see its log, take what it made.

Who builds holds a lease: a small value on the server, made under a name that only one can make. A lease whose holder is
gone (its process has ended, or its heart has stopped) counts for nothing, and the next who asks takes the one after it:
also when the holder lives, and could not give it back, as the server was away.
At the worst two build the same thing, which costs time and nothing else: an image gets its tag when it is whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple, Protocol, TypeVar
from uuid import UUID, uuid4

import anyio
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prefect_launch.builds.builder import LineSink
from prefect_launch.builds.process_id import is_gone, started_at, this_place
from prefect_launch.core.supervision import restarted
from prefect_launch.errors import BuildError, ServerFailedError, ServerUnavailableError

T = TypeVar("T")

#: The logger of builds' records in the items' logs.
BUILD_LOGGER: Final = "build"
BEAT_SECONDS: Final = 10.0
#: A holder on another machine is gone when its heart has not beaten for so long, by the watcher's own clock.
SILENCE_SECONDS: Final = 45.0
#: A silent holder whose process is there gets this many times as long: it builds, or could not give its lease back.
_ALIVE_FACTOR: Final = 4
_LOOK_SECONDS: Final = 1.0
_TAG: Final = "launch-build"
_PAGE: Final = 200
#: A lease says for so long that its build failed; then it is swept by the next one that fails.
_FAILED_KEPT: Final = timedelta(hours=1)
#: A value on the server has room for 5 000 characters.
_ERROR_CHARS: Final = 3_000


class Board(Protocol):
    """What is asked of the server: values by name, and items' logs."""

    async def create_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> bool: ...
    async def write_variable(self, name: str, value: Any, *, tags: Collection[str] = ()) -> None: ...
    async def delete_variable(self, name: str) -> bool: ...
    async def list_variables(self, tag: str) -> dict[str, Any]: ...
    async def read_logs(
        self, item_id: UUID, *, limit: int = 200, offset: int = 0, since: datetime | None = None
    ) -> Any: ...


class Lease(BaseModel):
    """Who builds."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    holder: str
    token: UUID = Field(default_factory=uuid4)
    item: UUID
    place: str
    pid: int
    start: int
    at: datetime
    beat: int = 0
    error: str | None = None

    @property
    def age(self) -> timedelta:
        """How long ago it was made, or failed."""
        return datetime.now(timezone.utc) - self.at


class _Found(NamedTuple):
    generation: int
    lease: Lease


class Flights:
    """The builds that one agent asks for.

    Args:
        board: the server.
        holder: who builds, as people are told it.
        silence_seconds: after which a holder whose process cannot be looked at is taken for gone.
    """

    def __init__(self, board: Board, holder: str, *, silence_seconds: float = SILENCE_SECONDS) -> None:
        self._board = board
        self._holder = holder
        self._silence = silence_seconds

    async def once(
        self,
        key: str,
        item: UUID,
        log: LineSink,
        *,
        is_there: Callable[[], Awaitable[bool]],
        build: Callable[[], Awaitable[None]],
    ) -> None:
        """Return when something is there: built by this call, or by another one.

        Args:
            key: what is built, and where it will be.
            item: the item that it is built for.
            log: takes the log of another's build while that is waited for.
            is_there: whether it is there already.
            build: makes it.

        Raises:
            BuildError: when its build failed, here or where it was waited for.
        """
        name = f"launch_build_{hashlib.sha256(key.encode()).hexdigest()[:32]}"
        waited = _Waited(self._board, log, self._silence)
        while True:
            found = await self._newest(name)
            if found is not None and waited.is_live(found):
                await waited.look(found)
            elif await is_there():
                return
            else:
                if found is not None and found.lease.error and found.generation in waited.seen:
                    raise BuildError(found.lease.error)
                generation = found.generation + 1 if found else 1
                if await self._take(name, generation, item, is_there, build):
                    return

    async def _take(
        self,
        name: str,
        generation: int,
        item: UUID,
        is_there: Callable[[], Awaitable[bool]],
        build: Callable[[], Awaitable[None]],
    ) -> bool:
        """Build under a lease of one's own; return false when another was faster."""
        lease = self._lease(item)
        own = f"{name}_{generation}"
        tags = [_TAG, name]
        value = lease.model_dump(mode="json")
        if not await _answered(lambda: self._board.create_variable(own, value, tags=tags)):
            # It may be ours: an answer that was lost is asked for again.
            found = await self._newest(name)
            if found is None or found.lease.token != lease.token:
                return False
        beating = asyncio.create_task(restarted(f"lease {own}", lambda: self._beat(own, lease, tags)))
        error: str | None = None
        try:
            if not await is_there():  # It may have been finished between the look and the lease.
                await build()
        except BuildError as failed:
            error = str(failed)[:_ERROR_CHARS]
            raise
        finally:
            beating.cancel()
            await asyncio.wait({beating})
            with anyio.CancelScope(shield=True):
                await self._release(name, own, lease, error)
        return True

    def _lease(self, item: UUID) -> Lease:
        pid = os.getpid()
        now = datetime.now(timezone.utc)
        return Lease(holder=self._holder, item=item, place=this_place(), pid=pid, start=started_at(pid), at=now)

    async def _beat(self, own: str, lease: Lease, tags: list[str]) -> None:
        beat = 0
        while True:
            await anyio.sleep(BEAT_SECONDS)
            beat += 1
            value = lease.model_copy(update={"beat": beat}).model_dump(mode="json")
            with suppress(ServerUnavailableError, ServerFailedError):  # The next beat comes.
                await self._board.write_variable(own, value, tags=tags)

    async def _release(self, name: str, own: str, lease: Lease, error: str | None) -> None:
        """Let go. Who waits for a build that failed reads why; when the server is away, the lease grows old."""
        with suppress(ServerUnavailableError, ServerFailedError):
            if error is not None:
                failed = lease.model_copy(update={"error": error, "at": datetime.now(timezone.utc)})
                await self._board.write_variable(own, failed.model_dump(mode="json"), tags=[_TAG, name])
                await self._sweep()
                return
            for each in await self._board.list_variables(name):
                await self._board.delete_variable(each)

    async def _sweep(self) -> None:
        for each, value in (await self._board.list_variables(_TAG)).items():
            lease = _read(value)
            if lease is None or (lease.error and lease.age > _FAILED_KEPT):
                await self._board.delete_variable(each)

    async def _newest(self, name: str) -> _Found | None:
        found = await _answered(lambda: self._board.list_variables(name))
        leases = [(int(each.rpartition("_")[2]), _read(value)) for each, value in found.items()]
        known = [_Found(number, lease) for number, lease in leases if lease is not None]
        return max(known, key=lambda one: one.generation, default=None)


class _Waited:
    """What one who waits has seen of the leases before it."""

    def __init__(self, board: Board, log: LineSink, silence: float) -> None:
        self._board = board
        self._log = log
        self._silence = silence
        self._beats: dict[int, tuple[int, float]] = {}
        self._looked_at = time.monotonic()
        self._read_until: datetime | None = None
        self.seen: set[int] = set()

    def is_live(self, found: _Found) -> bool:
        """Whether a lease's holder still builds."""
        lease = found.lease
        if lease.error is not None or is_gone(lease.place, lease.pid, lease.start):
            return False
        now = time.monotonic()
        if now - self._looked_at > self._silence / 2:
            self._beats.clear()  # Nothing was to be heard meanwhile: the server was away.
        self._looked_at = now
        beat, since = self._beats.get(found.generation, (-1, now))
        if beat != lease.beat:
            since = now
        self._beats[found.generation] = (lease.beat, since)
        return now - since < self._silence * (_ALIVE_FACTOR if lease.place == this_place() else 1)

    async def look(self, found: _Found) -> None:
        """Show what the build has said since the last look."""
        lease = found.lease
        if found.generation not in self.seen:
            self.seen.add(found.generation)
            self._read_until = lease.at
            self._log(f"{lease.holder} builds this image already, for the item {lease.item}; its log follows.\n")
        since = self._read_until
        records = await _answered(lambda: self._board.read_logs(lease.item, limit=_PAGE, since=since))
        for record in records:
            if since is None or record.timestamp > since:
                self._read_until = record.timestamp
                if record.name == BUILD_LOGGER:
                    self._log(f"{record.message}\n")
        await anyio.sleep(_LOOK_SECONDS)


def _read(value: Any) -> Lease | None:
    try:
        return Lease.model_validate(value)
    except ValidationError:
        return None


async def _answered(call: Callable[[], Awaitable[T]]) -> T:
    """Ask a server until it answers."""
    while True:
        try:
            return await call()
        except (ServerUnavailableError, ServerFailedError):
            await anyio.sleep(_LOOK_SECONDS)
