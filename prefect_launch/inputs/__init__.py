"""Library for a job's own code: its config, its config files, its metrics and its outputs.

Works in any Python from 3.10 on with nothing else installed: no Prefect, no pydantic, and PyYAML and jsonschema only
when a YAML file or a schema is used. It imports in a few milliseconds. It talks to no server: all it reads is in the
environment that the agent made (`prefect_launch.planning.environment`), all it writes is in files.
"""

from __future__ import annotations

from prefect_launch.errors import InputError, JobCodeError, LaunchError
from prefect_launch.inputs.declare import manage_config_file, manage_wandb_config
from prefect_launch.inputs.environment import load_config, load_wandb_config
from prefect_launch.inputs.metrics import log_metrics
from prefect_launch.inputs.outputs import output_dir, save_outputs

__all__ = [
    "InputError",
    "JobCodeError",
    "LaunchError",
    "load_config",
    "load_wandb_config",
    "log_metrics",
    "manage_config_file",
    "manage_wandb_config",
    "output_dir",
    "save_outputs",
]
