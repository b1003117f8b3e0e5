"""The agent: what takes items of queues and runs them on a machine."""

from __future__ import annotations

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.config import AgentConfig, resolve_agent_config
from prefect_launch.agent.start import create_and_run_agent

__all__ = ["AgentConfig", "LaunchAgent", "create_and_run_agent", "resolve_agent_config"]
