"""Grid search: every combination of the values once, in W&B's order."""

from __future__ import annotations

from typing import Any

from prefect_launch.sweeps.history import History
from prefect_launch.sweeps.samplers.base import Sampler
from prefect_launch.sweeps.search_space import grid_point, number_of_grid_points


class GridSampler(Sampler):
    """The k-th trial has the k-th point, whatever became of the other trials."""

    learns = False

    def ask(self, history: History) -> dict[str, Any] | None:
        number = history.next_number
        points = number_of_grid_points(self.config.parameters)
        return grid_point(self.config.parameters, number) if points is None or number < points else None
