"""Preview of a sweep: how many points it has, and its first trials; nothing is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from prefect_launch.sweeps.command import variables_of
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.history import History
from prefect_launch.sweeps.samplers.base import Sampler, next_params
from prefect_launch.sweeps.samplers.bayes import BayesSampler
from prefect_launch.sweeps.samplers.registry import make_sampler
from prefect_launch.sweeps.search_space import number_of_grid_points, number_of_points

#: Stands for the sweep's id, which there is not yet; another one gives other random points.
_NO_SWEEP: Final = "preview"
SAMPLES: Final = 5


@dataclass(frozen=True)
class Preview:
    """What a sweep would try.

    Attributes:
        points: how many different points there are; `None` when there is no end of them.
        samples: parameters of the first trials, at most five.
        trials: how many trials there will be at most; `None` when the configuration sets no end.
        warnings: what of the configuration has no effect, or may surprise.
    """

    points: int | None
    samples: tuple[dict[str, Any], ...]
    trials: int | None
    warnings: tuple[str, ...]


def preview_sweep(config: SweepConfig) -> Preview:
    """Return what a sweep would try.

    Raises:
        LaunchError: when its sampler is not installed, or fails.
    """
    grid = config.method == "grid"
    points = (number_of_grid_points if grid else number_of_points)(config.parameters)
    # A random sweep draws a point again; the others end when they have tried all.
    end = None if config.method == "random" else points
    limits = [limit for limit in (config.run_cap, end) if limit is not None]
    return Preview(
        points=points,
        samples=_samples(_sampler(config)),
        trials=min(limits, default=None),
        warnings=(
            *config.warnings,
            *(
                f"${{envvar:{name}}} is refused when the sweep runs. Let the program read the variable."
                for name in variables_of(config.command or ())
            ),
        ),
    )


def _sampler(config: SweepConfig) -> Sampler:
    # Its first points need no Optuna; so the file can be checked where that is not installed.
    return BayesSampler(config, _NO_SWEEP) if config.method == "bayes" else make_sampler(config, _NO_SWEEP)


def _samples(sampler: Sampler) -> tuple[dict[str, Any], ...]:
    history = History()
    most = min(SAMPLES, sampler.config.run_cap or SAMPLES)
    while len(history.trials) < most and (params := next_params(sampler, history)) is not None:
        history = history.with_trial(params)
    return tuple(dict(trial.params) for trial in history.trials)
