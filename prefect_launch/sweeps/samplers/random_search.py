"""Random search: each trial drawn from the distributions, with no memory of the others."""

from __future__ import annotations

from typing import Any

from prefect_launch.sweeps.history import History
from prefect_launch.sweeps.samplers.base import Sampler
from prefect_launch.sweeps.search_space import random_point


class RandomSampler(Sampler):
    """The k-th trial's point is drawn from the sweep, the seed and k alone; two trials may have the same one."""

    learns = False

    def ask(self, history: History) -> dict[str, Any]:
        return random_point(self.config.parameters, self.key(history.next_number))
