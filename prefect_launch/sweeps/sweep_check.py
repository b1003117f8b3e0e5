"""Checks of a sweep before it begins: its queue, job, sampler, trials and prior runs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import anyio.to_thread

from prefect_launch.client.item_check import NamedJob, check_item, resolve_source
from prefect_launch.errors import SpecError
from prefect_launch.jobs.schema import check_inputs
from prefect_launch.sources.wandb_hosts import run_address
from prefect_launch.spec.item_outputs import placed_inputs
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.preview import preview_sweep
from prefect_launch.sweeps.prior_runs import read_prior_runs
from prefect_launch.sweeps.samplers.registry import make_sampler
from prefect_launch.sweeps.search_space import extreme_points
from prefect_launch.sweeps.trial_items import TrialRecord, trial_spec
from prefect_launch.sweeps.trial_queue import queue_of

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.queues.session import Session

#: More values than this of one list are not checked before the sweep begins: that takes a second.
_CHECKED_POINTS: Final = 10_000


async def check_sweep_request(api: Api, session: Session, config: SweepConfig) -> NamedJob:
    """Check all of a sweep that can be checked before it begins: queue, job, sampler, trials, prior runs.

    Returns:
        The job of its trials.

    Raises:
        LaunchError: as `launch_add` does for a trial, `make_sampler` and `read_prior_runs`.
    """
    nobody = UUID(int=0)
    sampler = make_sampler(config, str(nobody))
    queue = queue_of(config)
    named: NamedJob | None = None
    for number, params in enumerate(preview_sweep(config).samples):
        spec = trial_spec(config, nobody, TrialRecord(number=number, attempt=1, params=params))
        named = named or await resolve_source(session, spec)
        if named.draft is not None and spec.uri and run_address(spec.uri) is None:
            raise SpecError(f"The sweep's trials name the URI {spec.uri!r}. Make a job of it, and name that.")
        await check_item(api, session, spec, queue, named)
    if named is None:
        raise SpecError("The sweep has no point to try.")
    if named.job is not None and config.method != "custom":
        await anyio.to_thread.run_sync(_check_extremes, config, named.job.schema)
    await read_prior_runs(session, config, sampler)
    return named


def _check_extremes(config: SweepConfig, schema: Mapping[str, Any] | None) -> None:
    """Refuse a sweep that would come to a value which the job's schema refuses, after hours of other trials maybe."""
    own = config.launch.config.get("overrides") or {}
    for params in islice(extreme_points(config.parameters), _CHECKED_POINTS if schema else 0):
        inputs = {**(own.get("run_config") or {}), **params}
        check_inputs(schema, placed_inputs(inputs, schema, folder="/"))
