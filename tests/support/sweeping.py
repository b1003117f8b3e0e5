"""Sweeps on a server in memory: their flow run, their scheduler, and an agent that settles trials at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, TypeVar
from uuid import UUID, uuid4

from prefect_launch.core.metrics import Metrics
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.queues.session import Session
from prefect_launch.server.metrics import write_metrics
from prefect_launch.server.values import Item, ItemDraft, State
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.runner import SweepRunner
from prefect_launch.sweeps.scheduler import EndSweep
from prefect_launch.sweeps.sweep_run import sweep_config
from prefect_launch.sweeps.trial_items import SweepTrials, TrialItem, TrialRecord, sweep_tag
from prefect_launch.testing import InMemoryApi

T = TypeVar("T")

#: For a hang.
PATIENCE_SECONDS = 120.0
GRID = {"lr": {"values": [0.1, 0.2, 0.3, 0.4]}}

#: What becomes of a trial: the metrics that it reports, or `None` when it fails.
Result = Callable[[Mapping[str, Any]], Mapping[str, float] | None]


def loss(params: Mapping[str, Any]) -> Mapping[str, float]:
    """The best rate is 0.3."""
    return {"loss": abs(params["lr"] - 0.3)}


def fails(params: Mapping[str, Any]) -> None:
    """Every trial fails."""
    return


@dataclass
class Sweep:
    """A sweep on a server in memory.

    Attributes:
        most_open: how many of its items were seen that wait or run at a time.
    """

    api: InMemoryApi
    session: Session
    id: UUID
    parameters: dict[str, Any]
    told: list[str] = field(default_factory=list)
    most_open: int = 0

    def scheduler(self, **given: Any) -> SweepRunner:
        """A scheduler, with options that win over the sweep's own."""
        config = sweep_config(**{**self.parameters, **given})
        return SweepRunner(self.api, self.session, self.id, config, report=self.told.append, look_seconds=0.01)

    async def run(self, **given: Any) -> EndSweep:
        """Run a scheduler to the end of the sweep, with options that become the sweep's own."""
        if given:
            await self.api.server.replace_parameters(self.id, {**self.parameters, **given})
        return await asyncio.wait_for(self.scheduler(**given).run(), PATIENCE_SECONDS)

    async def until_told(self, words: str) -> None:
        """Wait until the scheduler has told of it."""

        async def look() -> None:
            while True:
                if any(words in line for line in self.told):
                    return
                await asyncio.sleep(0.005)

        await asyncio.wait_for(look(), PATIENCE_SECONDS)

    async def state(self) -> StateType | None:
        """The type of the state that the sweep's flow run is in."""
        found = await self.api.server.read_item(self.id)
        return None if found is None else found.state_type

    async def die_once_it_has_queued(self) -> None:
        """Run a scheduler that is killed once its first two trials are queued."""
        life = asyncio.create_task(self.scheduler().run())
        await self.until_told("trial 1 waiting")
        life.cancel()
        with suppress(asyncio.CancelledError):
            await life

    async def items(self) -> list[Item]:
        """All items of the sweep."""
        return await self.api.server.list_items(tags=[sweep_tag(self.id)])

    async def numbers(self) -> list[tuple[int, int]]:
        """Number and try of each item."""
        found = [TrialItem.of(item) for item in await self.items()]
        return sorted((one.record.number, one.record.attempt) for one in found if one is not None)

    async def enter(self, state: ItemState) -> None:
        """Put the sweep's flow run into a state."""
        await self.api.server.propose(self.id, State.of(state), force=True)

    async def work(self, result: Result) -> None:
        """Run items as an agent does, until cancelled."""
        server = self.api.server
        while True:
            items = await self.items()
            open_items = [item for item in items if not item.is_terminal]
            self.most_open = max(self.most_open, len(open_items))
            for item in open_items:
                if item.state_type is StateType.CANCELLING:
                    await server.propose(item.id, State.of(ItemState.CANCELLED))
                elif item.state_type is StateType.RUNNING:
                    metrics = result(item.parameters["overrides"]["run_config"])
                    if metrics is not None:
                        await write_metrics(server, item.id, Metrics(outputs=dict(metrics)))
                    ended = ItemState.COMPLETED if metrics is not None else ItemState.FAILED
                    await server.propose(item.id, State.of(ended, "[run] The job ended with exit code 3."))
                else:
                    await server.propose(item.id, State.of(ItemState.CLAIMED))
                    await server.propose(item.id, State.of(ItemState.RUNNING))
            await asyncio.sleep(0.002)

    @asynccontextmanager
    async def agent(self, result: Result = loss) -> AsyncIterator[None]:
        """Run its items inside the block."""
        worker = asyncio.create_task(self.work(result))
        try:
            yield
        finally:
            worker.cancel()
            with suppress(asyncio.CancelledError):
                await worker


