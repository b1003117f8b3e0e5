"""Registry of samplers: which method or name is which class.

Samplers are entry points of the group `prefect_launch.samplers`, so a third party adds one with a package of its own; a
sweep file names it with `method: custom` and `sampler: NAME`.
"""

from __future__ import annotations

from typing import Final

from prefect_launch.core.plugins import Plugins
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.samplers.base import Sampler

SAMPLERS: Final = Plugins(
    "prefect_launch.samplers",
    "sampler",
    Sampler,  # type: ignore[type-abstract]
)


def make_sampler(config: SweepConfig, sweep_id: str) -> Sampler:
    """Return the sampler of a sweep.

    Args:
        config: the sweep's configuration.
        sweep_id: the sweep's id.

    Raises:
        NotFoundError: when there is none of that name; names the nearest right one.
        AgentConfigError: when it cannot be imported, or is none, or lacks a package that it needs.
    """
    sampler = SAMPLERS.find(config.sampler or config.method)(config, sweep_id)
    sampler.check_requirements()
    return sampler
