"""Ownership of items and runs: whose an item is, whose a run is, and which agent reports on it.

An agent may be cut off from the server and reported lost. When it comes back, another agent may have its items. So
before each step that cannot be undone it asks: is the last claim of this item mine, and is the item still active? If
not, it writes nothing, and stops its run of the item.

Labels are easily copied, so they alone prove nothing. A run is ours when its name fits its labels and the claim in its
labels is known: from the plan in the run's folder in this agent's home or, when that plan is gone or broken, from the
item itself. Runs that are not ours are left alone. A run is the current one of its item when the item's last claim made
it for the current attempt.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple
from uuid import UUID, uuid4

import anyio

from prefect_launch.agent.context import AgentContext
from prefect_launch.agent.item.running_items import RunningItem
from prefect_launch.core.cancellation import finished
from prefect_launch.core.clock import now
from prefect_launch.core.file_lock import locked, locked_if_free
from prefect_launch.core.states import ACTIVE, ItemState, StateType
from prefect_launch.core.supervision import unless_away
from prefect_launch.errors import AgentConfigError, LaunchError
from prefect_launch.planning.plan import load_plan
from prefect_launch.queues.presence import Holder
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.runners.base import Found, Labels, RunPlan, run_name
from prefect_launch.server.paging import all_items
from prefect_launch.server.protocol import Server
from prefect_launch.server.values import PAGE, Item, State
from prefect_launch.settings.agent_config import MachineSettings

log = logging.getLogger(__name__)


#: An agent counts as lost after three times as long; one read for each active item.
CHECK_SECONDS: Final = 30.0
#: An agent that stops an item may find that the server has called it cancelled meanwhile; it says then what it saw.
_OURS: Final = ACTIVE | {StateType.CANCELLED}


def claims_of(states: Sequence[State]) -> list[State]:
    """Return the claims among an item's states."""
    return [state for state in states if state.type is StateType.PENDING and state.name == ItemState.CLAIMED.label]


def last_claim(states: Sequence[State]) -> State | None:
    """Return the last claim among an item's states, oldest first."""
    claims = claims_of(states)
    return claims[-1] if claims else None


def token_of_claim(claim: State) -> str:
    """Return a claim's token."""
    return claim.transition_id or ""


def holder_of(states: Sequence[State]) -> Holder | None:
    """Return who has claimed an item, as its last claim says; `None` when no agent of ours has."""
    claim = last_claim(states)
    return Holder.of(claim) if claim else None


def token_of(item: Item) -> str:
    """Return the token of the claim that an item is under; empty when its state does not say."""
    if item.state is None or item.state.name != ItemState.CLAIMED.label:
        return ""
    return token_of_claim(item.state)


async def items_in_work(server: Server, pool: str) -> list[Item]:
    """Return all active items of a queue: those that an agent has."""
    return [item async for item in all_items(server, pool=pool, state_types=sorted(ACTIVE))]


async def watch_ownership(server: Server, entries: Callable[[], Sequence[RunningItem]]) -> None:
    """Stop, again and again, the runs here of items that are another's by now, or have ended; never returns."""
    while True:
        await anyio.sleep(CHECK_SECONDS)
        with unless_away(log, "ownership not checked"):
            await check_ownership(server, entries())


async def check_ownership(server: Server, entries: Sequence[RunningItem]) -> None:
    """Stop what runs here for items that are not held any more.

    All items are read at once, and the states of those alone that are in another one than at the last check.

    Raises:
        LaunchError: when the server fails.
    """
    asked_at, states = now(), dict[UUID, State | None]()
    for start in range(0, len(entries), PAGE):
        ids = [running_item.id for running_item in entries[start : start + PAGE]]
        with suppress(LaunchError):  # Of what cannot be listed, the states are read.
            states |= {item.id: item.state for item in await server.list_items(ids=ids)}
    moved = []
    for running_item in entries:
        state = states.get(running_item.id)
        if state is None or state != running_item.held_in:
            moved.append(running_item)
        elif not running_item.stop.is_set():
            running_item.held_at = asked_at  # Not later: it may be lost since.
    for running_item in moved:
        if running_item.stop.is_set() or running_item.is_ending:
            continue
        asked_at = now()
        if await owns_item(server, running_item.id, running_item.claim):
            running_item.held_at, running_item.held_in = asked_at, states.get(running_item.id)
            continue
        if running_item.is_ending or running_item.ended.is_set():
            continue
        running_item.held_at = float("-inf")
        await log_lost(server, running_item.id, "stopping its run here")
        running_item.stop.set()