@asynccontextmanager
async def opened(api: InMemoryApi, *, workers: int = 2, deployed: bool = False, **config: Any) -> AsyncIterator[Sweep]:
    """A sweep whose flow run is running: that of a deployment, or one that its process has made."""
    given = {"method": "grid", "parameters": GRID, "metric": {"name": "loss"}, **config}
    parameters = {"config": given, "queue": "cpu", "job": "train", "num_workers": workers}
    async with api.open() as session:
        schema: dict[str, Any] = {
            "pool": "cpu",
            "parameters": {},
            "parameter_schema": {},
            "description": "",
            "tags": [],
            "labels": {},
        }
        flow = await api.server.upsert_deployment("sweeps", flow="launch-sweep", enforce=False, **schema)
        draft = ItemDraft(name=config.get("name", "a sweep"), parameters=parameters, idempotency_key=uuid4().hex)
        made = await api.server.create_item(flow, draft)
        assert made is not None
        if not deployed:
            api.server.detach(made.id)
        sweep = Sweep(api, session, made.id, parameters)
        await sweep.enter(ItemState.CLAIMED)
        await sweep.enter(ItemState.RUNNING)
        yield sweep


# --- kills ---


class Killer:
    """Ends the task under test at one of its calls to the server, before or after the call takes effect."""

    def __init__(self, api: InMemoryApi, at: int) -> None:
        self._server = api.server
        self.at = at
        self.seen = 0
        self.victim: asyncio.Task[Any] | None = None

    async def __call__(self, method: str) -> None:
        if self.victim is not None and asyncio.current_task() is self.victim:
            self.seen += 1
            if self.seen == self.at:
                raise asyncio.CancelledError

    async def run(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do the work; `None` when it was killed."""
        self.seen = 0
        self._server.before_call = self._server.after_call = self
        self.victim = asyncio.create_task(work)
        try:
            return await asyncio.wait_for(asyncio.shield(self.victim), PATIENCE_SECONDS)
        except asyncio.CancelledError:
            assert self.victim.done(), "it was the test that was cancelled"
            return None
        finally:
            self._server.before_call = self._server.after_call = None


# --- trials without a server ---


#: When the trials of `trials_of` have begun; they took 9 s.
BEGUN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)


def trials_of(*trials: Trial) -> SweepTrials:
    """Trials, each with an item."""
    items = {}
    for trial in trials:
        record = TrialRecord(number=trial.number, attempt=trial.tries, params=dict(trial.params))
        times = {"start_time": BEGUN, "end_time": None if trial.state.is_open else BEGUN + timedelta(seconds=9)}
        item = Item(id=uuid4(), name=f"trial-{trial.number}", state_type=StateType.RUNNING, **times)
        items[trial.number] = TrialItem(item, record)
    return SweepTrials(History(trials), items)


def finished(number: int, value: float | None, **params: Any) -> Trial:
    """A trial that has ended with success, and with this value of the metric."""
    return Trial(number, params or {"x": 0.5}, TrialState.FINISHED, value)
