"""What Prefect finds of prefect-launch by its entry point: the worker type and the block types."""

from __future__ import annotations

from prefect_launch.agent.entry.worker import LaunchWorker
from prefect_launch.jobs.store import JobStore
from prefect_launch.settings.agent_config_block import LaunchAgentConfig

__all__ = ["JobStore", "LaunchAgentConfig", "LaunchWorker"]