async def log_lost(server: Server, item_id: UUID, words: str) -> None:
    """Log that an item is not this agent's any more; a sweep that was paused has been given back, not lost.

    Args:
        server: the Prefect server.
        item_id: the item.
        words: what follows from it.
    """
    states = await _read_states(server, item_id)
    if states and states[-1].type is StateType.PAUSED:
        log.info("%s paused: %s", item_id, words)
    else:
        log.warning("%s ownership-lost: %s", item_id, words)


class Ownership:
    """Whether an active item is still this agent's: asked before each step that cannot be undone.

    The token of the claim decides, as the item's states on the server show it. Which agent of the home reports on the
    run is decided by the lock in the run's folder, and then by the claim again.

    Args:
        server: the Prefect server.
        running_item: the item, with the token of its claim.
        context: the agent's, with its `trusted_seconds`.
    """

    def __init__(self, server: Server, running_item: RunningItem, context: AgentContext) -> None:
        self._server = server
        self._running = running_item
        self._context = context

    async def is_certain(self) -> bool:
        """Whether the item is this agent's for certain: one that was not seen to be for long may have been called lost.

        The claim shows it, then each check of all active items, else a check now.
        """
        if now() - self._running.held_at < self._context.trusted_seconds:
            return True
        if not await owns_item(self._server, self._running.id, self._running.claim):
            return False
        self._running.held_at = now()
        return True

    def invalidate(self) -> None:
        """Take the item for this agent's only when it is seen to be: somebody else has stopped its run."""
        self._running.held_at = float("-inf")

    @asynccontextmanager
    async def reporting(self, run_dir: Path, agent: str) -> AsyncIterator[bool]:
        """Be the one agent of the home that reports on the run, once nobody else does.

        Args:
            run_dir: the run's folder.
            agent: name of this agent.

        Yields:
            Whether it is to report: `False` when another agent has done so meanwhile.
        """
        async with hold_run_lock(run_dir, agent) as at_once:
            yield at_once or await owns_item(self._server, self._running.id, self._running.claim, among=ACTIVE)


async def owns_item(server: Server, item_id: UUID, token: str, *, among: Collection[StateType] = _OURS) -> bool:
    """Whether an item is active under this claim; waits for a server that is away.

    Args:
        server: the Prefect server.
        item_id: the item.
        token: of the claim; when it is not known (empty), the item's state alone decides.
        among: the states that count as active.
    """
    states = await _read_states(server, item_id)
    if not states or states[-1].type not in among:
        return False
    claim = last_claim(states)
    return not token or claim is None or token_of_claim(claim) == token


async def _read_states(server: Server, item_id: UUID) -> list[State]:
    return await retry_until_available(f"show the states of {item_id}", lambda: server.read_states(item_id))


class Identity(NamedTuple):
    """What the labels of a run say."""

    item_id: UUID
    attempt: int
    claim: str


def identity_of(found: Found) -> Identity | None:
    """Read a run's labels; `None` when no agent can have set them."""
    try:
        claim = found.labels.get(Labels.CLAIM, "")
        identity = Identity(
            UUID(found.labels[Labels.ITEM]), int(found.labels[Labels.ATTEMPT]), str(UUID(claim)) if claim else ""
        )
    except (KeyError, ValueError):
        return None
    if found.name not in (None, run_name(identity.item_id, identity.attempt)) or Labels.QUEUE not in found.labels:
        return None
    return identity


