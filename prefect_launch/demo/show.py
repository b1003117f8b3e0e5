"""What the demo shows, in the order that a user would do it: queue, job, form, three items, an agent, the results.

All of it is the public library; only the table and the words are the demo's own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from prefect.logging.handlers import APILogHandler
from rich.console import Console

from prefect_launch.agent.agent import LaunchAgent
from prefect_launch.agent.entry.flow import launch_agent
from prefect_launch.client.api import Api, default_api
from prefect_launch.client.create_job import create_job
from prefect_launch.client.launch_add import launch_add
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.output_limits import OUTPUTS_FILE
from prefect_launch.core.states import StateType
from prefect_launch.demo.table import Board, Row
from prefect_launch.errors import ExecutionError, NotFoundError
from prefect_launch.queues.deployment import deploy_job
from prefect_launch.queues.session import Session
from prefect_launch.settings.agent_config import default_home

QUEUE: Final = "demo"
AGENT: Final = "demo"
JOB: Final = "digits"
MAX_JOBS: Final = 2
#: Three networks, from one that is too small to one that is large enough.
RUNS: Final[Mapping[str, Mapping[str, Any]]] = {
    "digits-small": {"hidden_units": 4, "epochs": 40},
    "digits-medium": {"hidden_units": 32, "activation": "tanh"},
    "digits-large": {"hidden_units": 256, "epochs": 40},
}
#: One thread a run: two at a time do not fight over the cores.
_QUEUE_CONFIG: Final = {"env": {"OMP_NUM_THREADS": "1"}}
_LOOK_SECONDS: Final = 0.5
_AGENT_LOG: Final = "agent.log"


class Show:
    """One demo on a server that answers.

    Args:
        console: where it is shown.
        folder: the job's code.
        home: the folder of the demo's own server; `None` on a foreign one.
    """

    def __init__(self, console: Console, folder: Path, *, home: Path | None) -> None:
        self._console = console
        self._folder = folder
        self._home = home
        self._api: Api = default_api()
        self._log = (home or default_home()) / _AGENT_LOG
        self._config = {"name": AGENT, "queues": [QUEUE], "max_jobs": MAX_JOBS}

    def run(self, *, keep: bool) -> None:
        """Show it.

        Args:
            keep: stay until Ctrl-C.

        Raises:
            ExecutionError: when a run did not complete.
        """
        form = self._prepare()
        added = [self._add(name, inputs) for name, inputs in RUNS.items()]
        self._write_agent_log()
        rows = asyncio.run(self._run_agent(added))
        self._judge(rows)
        if keep:
            self._stay(form)
        elif self._home is not None:
            self._console.print(
                f"The server is stopped. To look around in its UI: [bold]{_program()} demo --keep[/]", soft_wrap=True
            )

    # --- what a user does ---

    def _prepare(self) -> str:
        """Make queue, job and form; returns the address of the form."""
        try:
            queue = self._api.run_queue(QUEUE)
        except NotFoundError:
            queue = self._api.create_run_queue(QUEUE, "local-process", config=_QUEUE_CONFIG)
        if self._home is not None:
            self._clear_queue()
        job = create_job(
            self._folder, "code", name=JOB, entrypoint="python train.py", schema="inputs:Inputs",
            description="Train a small neural network on hand-written digits.", api=self._api,
        )  # fmt: skip
        _, deployment, _ = self._api.call(lambda session: deploy_job(session, JOB, QUEUE))
        self._console.print(
            f"Server  {self._api.ui_url}\nQueue   {queue.name} (local-process)\nJob     {job.reference}"
        )
        return f"{self._api.ui_url}/deployments/deployment/{deployment}/run"

    def _clear_queue(self) -> None:
        """Take away what a demo that was broken off has left waiting."""
        for left in self._api.items(queue=QUEUE, states=[StateType.SCHEDULED]):
            left.cancel()

    def _add(self, name: str, inputs: Mapping[str, Any]) -> QueuedRun:
        return launch_add(job=JOB, queue_name=QUEUE, name=name, config={"overrides": {"run_config": dict(inputs)}})

    def _write_agent_log(self) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(self._log, mode="w")
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S%z")
        )
        logging.getLogger().addHandler(handler)
        logging.getLogger("prefect_launch").setLevel(logging.INFO)

    # --- the agent, and what is seen of it ---

    async def _run_agent(self, added: list[QueuedRun]) -> list[Row]:
        agent = asyncio.create_task(launch_agent(self._config, until_empty=True))
        try:
            with Board(self._console) as board:
                while not agent.done():
                    await asyncio.wait({agent}, timeout=_LOOK_SECONDS)
                    rows = await self._rows(added)
                    board.show(rows)
            await agent
        finally:
            agent.cancel()
            await asyncio.wait({agent})
            # What Prefect still has to send goes now: at the exit its server is gone, and it would try for a minute.
            await APILogHandler.aflush()
        return rows

    async def _rows(self, added: list[QueuedRun]) -> list[Row]:
        async def read(session: Session) -> list[Row]:
            found = await session.server.list_items(ids=[UUID(run.id) for run in added])
            items = {str(item.id): item for item in found}
            return [
                Row(items[run.id], inputs, await _outputs(session, items[run.id]))
                for run, inputs in zip(added, RUNS.values(), strict=True)
            ]

        return await self._api.acall(read)

    def _judge(self, rows: list[Row]) -> None:
        bad = [row for row in rows if row.item.state_type is not StateType.COMPLETED]
        if bad:
            first = bad[0].item
            raise ExecutionError(
                f"{len(bad)} of {len(rows)} runs did not complete. {first.name} is {first.state_name}:"
                f" {first.message or 'no reason given'} The agent's log is {self._log}."
            )
        best = max(rows, key=lambda row: row.accuracy)
        self._console.print(f"Best: [bold]{best.item.name}[/], with {best.accuracy:.2%} of the test images right.")

    def _stay(self, form: str) -> None:
        def say(line: str) -> None:
            self._console.print(line, soft_wrap=True)

        address = self._api.ui_url
        say(f"\nLook around:\n  {address}/runs  every run, with its log and its outputs")
        say(f"  {address}/work-pools/work-pool/{QUEUE}  the queue and its agent")
        say(f"  {form}  the job's form")
        say("\nThe command line, in another terminal:")
        if self._home is not None:
            say(f"  export PREFECT_API_URL={address}/api PREFECT_HOME={self._home}")
        say(f"  {_program()} add -j {JOB} -q {QUEUE} --set hidden_units=128")
        say("\nThe agent runs what you queue. Ctrl-C ends it" + (" and the server." if self._home else "."))
        try:
            asyncio.run(LaunchAgent(self._api, self._config).loop())
        except KeyboardInterrupt:
            say("Stopped.")


async def _outputs(session: Session, item: Any) -> dict[str, Any]:
    if item.state_type is not StateType.COMPLETED:
        return {}
    content = await session.jobs.read_output(str(item.id), max(1, item.run_count), OUTPUTS_FILE)
    return dict(json.loads(content)) if content else {}


def _program() -> str:
    """Return this program as it was called: a path when it is in this folder, such as `.venv/bin/prefect-launch`."""
    called = Path(sys.argv[0])
    if called.name != "prefect-launch":
        return "prefect-launch"
    return os.path.relpath(called) if Path.cwd() in called.absolute().parents else called.name
