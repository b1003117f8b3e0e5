"""Runs on a scripted Kubernetes API: a plan, its start, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio

from prefect_launch.runners.base import ExitStatus, Labels, RunPlan
from prefect_launch.runners.remote.kubernetes.runner import KubernetesRunner
from tests.support.kubernetes_api import KubernetesApi
from tests.support.kubernetes_pods import JobPods

#: For a hang: a busy machine may take most of it.
LIMIT_SECONDS = 60.0


def plan_in(folder: Path, **options: Any) -> RunPlan:
    item = str(uuid4())
    (folder / item).mkdir()
    labels = {Labels.ITEM: item, Labels.ATTEMPT: "1", Labels.CLAIM: "first", Labels.AGENT: "box"}
    image, command = "registry.example/train:1", ("train",)
    return RunPlan(
        item_id=item,
        run_id=item[:8],
        run_dir=folder / item,
        image=image,
        command=command,
        labels=labels,
        options=options,
    )


async def started(runner: KubernetesRunner, server: KubernetesApi, plan: RunPlan) -> tuple[str, JobPods]:
    """Start a run; its Job has made a pod, as a cluster's controller does."""
    handle = await runner.create(plan)
    pods = JobPods(server, "default", plan.name)
    assert pods.is_held()
    await runner.start(handle)
    assert not pods.is_held()
    pods.create()
    return handle, pods


async def end_of(runner: KubernetesRunner, handle: str, plan: RunPlan, happens: Callable[[], None]) -> ExitStatus:
    """Follow a run from before something happens to its end."""
    watching = asyncio.create_task(runner.watch(handle, plan))
    while not plan.log_path.exists():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    happens()
    with anyio.fail_after(LIMIT_SECONDS):
        return await watching
