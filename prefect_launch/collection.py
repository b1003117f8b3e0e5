"""Prefect collection: the worker type and the block types, which Prefect finds by an entry point."""

from __future__ import annotations

from prefect_launch.agent.entry.worker import LaunchWorker
from prefect_launch.client.job_block import LaunchJob
from prefect_launch.jobs.store import JobStore
from prefect_launch.settings.agent_config_block import LaunchAgentConfig

__all__ = ["JobStore", "LaunchAgentConfig", "LaunchJob", "LaunchWorker"]
