"""Base of samplers: a function of a sweep's history, with nothing kept between two calls."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from prefect_launch.core.validation import check_server_json
from prefect_launch.errors import AgentConfigError, LaunchError, clause
from prefect_launch.sweeps.config import SweepConfig
from prefect_launch.sweeps.history import History, Trial
from prefect_launch.sweeps.search_space import value_at


class Sampler(ABC):
    """Chooses the parameters of a sweep's trials.

    The truth is the history: a sampler is made anew at any time, and keeps nothing that it must not lose. It runs off
    the event loop.

    Args:
        config: the sweep's configuration.
        sweep_id: the sweep's id; it and `config.seed` decide every random choice.

    Attributes:
        learns: whether it learns from what became of other trials.
    """

    learns: ClassVar[bool] = True

    def __init__(self, config: SweepConfig, sweep_id: str) -> None:
        self.config = config
        self.sweep_id = sweep_id

    def key(self, number: int) -> str:
        """Return what a random choice for the trial of this number is drawn from."""
        return f"{self.sweep_id}/{self.config.seed}/{number}"

    def check_requirements(self) -> None:  # noqa: B027 - most need nothing
        """Refuse to start where a package that this sampler needs is missing.

        Raises:
            AgentConfigError: names the package, and how to install it.
        """

    def learns_from(self, trial: Trial) -> bool:
        """Whether the parameters of a trial, which may be of another sweep, are of this sweep's search space."""
        try:
            for path, _ in self.config.parameters:
                value_at(trial.params, path)
        except KeyError:
            return False
        return True

    @abstractmethod
    def ask(self, history: History) -> Mapping[str, Any] | None:
        """Return the parameters of the trial `history.next_number`; `None` when there are no more points.

        Args:
            history: the trials so far, those that wait and run too.
        """


def next_params(sampler: Sampler, history: History) -> dict[str, Any] | None:
    """Ask a sampler, and check its answer; a third party's may fail in any way.

    Returns:
        The parameters, or `None` when there are no more points.

    Raises:
        AgentConfigError: when the sampler raises, or gives something that no trial can have.
    """
    name = sampler.config.sampler or sampler.config.method
    try:
        params = sampler.ask(history)
    except LaunchError:
        raise
    except Exception as error:
        raise AgentConfigError(
            f"The sampler {name!r} failed on trial {history.next_number}: {type(error).__name__}: {clause(error)}."
        ) from error
    if params is None:
        return None
    if not isinstance(params, Mapping):
        raise AgentConfigError(
            f"The sampler {name!r} returned {params!r} for trial {history.next_number}: it must be a mapping, or None."
        )
    check_server_json(params, f"What the sampler {name!r} returned", error=AgentConfigError)
    return dict(params)
