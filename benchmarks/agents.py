"""An agent in a process of its own, as `prefect-launch agent start` runs it, or as the flow `launch-agent`.

Run as `python -m benchmarks.agents loop|flow|unsampled|calls CONFIG_JSON [COUNTS_FILE]` it is that process.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from benchmarks.calls import Counted
from benchmarks.place import Place
from tests.support.processes import ChildProcess

Front = Literal["loop", "flow", "unsampled", "calls"]


def config_of(queue: str, *, max_jobs: int, name: str = "bench", **more: Any) -> dict[str, Any]:
    """Return the settings of an agent of one queue."""
    return {"name": f"{name}-{queue}", "queues": [queue], "max_jobs": max_jobs, **more}


@contextmanager
def running_agent(
    place: Place,
    queue: str,
    *,
    max_jobs: int,
    front: Front = "loop",
    name: str = "bench",
    api_url: str | None = None,
    counts: Path | None = None,
    **more: Any,
) -> Iterator[ChildProcess]:
    """Run an agent for as long as the block lasts; it is forked where the benchmarks are to be quick.

    Args:
        place: where the server and the engine are.
        queue: the agent's queue.
        max_jobs: how many items it works on at a time.
        front: what it is: `loop`, as `agent start` runs it; `flow`, the body of the flow `launch-agent`, its items
            being task runs; `unsampled`, a loop that does not look at what its runs use; `calls`, which only sends
            an agent's calls, once it is told to (`bare_server.calls_when_told`).
        name: beginning of its name.
        api_url: of the server, when it is not the place's.
        counts: the file to which it writes its requests at a signal (`benchmarks.calls`).
        more: further settings.
    """
    config = config_of(queue, max_jobs=max_jobs, name=name, **more)
    arguments = [front, json.dumps(config), *([str(counts)] if counts else [])]
    environment = {**os.environ, **({"PREFECT_API_URL": api_url} if api_url else {})}
    log = place.folder / f"agent-{config['name']}.log"
    if place.quick:
        forked = place.forked_agents.start(arguments, cwd=place.folder, environment=environment, out=log)
        process = ChildProcess.forked(forked, log, stop_signal=signal.SIGINT)
    else:
        command = [sys.executable, "-m", "benchmarks.agents", *arguments]
        process = ChildProcess(command, log, environment=environment, stop_signal=signal.SIGINT)
    try:
        yield process
    finally:
        process.stop()


def main() -> None:
    """Be the agent that the command line names, until it is interrupted."""
    from prefect_launch.cli.process import loading

    with loading():  # As `prefect-launch agent start` does.
        from benchmarks.bare_server import calls_when_told
        from prefect_launch.agent import create_and_run_agent
        from prefect_launch.agent.entry.flow import launch_agent
        from prefect_launch.client.api import Api
        from prefect_launch.runners.docker.runner import LocalContainerRunner
        from prefect_launch.runners.process.runner import LocalProcessRunner

    front, config = sys.argv[1], json.loads(sys.argv[2])
    if sys.argv[3:]:
        Counted(Path(sys.argv[3]))
    if front == "unsampled":
        LocalProcessRunner.tells_usage = LocalContainerRunner.tells_usage = False
    try:
        if front == "calls":
            calls_when_told(Api(), config["queues"][0], slots=config["max_jobs"])
        elif front == "flow":
            asyncio.run(launch_agent(config))
        else:
            create_and_run_agent(Api(), config)
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
