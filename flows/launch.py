"""Run a job on the machine that executes this flow, with no queue: the run is a subflow of it."""

from __future__ import annotations

from typing import Any

from prefect import flow

from prefect_launch import Api, alaunch


@flow(name="launch-here", persist_result=False)
async def launch_here(
    job: str, inputs: dict[str, Any] | None = None, name: str | None = None, resource: str | None = None
) -> None:
    """Run a job here and now, and wait for its end.

    Args:
        job: `entity/project/name:alias`, or a shorter form.
        inputs: the job's inputs.
        name: the run's display name.
        resource: `local-process` or `local-container`; by default what the job's kind needs.
    """
    await alaunch(Api(), job=job, name=name, resource=resource, config={"overrides": {"run_config": inputs or {}}})
