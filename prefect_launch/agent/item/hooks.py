"""Hooks beside the life of an item: its log, its outputs, and a warning when it runs another image than was meant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prefect_launch.agent.item.attempt import Hook
from prefect_launch.agent.item.log_notes import warn_of_other_image
from prefect_launch.agent.item.logs import LogShipper
from prefect_launch.agent.item.outputs import copy_previous_outputs, keep_outputs, publish_outputs
from prefect_launch.agent.item.transitions import log, retry_until_available
from prefect_launch.errors import LaunchError


class ShipLog(Hook):
    """Sends the log of the run to the server; a log that cannot be sent does not make a good run a bad one."""

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        attempt = self.attempt
        shipper = LogShipper(attempt.server, attempt.item.id, attempt.plan.log_path, mask=attempt.plan.mask)
        shipper.follow()
        try:
            yield
            if attempt.facts.end is not None:
                await self._finish(shipper)
        finally:
            await shipper.let_go()

    async def _finish(self, shipper: LogShipper) -> None:
        try:
            await shipper.finish()
        except Exception as error:  # noqa: BLE001 - whatever it is, the run itself has ended as it has
            log.warning("%s log-not-sent %r", self.attempt.item.id, error)
            self.attempt.warnings.append(
                f"The log could not be sent whole ({error}); it is in {self.attempt.plan.log_path}."
            )


class PreviousOutputs(Hook):
    """Lays out what the last attempt has left, so that a job goes on from its checkpoint."""

    async def prepare(self) -> None:
        context = self.attempt.context
        await copy_previous_outputs(context.session, self.attempt.plan, context.config.machine)


class KeepOutputs(Hook):
    """Keeps the outputs and the whole log in the job store, and shows `outputs.json` on the item's page."""

    async def ended(self) -> None:
        attempt, plan = self.attempt, self.attempt.plan
        try:
            async with attempt.context.copies:
                attempt.warnings += await keep_outputs(attempt.context.session, attempt.item.id, plan, attempt.end)
        except Exception as error:  # noqa: BLE001 - a store that fails does not make a good run a bad one
            attempt.warnings.append(f"The outputs could not be kept ({error}); they are in {plan.output_dir}.")
        try:
            fault = await retry_until_available(
                f"show the outputs of {attempt.item.id}",
                lambda: publish_outputs(attempt.server, attempt.item.id, plan.run_id, plan.output_dir),
            )
        except LaunchError as error:
            fault = f"The outputs could not be shown ({error})."
        attempt.warnings += [fault] if fault else []


class WarnOfOtherImage(Hook):
    """Tells in the item's log when its run is of another image than its tag meant when it was queued."""

    async def started(self) -> None:
        attempt = self.attempt
        await warn_of_other_image(attempt.server, attempt.item.id, attempt.plan, attempt.facts.image)
