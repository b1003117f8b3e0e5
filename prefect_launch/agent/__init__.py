"""Agent: takes items from queues and runs them on a machine."""

from __future__ import annotations

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.entry.start import create_and_run_agent
from prefect_launch.settings.agent_config import AgentConfig, resolve_agent_config

__all__ = ["AgentConfig", "LaunchAgent", "create_and_run_agent", "resolve_agent_config"]
