"""The flow `launch-agent`: an agent's loop as a flow run, so that its page in the UI is a time line of the machine."""

from __future__ import annotations

import gc
import os
import select
import sys
import threading
from typing import Any

from prefect import flow

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.client.api import Api


def outlive_reader(*descriptors: int) -> None:
    """Write to nowhere once nobody reads what this process writes, as when the service of the agent was killed.

    Prefect's console would end the process at its next line.

    Args:
        descriptors: where this process writes to.
    """

    def watch(descriptor: int) -> None:
        reader = select.poll()
        reader.register(descriptor, 0)  # A pipe end without a reader is an error, which poll() always reports.
        reader.poll()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)

    for descriptor in descriptors:
        threading.Thread(target=watch, args=(descriptor,), name="outlive-reader", daemon=True).start()


@flow(name="launch-agent", persist_result=False, validate_parameters=False)
async def launch_agent(
    config: dict[str, Any],
    api: Api | dict[str, Any] | None = None,
    until_empty: bool = False,
    max_runtime_seconds: float | None = None,
) -> None:
    """Run an agent for a while; each item that it runs is a task run `run_job`.

    Its jobs continue when the run ends, and the next run of an agent of this name takes them up.

    Args:
        config: the agent's settings; see `prefect_launch.settings.agent_config.AgentConfig`.
        api: the server; by default Prefect's own setting.
        until_empty: end when the queues hold nothing and all work is done.
        max_runtime_seconds: how long the agent runs; without it, until it is cancelled.

    Raises:
        AgentConfigError: for a wrong setting.
        NotFoundError: when a queue does not exist.
    """
    if os.environ.get("PREFECT__FLOW_RUN_ID"):  # A process of its own, whose output its service reads.
        outlive_reader(sys.stdout.fileno(), sys.stderr.fileno())
        gc.freeze()  # What Prefect has loaded stays: a collection that goes through it holds items up.
    server = api if isinstance(api, Api) else Api.model_validate(api or {})
    agent = LaunchAgent(server, config)
    await agent.loop(until_empty=until_empty, max_runtime_seconds=max_runtime_seconds)
