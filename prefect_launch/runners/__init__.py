"""Where jobs run: the runner's contract, one file a resource, and the handle on a run that looks like a Future.

Names are imported on first use, so that asking for one resource does not import the others' libraries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_launch.core.lazy_names import lazy_names

if TYPE_CHECKING:
    from prefect_launch.runners.base import ExitStatus, Found, Labels, Phase, Runner, RunPlan, RunState
    from prefect_launch.runners.registry import make_runner, runner_class, runner_names
    from prefect_launch.runners.run import AbstractRun, RunnerRun, Status

_HOMES = {
    "AbstractRun": "run",
    "ExitStatus": "base",
    "Found": "base",
    "Labels": "base",
    "Phase": "base",
    "RunPlan": "base",
    "RunState": "base",
    "Runner": "base",
    "RunnerRun": "run",
    "Status": "run",
    "make_runner": "registry",
    "runner_class": "registry",
    "runner_names": "registry",
}

__all__ = [
    "AbstractRun",
    "ExitStatus",
    "Found",
    "Labels",
    "Phase",
    "RunPlan",
    "RunState",
    "Runner",
    "RunnerRun",
    "Status",
    "make_runner",
    "runner_class",
    "runner_names",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
