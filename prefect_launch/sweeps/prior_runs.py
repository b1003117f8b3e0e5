"""Prior runs of a sweep: trials of earlier sweeps, and other runs, that its sampler learns from.

They are named in `prior_runs` of the configuration, and are never counted as trials of the sweep.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from prefect_launch.core.metrics import Metrics
from prefect_launch.errors import NotFoundError, SpecError
from prefect_launch.server.metrics import read_metrics
from prefect_launch.server.values import SCHEDULER_FLOW, Item
from prefect_launch.spec.item_parameters import spec_of
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.history import Trial, TrialState
from prefect_launch.sweeps.samplers.base import Sampler
from prefect_launch.sweeps.trial_items import TrialItem, TrialRecord
from prefect_launch.sweeps.trial_reader import read_trials

if TYPE_CHECKING:
    from prefect_launch.queues.session import Session

_LEARNT_FROM = frozenset({TrialState.FINISHED, TrialState.PRUNED, TrialState.FAILED})


async def read_prior_runs(session: Session, config: SweepConfig, sampler: Sampler) -> tuple[Trial, ...]:
    """Read the trials that the prior runs of a configuration name.

    Args:
        session: an open connection.
        config: of the sweep that learns from them.
        sampler: of that sweep.

    Returns:
        Those that have ended, with their values of the sweep's metric, and have parameters of its search space.

    Raises:
        NotFoundError: when there is no sweep and no item of an id.
        SpecError: when the sweep's method does not learn, or there is nothing to learn from one of them.
    """
    if config.prior_runs and not sampler.learns:
        raise SpecError(
            f"The method {config.method!r} chooses each trial with no regard to others, so prior_runs"
            f" ({', '.join(map(str, config.prior_runs))}) would have no effect. Leave them out, or use 'bayes'."
        )
    found: list[Trial] = []
    for run_id in dict.fromkeys(config.prior_runs):
        item = await session.server.read_item(run_id)
        if item is None:
            raise NotFoundError(
                f"There is no sweep and no item {str(run_id)!r} to learn from. 'prefect-launch sweep list' and"
                " 'prefect-launch item list' show what there is."
            )
        found += await _trials_of(session, item, config, sampler)
    return tuple(found)


async def _trials_of(session: Session, item: Item, config: SweepConfig, sampler: Sampler) -> tuple[Trial, ...]:
    trials = await _read(session, item, config)
    ended = [trial for trial in trials if trial.state in _LEARNT_FROM]
    alike = [trial for trial in ended if sampler.learns_from(trial)]
    metric = config.objective
    if metric is None and alike:
        return tuple(alike)
    if any(trial.value is not None and trial.state is not TrialState.FAILED for trial in alike):
        return tuple(alike)
    if not ended:
        reason = "nothing of it has ended yet" if trials else "it has no trials"
    elif not alike:
        names = ", ".join(".".join(path) for path, _ in config.parameters)
        reason = f"the sweep searches {names}, and its parameters are {json.dumps(ended[0].params, sort_keys=True)}"
    else:
        reason = alike[0].cause or f"it has no finite value of the metric {metric and metric.name!r}"
    raise SpecError(
        f"There is nothing to learn from the prior run {item.name} ({item.id}): {reason}."
        " Leave it out, or name a run with this sweep's parameters and metric."
    )


async def _read(session: Session, item: Item, config: SweepConfig) -> tuple[Trial, ...]:
    if item.flow == SCHEDULER_FLOW:
        return (await read_trials(session.server, item.id, config)).history.trials
    params = spec_of(item).overrides.run_config
    run = TrialItem.of(item) or TrialItem(item, TrialRecord(number=0, attempt=1, params=dict(params or {})))
    reported = await read_metrics(session.server, [item.id])
    return (run.trial(config.objective, reported.get(item.id, Metrics())),)
