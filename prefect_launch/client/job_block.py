"""Prefect block of a job on a queue: flows trigger it as they do any of Prefect's job blocks."""

from __future__ import annotations

from typing import Any, ClassVar

from anyio import to_thread
from prefect.blocks.abstract import JobBlock, JobRun
from pydantic import Field

from prefect_launch.client.launch_add import alaunch_add
from prefect_launch.client.queued_run import QueuedRun


class LaunchedRun(JobRun[dict[str, Any]]):
    """A run that a `LaunchJob` has queued.

    Attributes:
        run: the handle on it.
    """

    def __init__(self, run: QueuedRun) -> None:
        self.run = run

    async def wait_for_completion(self) -> None:  # type: ignore[override]  # Prefect's own annotation is a slip
        """Wait until it has ended with success.

        Raises:
            ExecutionError: when it failed, crashed or was cancelled.
        """
        await to_thread.run_sync(self.run.wait_until_finished, abandon_on_cancel=True)

    async def fetch_result(self) -> dict[str, Any]:
        """Return its named results.

        Raises:
            ArtifactError: when what it left is no JSON object.
        """
        return await to_thread.run_sync(self.run.outputs)


class LaunchJob(JobBlock[dict[str, Any]]):
    """A job, and the queue that its runs go to.

    Example:
        ```python
        from prefect import flow
        from prefect_launch import LaunchJob

        @flow
        async def train() -> dict:
            job = await LaunchJob.aload("BLOCK_NAME")
            run = await job.trigger()
            await run.wait_for_completion()
            return await run.fetch_result()
        ```
    """

    _block_type_name: ClassVar[str | None] = "Launch Job"
    _block_type_slug: ClassVar[str | None] = "launch-job"
    _description: ClassVar[str | None] = "A job of prefect-launch, and the queue that its runs go to."

    job: str = Field(description="The job: entity/project/name:alias, or a shorter form.")
    queue: str = Field(default="default", description="The queue of its runs.")
    inputs: dict[str, Any] = Field(default_factory=dict, description="The job's inputs.")
    template_variables: dict[str, Any] = Field(
        default_factory=dict, description="Values of the queue's template variables."
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="What else a launch config has, such as overrides or retries."
    )

    async def trigger(self) -> LaunchedRun:
        """Put a run of the job on its queue.

        Raises:
            LaunchError: as `launch_add` does.
        """
        overrides = self.config.get("overrides") or {}
        inputs = {**(overrides.get("run_config") or {}), **self.inputs}
        run = await alaunch_add(
            job=self.job,
            queue_name=self.queue,
            config={**self.config, "overrides": {**overrides, "run_config": inputs}},
            template_variables=self.template_variables or None,
        )
        return LaunchedRun(run)
