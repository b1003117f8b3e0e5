"""Trial queue of a sweep: it puts a trial's items on the queue, and cancels them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from uuid import UUID

from prefect_launch.client.item_check import NamedJob, check_item, resolve_source
from prefect_launch.core.states import StateType
from prefect_launch.errors import ItemGoneError, SpecError
from prefect_launch.planning.image_pinning import Digests
from prefect_launch.queues.cancel_request import request_cancel
from prefect_launch.server.metrics import METRIC_LABEL
from prefect_launch.server.values import Item
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.scheduler import QueueTrial, StopTrial
from prefect_launch.sweeps.trial_items import (
    STOP_LABEL,
    TRIAL_LABEL,
    StopRecord,
    SweepTrials,
    TrialRecord,
    trial_key,
    trial_spec,
)

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.queues.session import Session


def queue_of(config: SweepConfig) -> str:
    """Return the queue of a sweep's trials.

    Raises:
        SpecError: when the sweep names none.
    """
    if config.launch.queue is None:
        raise SpecError("The sweep names no queue. Give --queue, or launch.queue in its file.")
    return config.launch.queue


class TrialQueue:
    """Queues and cancels the trials of one sweep.

    Args:
        api: whose names are the defaults.
        session: an open connection.
        sweep_id: id of the sweep's flow run.
        config: the sweep's configuration.
    """

    def __init__(self, api: Api, session: Session, sweep_id: UUID, config: SweepConfig) -> None:
        self._api = api
        self._session = session
        self._sweep_id = sweep_id
        self._config = config
        self._named: NamedJob | None = None

    async def add(self, wanted: Sequence[QueueTrial]) -> list[Item]:
        """Make an item for each try of a trial; of one that has its item already, none is made.

        Raises:
            LaunchError: as `launch_add` does for a trial.
        """
        if not wanted:
            return []
        drafts = []
        digests = Digests(self._session.digest_cache)
        for one in wanted:
            record = TrialRecord(number=one.number, attempt=one.attempt, params=dict(one.params))
            spec = trial_spec(self._config, self._sweep_id, record)
            if self._named is None:
                self._named = await resolve_source(self._session, spec)
                await self._named.save(self._session.jobs)
            queue = queue_of(self._config)
            checked = await check_item(self._api, self._session, spec, queue, self._named, digests)
            labels = {**checked.draft.labels, TRIAL_LABEL: record.model_dump_json()}
            if self._config.objective is not None:
                labels[METRIC_LABEL] = self._config.objective.name
            key = trial_key(self._sweep_id, record)
            drafts.append(checked.draft.model_copy(update={"labels": labels, "idempotency_key": key}))
        return await self._session.server.create_items(checked.queue.deployment_id, drafts)

    async def cancel(self, action: StopTrial, trials: SweepTrials) -> bool:
        """Cancel a trial's item; the label comes first, so that a cancelled item tells why.

        Returns:
            Whether it was asked to stop only now.
        """
        found = trials.items[action.number]
        if found.stop is None:
            stop = StopRecord(becomes=action.becomes, reason=action.reason)
            await self._session.server.label_item(found.item.id, {STOP_LABEL: stop.model_dump_json()})
        if found.item.state_type is StateType.CANCELLING:
            return False
        with suppress(ItemGoneError):
            await request_cancel(self._session.server, found.item, action.reason)
        return True
