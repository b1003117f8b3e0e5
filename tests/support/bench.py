"""A queue on an in-memory server, an in-memory machine, and agents that run the queue's items on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.context import SCHEDULER_RESOURCE
from prefect_launch.client.launch_add import alaunch_add_many
from prefect_launch.core.states import ItemState, StateType
from prefect_launch.queues.presence import Holder
from prefect_launch.runners.base import RunPlan
from prefect_launch.server.values import SCHEDULER_FLOW, SWEEPS_WORK_QUEUE, Item, ItemDraft, State
from prefect_launch.testing import InMemoryApi, InMemoryMachine, InMemoryRunner, InMemoryServer, Script

RESOURCE = "local-container"
QUEUE = "gpu"
#: For a hang: a busy machine may take most of it.
DEADLINE_SECONDS = 60.0


class Bench:
    """All that a test of the agent needs.

    Args:
        folder: for the agents' homes.
        concurrency: limit of the queue.

    Attributes:
        machine: where the jobs run; set its `script` to say what they do.
        schedulers: where the schedulers of sweeps run.
    """

    def __init__(self, folder: Path, *, concurrency: int | None = None) -> None:
        self.folder = folder
        self.api = InMemoryApi(entity="acme", project="digits")
        # Its submitters may ask for all GPUs.
        self.api.create_run_queue(QUEUE, RESOURCE, concurrency=concurrency, submitter_options=["gpus"])
        self.machine = InMemoryMachine()
        self.schedulers = InMemoryMachine()

    @property
    def server(self) -> InMemoryServer:
        """The server behind the api."""
        return self.api.server

    def agent(self, name: str = "box", *, machine: InMemoryMachine | None = None, **config: Any) -> LaunchAgent:
        """Make an agent; one of the same name is the next life of the first."""
        runners = {
            RESOURCE: InMemoryRunner(self.folder, machine or self.machine),
            SCHEDULER_RESOURCE: InMemoryRunner(self.folder, self.schedulers),
        }
        settings = {"queues": [QUEUE], "home": self.folder, "poll_seconds": 0.05, **config}
        return LaunchAgent(self.api, {"name": name, **settings}, runners=runners)

    async def add(self, count: int = 1, queue: str = QUEUE, **spec: Any) -> list[Item]:
        """Put items on a queue."""
        specs = [{"docker": {"docker_image": "busybox:1"}, **spec} for _ in range(count)]
        runs = await alaunch_add_many(specs, queue, api=self.api)
        return [await self.read(UUID(run.id)) for run in runs]

    async def add_scheduler(self) -> Item:
        """Put a sweep's scheduler on the queue: its flow makes it one, whatever its parameters say."""
        await self.server.create_queue(QUEUE, SWEEPS_WORK_QUEUE, 9)
        deployment = await self.server.upsert_deployment(
            "sweep",
            flow=SCHEDULER_FLOW,
            work_queue=SWEEPS_WORK_QUEUE,
            pool=QUEUE,
            parameters={},
            parameter_schema={},
            description="",
            tags=(),
            labels={},
            enforce=False,
        )
        parameters = {"docker": {"docker_image": "busybox:1"}}
        made = await self.server.create_item(
            deployment,
            ItemDraft(
                name="sweep",
                parameters=parameters,
                work_queue_name=SWEEPS_WORK_QUEUE,
                idempotency_key=uuid4().hex,
            ),
        )
        assert made is not None
        return made

    async def poll(self, limit: int = 10) -> list[Item]:
        """Poll the queue, as an agent does."""
        return await self.server.poll(QUEUE, limit=limit, before=datetime.now(timezone.utc))

    async def read(self, item_id: UUID) -> Item:
        """Read an item that is there."""
        found = await self.server.read_item(item_id)
        assert found is not None
        return found

    async def move(self, item: Item, *states: ItemState) -> None:
        """Move an item, as somebody else would."""
        for state in states:
            verdict = await self.server.propose(item.id, State.of(state))
            assert verdict.accepted, verdict.reason

    async def states(self, item: Item) -> list[str]:
        """Names of the states that an item was in, oldest first."""
        return [state.name for state in await self.server.read_states(item.id)]

    async def log(self, item: Item) -> str:
        """The item's log, as the UI shows it."""
        records = await self.server.read_logs(item.id, limit=100_000)
        return "\n".join(record.message for record in records)

    async def until(self, item: Item, *types: StateType) -> Item:
        """Wait until an item is in a state of one of these types."""
        found: Item = await eventually(lambda: self.read(item.id), lambda found: found.state_type in types)
        return found

    async def until_state(self, item: Item, state: ItemState) -> Item:
        """Wait until an item is in a state of this name."""
        found: Item = await eventually(lambda: self.read(item.id), lambda found: found.state_name == state.label)
        return found

    async def until_nothing_runs(self) -> None:
        """Wait until the machine has no runs."""

        async def runs() -> int:
            return len(self.machine.runs)

        await eventually(runs, lambda count: count == 0)

    @asynccontextmanager
    async def running(self, agent: LaunchAgent, **options: Any) -> AsyncIterator[LaunchAgent]:
        """Run an agent's loop beside the test; it leaves at the end."""
        loop = asyncio.create_task(agent.loop(**options))
        try:
            yield agent
            agent.stop()
            await asyncio.wait_for(loop, DEADLINE_SECONDS)
        finally:
            loop.cancel()
            await asyncio.wait({loop})

    async def leave_running(self, agent: LaunchAgent, *items: Item) -> None:
        """Let an agent start items, and leave while they run."""
        async with self.running(agent):
            for item in items:
                await self.until(item, StateType.RUNNING)

    async def finish_under(self, agent: LaunchAgent) -> None:
        """Let an agent take up what runs, let that come to its end, and wait until the queue is empty."""
        work = asyncio.create_task(agent.loop(until_empty=True))
        await eventually(lambda: asyncio.sleep(0, agent.running_items.held), bool)
        self.machine.finish()
        await asyncio.wait_for(work, DEADLINE_SECONDS)

    def plays(self, *scripts: Script) -> None:
        """Let the items that are started do this, one after another, the last one for all that come later."""
        left = list(scripts)
        chosen: dict[str, Script] = {}

        def script(plan: RunPlan) -> Script:
            if plan.name not in chosen:
                chosen[plan.name] = left.pop(0) if len(left) > 1 else left[0]
            return chosen[plan.name]

        self.machine.script = script


async def eventually(look: Callable[[], Any], good: Callable[[Any], bool]) -> Any:
    """Look again and again until what is seen is good, a minute at most."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not good(seen := await look()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not so within {DEADLINE_SECONDS} s: {seen}")
        await asyncio.sleep(0.02)
    return seen


def holder_called(name: str, *, host: str = "here", home: str = "") -> Holder:
    """Who claims, for tests that need no agent: a life of its own at each call."""
    return Holder(agent=name, instance=uuid4().hex, host=host, home=home)


def outcome_data(item: Item) -> Mapping[str, Any]:
    """The data of an item's state: exit code, signal, out of memory or not."""
    assert item.state is not None
    return dict(item.state.data)
