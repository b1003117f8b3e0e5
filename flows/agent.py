"""An agent as a deployment: each run is a shift, shorter than the interval of its schedule, and the next one goes on.

Deployed by `prefect.yaml` for machines that a `prefect worker` already serves. `prefect-launch agent serve` does the
same with no worker.
"""

from __future__ import annotations

from prefect import flow

from prefect_launch import Api, LaunchAgent
from prefect_launch.settings.agent_config_block import LaunchAgentConfig


@flow(name="launch-agent", persist_result=False)
async def agent(config: str = "default", max_runtime_seconds: float = 590) -> None:
    """Take items of the agent's queues and run them on this machine.

    Args:
        config: name of the `launch-agent-config` block document with the agent's queues.
        max_runtime_seconds: length of the shift; what runs at its end goes on.
    """
    block: LaunchAgentConfig = await LaunchAgentConfig.aload(config)
    await LaunchAgent(Api(), block.agent_config()).loop(max_runtime_seconds=max_runtime_seconds)
