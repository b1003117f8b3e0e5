"""Run a sweep as a deployment: its flow run is the sweep, and its trials are items of a queue."""

from __future__ import annotations

from typing import Any

from prefect import flow

from prefect_launch.sweeps.flow import run_as_flow, sweep_config


@flow(name="launch-sweep", persist_result=False)
async def sweep(
    config: dict[str, Any],
    queue: str | None = None,
    job: str | None = None,
    docker_image: str | None = None,
    num_workers: int | None = None,
    run_cap: int | None = None,
) -> Any:
    """Queue the trials of a sweep, until it ends.

    Args:
        config: the content of a sweep file.
        queue: where its trials are queued; by default `launch.queue` of the config.
        job: that its trials run; by default the config's.
        docker_image: that its trials run, in place of a job.
        num_workers: trials at a time.
        run_cap: the most trials.
    """
    return await run_as_flow(sweep_config(config, queue, job, docker_image, num_workers, run_cap))
