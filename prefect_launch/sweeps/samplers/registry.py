"""Registry of samplers: which method or name is which class.

Samplers are entry points of the group `prefect_launch.samplers`, so a third party adds one with a package of its own; a
sweep file names it with `method: custom` and `sampler: NAME`. A sampler's module is imported on first use. The built-in
ones are known without this package's metadata too (a plain checkout).
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from importlib.metadata import entry_points
from typing import Final

from prefect_launch.errors import AgentConfigError, unknown_name
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.samplers.base import Sampler

_GROUP: Final = "prefect_launch.samplers"
_BUILT_IN: Final = {
    "grid": "prefect_launch.sweeps.samplers.grid_search:GridSampler",
    "random": "prefect_launch.sweeps.samplers.random_search:RandomSampler",
    "bayes": "prefect_launch.sweeps.samplers.bayes:BayesSampler",
}


def make_sampler(config: SweepConfig, sweep_id: str) -> Sampler:
    """Return the sampler of a sweep.

    Args:
        config: the sweep's configuration.
        sweep_id: the sweep's id.

    Raises:
        NotFoundError: when there is none of that name; names the nearest right one.
        AgentConfigError: when it cannot be imported, or is none, or lacks a package that it needs.
    """
    name = config.sampler or config.method
    table = _table()
    if name not in table:
        raise unknown_name("sampler", name, table)
    module, _, attribute = table[name].partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise AgentConfigError(
            f"The sampler {name!r}, {table[name]!r}, cannot be imported ({error}). Install or repair the package that"
            " brings it."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Sampler)):
        raise AgentConfigError(f"The sampler {name!r}, {table[name]!r}, is no class derived from Sampler.")
    sampler = found(config, sweep_id)
    sampler.check_requirements()
    return sampler


@lru_cache(maxsize=1)
def _table() -> dict[str, str]:
    return {**_BUILT_IN, **{point.name: point.value for point in entry_points(group=_GROUP)}}
