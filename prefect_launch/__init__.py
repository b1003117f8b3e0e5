"""prefect-launch: queue any job on a Prefect work pool; agents build it, run it and report it to the Prefect UI.

Every public name is imported on first use (PEP 562), so that `prefect_launch.inputs`, which a job's own code imports,
stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect_launch.agent import LaunchAgent, create_and_run_agent
    from prefect_launch.client.api import Api
    from prefect_launch.client.create_job import acreate_job, create_job
    from prefect_launch.client.explain import Explanation, aexplain_launch, explain_launch
    from prefect_launch.client.job_block import LaunchJob
    from prefect_launch.client.launch_add import alaunch_add, alaunch_add_many, launch_add, launch_add_many
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.client.run_queue import RunQueue
    from prefect_launch.client.runs_table import runs_table
    from prefect_launch.direct.launch import alaunch, launch
    from prefect_launch.errors import ExecutionError, LaunchError
    from prefect_launch.inputs import load_config, load_wandb_config, manage_config_file, manage_wandb_config
    from prefect_launch.jobs import JobStore
    from prefect_launch.runners.run import AbstractRun
    from prefect_launch.settings.agent_config_block import LaunchAgentConfig
    from prefect_launch.sweeps.sweep import Sweep, asweep, sweep

_HOMES = {
    "AbstractRun": "runners.run",
    "Api": "client.api",
    "ExecutionError": "errors",
    "Explanation": "client.explain",
    "JobStore": "jobs",
    "LaunchAgent": "agent",
    "LaunchAgentConfig": "settings.agent_config_block",
    "LaunchError": "errors",
    "LaunchJob": "client.job_block",
    "QueuedRun": "client.queued_run",
    "RunQueue": "client.run_queue",
    "Sweep": "sweeps.sweep",
    "acreate_job": "client.create_job",
    "aexplain_launch": "client.explain",
    "alaunch": "direct.launch",
    "alaunch_add": "client.launch_add",
    "alaunch_add_many": "client.launch_add",
    "asweep": "sweeps.sweep",
    "create_and_run_agent": "agent",
    "create_job": "client.create_job",
    "explain_launch": "client.explain",
    "launch": "direct.launch",
    "launch_add": "client.launch_add",
    "launch_add_many": "client.launch_add",
    "load_config": "inputs",
    "load_wandb_config": "inputs",
    "manage_config_file": "inputs",
    "manage_wandb_config": "inputs",
    "runs_table": "client.runs_table",
    "sweep": "sweeps.sweep",
}

__all__ = [
    "AbstractRun",
    "Api",
    "ExecutionError",
    "Explanation",
    "JobStore",
    "LaunchAgent",
    "LaunchAgentConfig",
    "LaunchError",
    "LaunchJob",
    "QueuedRun",
    "RunQueue",
    "Sweep",
    "__version__",
    "acreate_job",
    "aexplain_launch",
    "alaunch",
    "alaunch_add",
    "alaunch_add_many",
    "asweep",
    "create_and_run_agent",
    "create_job",
    "explain_launch",
    "launch",
    "launch_add",
    "launch_add_many",
    "load_config",
    "load_wandb_config",
    "manage_config_file",
    "manage_wandb_config",
    "runs_table",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("prefect-launch")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
