"""What tests of an agent's devices share: agents with GPUs in memory, and what their runs hold."""

from __future__ import annotations

import json
from typing import Any

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.core.states import StateType
from prefect_launch.runners.base import Labels
from prefect_launch.server.values import Item
from prefect_launch.testing import InMemoryGpus, InMemoryRunner
from tests.support.bench import QUEUE, RESOURCE, Bench


def wants(gpus: Any = None, **more: Any) -> dict[str, Any]:
    """The part of a spec that asks for devices."""
    options = {**({} if gpus is None else {"gpus": gpus}), **more}
    return {"resource_args": {RESOURCE: options}}


def agent_of(bench: Bench, machine: InMemoryGpus | int, **config: Any) -> LaunchAgent:
    """Make an agent of the bench, with GPUs in memory."""
    probe = InMemoryGpus(machine) if isinstance(machine, int) else machine
    settings = {"queues": [QUEUE], "home": bench.folder, "poll_seconds": 0.05, "name": "box", "max_jobs": -1, **config}
    runners = {RESOURCE: InMemoryRunner(bench.folder, bench.machine)}
    return LaunchAgent(bench.api, settings, runners=runners, gpu_probe=probe)


def gpus_of(bench: Bench, item: Item) -> list[str]:
    """The GPUs that a run's label says it holds."""
    run = bench.machine.runs[f"launch-{item.id}-1"]
    return list(json.loads(run.plan.labels[Labels.DEVICES])["gpus"])


def visible(bench: Bench, item: Item) -> str | None:
    """What a run's program is told of its GPUs."""
    return bench.machine.runs[f"launch-{item.id}-1"].plan.env.get("CUDA_VISIBLE_DEVICES")


async def running(bench: Bench, *items: Item) -> None:
    """Wait until all of them run."""
    for item in items:
        await bench.until(item, StateType.RUNNING)


def held(bench: Bench, handle: str) -> list[str]:
    """The GPUs of a run by its handle."""
    labels = bench.machine.runs[handle].plan.labels
    return list(json.loads(labels[Labels.DEVICES])["gpus"])


def now_async(look: Any) -> Any:
    """Look at something that needs no waiting, where something to await is expected."""

    async def looked() -> Any:
        return look()

    return looked
