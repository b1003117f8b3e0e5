"""Prefect block of an agent's configuration, which the deployable agent flow reads.

It is configuration that people see and edit in the UI; what it means is the business of
`prefect_launch.settings.agent_config.AgentConfig`, which checks it when it is saved and when it is used.
"""

from __future__ import annotations

from typing import Any, ClassVar

from prefect.blocks.core import Block
from pydantic import Field, model_validator

from prefect_launch.settings.agent_config import AgentConfig, parse_agent_config


class LaunchAgentConfig(Block):
    """How an agent works: which queues it serves, and how many jobs at a time.

    Example:
        ```python
        from prefect_launch.settings.agent_config_block import LaunchAgentConfig

        LaunchAgentConfig(queues=["gpu"], max_jobs=2).save("gpu-box")
        ```
    """

    _block_type_name: ClassVar[str | None] = "Launch Agent Config"
    _block_type_slug: ClassVar[str | None] = "launch-agent-config"
    _description: ClassVar[str | None] = "The queues that a prefect-launch agent serves, and how."

    agent_name: str | None = Field(default=None, description="Its name. Left out: the name of its machine.")
    queues: list[str] = Field(default_factory=list, description="The queues that it takes items of, in turn.")
    max_jobs: int = Field(default=1, ge=-1, description="How many jobs at a time; -1 for no limit.")
    max_schedulers: int = Field(default=1, ge=-1, description="How many sweep schedulers at a time.")
    secure_mode: bool = Field(default=False, description="Let submitters give jobs inputs, and nothing else.")
    more: dict[str, Any] = Field(
        default_factory=dict, description="Any other setting of an agent, such as stopped_run_timeout or macros."
    )

    @model_validator(mode="after")
    def _validate_settings(self) -> LaunchAgentConfig:
        self.agent_config()
        return self

    def agent_config(self) -> AgentConfig:
        """Return the agent's configuration.

        Raises:
            AgentConfigError: for a wrong setting.
        """
        return parse_agent_config(
            {
                **self.more,
                "name": self.agent_name,
                "queues": list(self.queues),
                "max_jobs": self.max_jobs,
                "max_schedulers": self.max_schedulers,
                "secure_mode": self.secure_mode,
            }
        )