def plan_of(machine: MachineSettings, identity: Identity) -> RunPlan | None:
    """Return the plan of a run from its folder in this home; `None` when it is gone, broken or another run's."""
    plan = load_plan(machine.run_dir(str(identity.item_id), identity.attempt, identity.claim))
    if plan is None or plan.labels.get(Labels.CLAIM, "") != identity.claim:
        return None
    return plan if (plan.item_id, plan.attempt) == (str(identity.item_id), identity.attempt) else None


def created_by_us(identity: Identity, plan: RunPlan | None, history: Sequence[State]) -> bool:
    """Whether an agent of this home, or one that had claimed the item, has made a run."""
    return plan is not None or identity.claim in [token_of_claim(claim) for claim in claims_of(history)]


def is_current_attempt(identity: Identity, item: Item, history: Sequence[State]) -> bool:
    """Whether a run is the item's present attempt: `run_count` grows when the item becomes Running."""
    claim = last_claim(history)
    if item.state_type not in ACTIVE or (claim is not None and token_of_claim(claim) != identity.claim):
        return False
    if item.state_type is StateType.PENDING:
        return item.run_count + 1 == identity.attempt
    if item.state_type is StateType.CANCELLING:
        return item.run_count in (identity.attempt, identity.attempt - 1)
    return item.run_count == identity.attempt


_RUN_LOCK: Final = "agent.lock"


@asynccontextmanager
async def hold_run_lock(run_dir: Path, agent: str) -> AsyncIterator[bool]:
    """Report on a run, once nobody else does.

    Args:
        run_dir: the run's folder.
        agent: who does it.

    Yields:
        Whether nobody else did. On a disk that has no room for the lock it is not asked.
    """
    waited = asyncio.Event()
    async with AsyncExitStack() as held:
        try:
            descriptor = await held.enter_async_context(locked(run_dir / _RUN_LOCK, on_wait=waited.set))
            await finished(anyio.to_thread.run_sync(_sign, descriptor, agent))
        except OSError as error:
            log.debug("%s is not locked: %s", run_dir, error)
        yield not waited.is_set()


def _sign(descriptor: int, agent: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, agent.encode(), 0)


def run_lock_holder(run_dir: Path) -> str | None:
    """Return the name of the agent that reports on a run now; `None` when none does. It disturbs no other reader."""
    try:
        with locked_if_free(run_dir / _RUN_LOCK, shared=True) as is_free:
            return None if is_free else (run_dir / _RUN_LOCK).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        log.debug("%s is not locked: %s", run_dir, error)
        return None


#: An agent that is just leaving has stopped following its runs by then.
WAIT_SECONDS: Final = 15.0


@asynccontextmanager
async def hold_agent_name(home: Path, name: str, *, wait_seconds: float = WAIT_SECONDS) -> AsyncIterator[None]:
    """Hold the name of an agent on this machine; the kernel frees it when the process ends, however it ends.

    Args:
        home: the folder of prefect-launch on this machine.
        name: of the agent.
        wait_seconds: for how long an agent that holds it is waited for.

    Raises:
        AgentConfigError: when another agent holds it.
    """
    file = home / "agents" / f"{name}.lock"
    async with AsyncExitStack() as stack:
        with anyio.move_on_after(wait_seconds) as wait:
            await stack.enter_async_context(locked(file))
        if wait.cancelled_caught:
            raise AgentConfigError(
                f"An agent called {name!r} runs on this machine already (it holds {file})."
                " Stop it, or give this one another name (name: …, or --name)."
            )
        yield


_HOME_ID: Final = "home-id"


def home_id(home: Path) -> str:
    """Return the id of a home; it is made at the first call, and stays.

    Args:
        home: the folder of prefect-launch on this machine. When nothing can be written there, the id is made of the
            machine's name and the folder's path.
    """
    file = home / _HOME_ID
    try:
        if not file.exists():
            home.mkdir(parents=True, exist_ok=True)
            new = home / f".{_HOME_ID}-{uuid4().hex}"
            new.write_text(uuid4().hex)
            with suppress(FileExistsError):  # Another agent of the home was faster.
                os.link(new, file)
            new.unlink()
        return file.read_text().strip()
    except OSError:
        return hashlib.sha256(f"{socket.gethostname()} {home}".encode()).hexdigest()[:32]
