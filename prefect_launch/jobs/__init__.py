"""Jobs: their model, archive, schema, store and registry.

The names that users import are loaded on first use, so that the agent's and the runners' imports stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prefect_launch.core.lazy_names import lazy_names

if TYPE_CHECKING:
    from prefect_launch.jobs.model import Job, JobSummary
    from prefect_launch.jobs.registry import JobRegistry
    from prefect_launch.jobs.store import JobStore

_HOMES = {
    "Job": "model",
    "JobRegistry": "registry",
    "JobStore": "store",
    "JobSummary": "model",
}

__all__ = ["Job", "JobRegistry", "JobStore", "JobSummary"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
