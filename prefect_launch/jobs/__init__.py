"""The job artifact: what a job is, how it is made, stored and found again.

The names that users meet are imported on first use, so that the agent's and the runners' imports stay light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_launch.jobs.create import acreate_job, create_job
    from prefect_launch.jobs.model import Job, JobSummary
    from prefect_launch.jobs.registry import JobRegistry
    from prefect_launch.jobs.store import JobStore

_HOMES = {
    "Job": "model",
    "JobRegistry": "registry",
    "JobStore": "store",
    "JobSummary": "model",
    "acreate_job": "create",
    "create_job": "create",
}

__all__ = ["Job", "JobRegistry", "JobStore", "JobSummary", "acreate_job", "create_job"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
