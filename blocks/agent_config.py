"""The agent configuration's block type, and a ready document of it: one job at a time from the queue `default`.

`prefect block register --file blocks/agent_config.py` makes the type known to the server;
`python blocks/agent_config.py` saves the document `launch-agent-config/default`, which `flows/agent.py` uses. Edit it
in the UI.
"""

from __future__ import annotations

from prefect_launch.settings.agent_config_block import LaunchAgentConfig

default = LaunchAgentConfig(queues=["default"])

if __name__ == "__main__":
    default.save("default", overwrite=True)
