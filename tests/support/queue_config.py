"""A queue's configuration, as its owner writes it, for tests that need no queue."""

from __future__ import annotations

from typing import Any

from prefect_launch.policy.template import QueueConfig
from prefect_launch.queues import options
from prefect_launch.queues.options import QueueOptions


def make_config(resource: str, config: Any = None, template_variables: Any = None, **more: Any) -> QueueConfig:
    """Return what `make_config` makes of a queue of this resource."""
    asked = QueueOptions("q", resource, config=config, template_variables=template_variables, **more)
    return options.make_config(asked)
