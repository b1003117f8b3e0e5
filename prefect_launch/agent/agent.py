"""`LaunchAgent`: claims items of its queues, runs them on this machine, and reports them.

The loop knows only claim, start, watch and finish, and hands each item to an `ItemLifecycle`. Runs outlive the loop:
the next agent of the same name finds them by their labels and adopts them (`prefect_launch.agent.recovery.restart`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect_launch.agent.base import BaseAgent
from prefect_launch.agent.item.finish import fail_item
from prefect_launch.agent.item.lifecycle import ItemLifecycle
from prefect_launch.agent.item.outcome import Outcome
from prefect_launch.agent.item.ownership import hold_agent_name
from prefect_launch.agent.item.running_items import RunningItem
from prefect_launch.agent.loop import Loop
from prefect_launch.core.states import ItemState
from prefect_launch.errors import LaunchError
from prefect_launch.queues.sweep_status import sweep_id_of
from prefect_launch.queues.transitions import retry_until_available
from prefect_launch.runners.base import Phase
from prefect_launch.server.values import Item
from prefect_launch.spec.item_parameters import is_scheduler, options_of
from prefect_launch.spec.launch_spec import LaunchSpec

if TYPE_CHECKING:
    from prefect_launch.client.api import Api


class LaunchAgent(BaseAgent):
    """Runs the items of queues on this machine.

    Args:
        api: the server.
        config: an `AgentConfig`, or a mapping of its settings.
        runners: ready-made runners, by resource, in the place of the ones that it would make.
        gpu_probe: reads the GPUs of this machine; by default through the NVIDIA driver.

    Raises:
        AgentConfigError: for a wrong setting.
    """

    async def run_job(self, job: Item, queue: str, file_saver: Path | None = None) -> None:
        """Start to work on a claimed item; returns at once.

        Args:
            job: the item.
            queue: its queue.
            file_saver: folder that gets an `error.log` when the agent itself fails over the item.
        """
        self.context.runner_health.note_claim(queue)
        running_item = RunningItem(item=job, queue=queue, is_scheduler=is_scheduler(job), file_saver=file_saver)
        self.running_items.begin(
            running_item, lambda: self.task_run_job(options_of(job), job, {}, self.api, running_item)
        )

    async def task_run_job(
        self,
        launch_spec: Mapping[str, Any],
        job: Item,
        default_config: Mapping[str, Any],
        api: Api,
        job_tracker: RunningItem,
    ) -> None:
        """Work on one claimed item until its end, which always goes through `finish_thread_id`.

        Args:
            launch_spec: the item's parameters; when their sweep has ended, the item is refused.
            job: the item.
            default_config: kept for callers of the reference's library.
            api: the server.
            job_tracker: of the item.
        """

        async def work() -> Outcome:
            try:
                await retry_until_available("show the sweep", lambda: self.check_sweep_state(launch_spec, api))
            except LaunchError as error:
                await self.fail_run_queue_item(str(job.id), str(error), Phase.AGENT.value)
                return Outcome(state=ItemState.FAILED, message=str(error))
            return await ItemLifecycle(self.context, job_tracker).run()

        await self.running_items.do(job_tracker, work)

    async def fail_run_queue_item(
        self, run_queue_item_id: str, message: str, phase: str, files: Sequence[str | Path] | None = None
    ) -> None:
        """End an item as failed.

        Args:
            run_queue_item_id: the item's id.
            message: why.
            phase: `agent`, `build` or `run`.
            files: files that are kept with the item's outputs.
        """
        await fail_item(self.context.session, UUID(run_queue_item_id), message, Phase(phase), files)

    async def check_sweep_state(self, launch_spec: Mapping[str, Any] | LaunchSpec, api: Api) -> None:
        """Refuse an item whose sweep has ended, or is not on the server.

        A sweep is a flow run; an id that is no UUID is only a label, and refuses nothing. The sweep's state is read
        once in 10 s at most.

        Raises:
            LaunchError: when the sweep is in a terminal state, or was deleted.
        """
        given = launch_spec.sweep_id if isinstance(launch_spec, LaunchSpec) else launch_spec.get("sweep_id")
        sweep = sweep_id_of(given)
        refusal = (await self.context.sweeps.of(sweep)).refusal if sweep is not None else ""
        if refusal:
            raise LaunchError(refusal)

    # --- the loop ---

    async def loop(self, *, until_empty: bool = False, max_runtime_seconds: float | None = None) -> None:
        """Claim items and run them, until a stop is requested.

        Runs continue when the loop ends, and the next agent of this name adopts them.

        Args:
            until_empty: end when the queues hold nothing and all work is done.
            max_runtime_seconds: end after this time.

        Raises:
            AgentConfigError: when the agent has no queue, or another of its name runs on this machine.
            NotFoundError: when one of its queues does not exist.
            KeyboardInterrupt: when it is asked to stop by the keyboard.
            BackgroundTaskError: when a background task that it cannot do without fails again and again; it has dropped
                of its items in order by then.
        """
        async with hold_agent_name(self.config.home, self.config.name), AsyncExitStack() as stack:
            await retry_until_available("let the agent in", lambda: stack.enter_async_context(self.connected()))
            await Loop(self, until_empty=until_empty, max_runtime_seconds=max_runtime_seconds).run()

    def stop(self) -> None:
        """Ask the loop to end; its runs continue."""
        self.shutdown.leave()
