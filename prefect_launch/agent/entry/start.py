"""Starting an agent from plain Python."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.settings.agent_config import AgentConfig

if TYPE_CHECKING:
    from prefect_launch.client.api import Api


def create_and_run_agent(api: Api, config: AgentConfig | Mapping[str, Any], *, until_empty: bool = False) -> None:
    """Make an agent and run its loop until it is stopped.

    Args:
        api: the server.
        config: the agent's settings.
        until_empty: end when its queues hold nothing and all its work is done.

    Raises:
        AgentConfigError: for a wrong setting, or none of its queues given.
        NotFoundError: when a queue does not exist.
        KeyboardInterrupt: when it is asked to stop by the keyboard.
    """
    agent = LaunchAgent(api, config)
    asyncio.run(agent.loop(until_empty=until_empty))
