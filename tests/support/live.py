"""Real agents on a real server: a queue and a job of one's own, agents as processes, items as Prefect's client sees
them."""

from __future__ import annotations

import asyncio
import copy
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import anyio

from prefect_launch import LaunchAgent, create_job, launch_add_many
from prefect_launch.agent.item.logs import LOGGER
from prefect_launch.agent.item.ownership import items_in_work
from prefect_launch.agent.recovery.lost_agents import LostAgentDetector
from prefect_launch.client.api import Api
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.client.run_queue import RunQueue
from prefect_launch.inputs.metrics import MARK
from prefect_launch.queues.session import Session
from prefect_launch.server.client import _tls
from prefect_launch.server.values import Item, ItemDraft
from tests.support.bench import holder_called
from tests.support.forked_cli import AGENT, ForkedCli
from tests.support.processes import ChildProcess

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun, Log

START = "from prefect_launch.cli import main; main()"
#: What a shell job says to report a loss of 0.5, as `log_metrics(step=3, loss=0.5)` does.
REPORT_LOSS = f"""echo '{MARK}{{"step": 3, "loss": 0.5}}'; """
#: For a hang: a busy machine may take most of it.
DEADLINE_SECONDS = 120.0
LOG_PAGE = 200
_USAGE_CHART = "usage-chart-"


class Site:
    """A queue, a job and a home for agents, that no other test uses.

    Args:
        api_url: of the server.
        folder: a folder of the test's own.
        name: of the queue and the job.
        resource: of the queue.
        queue: further settings of the queue.
    """

    def __init__(self, api_url: str, folder: Path, name: str, *, resource: str = "local-process", **queue: Any) -> None:
        self.api = Api(url=api_url, entity="acme", project="tests")
        self.api_url = api_url
        self.folder = folder
        self.name = name
        self.queue: RunQueue = self.api.create_run_queue(name, resource, **queue)

    def by(self, api_url: str) -> Site:
        """The same queue and job, reached by another way to their server."""
        other = copy.copy(self)
        other.api, other.api_url = Api(url=api_url, entity="acme", project="tests"), api_url
        return other

    def job(self, script: str, **more: Any) -> str:
        """Make a code job of a shell script; return its name."""
        code = self.folder / f"code-{time.monotonic_ns()}"
        code.mkdir(parents=True)
        (code / "run.sh").write_text(script)
        create_job(str(code), "code", name=self.name, entrypoint="sh run.sh", api=self.api, **more)
        return self.name

    def unchecked_item(self, parameters: dict[str, Any]) -> Item:
        """Make an item of somebody who lets the server check nothing."""
        draft = ItemDraft(
            name="unchecked", parameters=parameters, idempotency_key=uuid4().hex, enforce_parameter_schema=False
        )

        async def make(session: Session) -> Item:
            queue = await session.queue(self.name)
            item = await session.server.create_item(queue.deployment_id, draft)
            assert item is not None
            return item

        return self.api.call(make)

    def add(self, *specs: Mapping[str, Any], **spec: Any) -> list[QueuedRun]:
        """Put specs on the queue; each names this site's job when it names nothing."""
        wanted = specs or ({},)
        return launch_add_many(
            [{**({} if "docker" in {**one, **spec} else {"job": self.name}), **one, **spec} for one in wanted],
            self.name,
            api=self.api,
        )

    def agent(self, name: str = "box", **config: Any) -> LaunchAgent:
        """Make an agent in this process."""
        settings = {"queues": [self.name], "home": self.folder / "home", "stopped_run_timeout": 2, **config}
        return LaunchAgent(self.api, {"name": f"{self.name}-{name}", **settings})

    def work_off(self, **config: Any) -> None:
        """Run an agent until the queue is empty."""
        asyncio.run(asyncio.wait_for(self.agent(**config).loop(until_empty=True), DEADLINE_SECONDS * 2))

    def agent_process(self, name: str = "box", *options: str, jobs: int = 1, home: str = "home") -> ChildProcess:
        """Start an agent as a process of its own, through the command line, with a home in the site's folder.

        It is forked from a process that has everything imported; `close_warm_agents` ends that.
        """
        command = ["agent", "start", "-q", self.name, "-j", str(jobs), "--name", f"{self.name}-{name}", *options]
        return self.process(*command, log=self.folder / f"agent-{name}.log", home=home)

    def process(self, *command: str, log: Path, home: str = "home") -> ChildProcess:
        """Start a command of the command line as a process of its own, as `agent_process` does."""
        process = _warm_agents().start(command, cwd=Path.cwd(), environment=self._environment(home), out=log)
        return ChildProcess.forked(process, log)

    def run(self, *command: str, home: str = "home") -> subprocess.CompletedProcess[str]:
        """Run a command of the command line to its end, in a process that is forked likewise."""
        seconds = DEADLINE_SECONDS * 2
        return _warm_agents().run(command, cwd=Path.cwd(), environment=self._environment(home), seconds=seconds)

    def _environment(self, home: str) -> dict[str, str]:
        return {
            **os.environ,
            "PREFECT_API_URL": self.api_url,
            "PREFECT_LAUNCH_HOME": str(self.folder / home),
            "LAUNCH_ENTITY": self.api.entity,
            "LAUNCH_PROJECT": self.api.project,
        }

    # --- what Prefect's own client sees ---

    def flow_run(self, run: QueuedRun) -> FlowRun:
        """The item as Prefect's client reads it."""

        with prefect_client() as client:
            return client.read_flow_run(UUID(run.id))

    def states(self, run: QueuedRun) -> list[str]:
        """Names of the states that the item was in, oldest first."""

        with prefect_client() as client:
            return [state.name or "" for state in client.read_flow_run_states(UUID(run.id))]

    def log(self, run: QueuedRun) -> str:
        """The job's own lines in its item's log, as Prefect's client reads them."""
        return "\n".join(record.message for record in self._records(run) if record.name == LOGGER)

    def notes(self, run: QueuedRun) -> str:
        """What agents have written into an item's log."""
        return "\n".join(record.message for record in self._records(run) if record.name != LOGGER)

    def _records(self, run: QueuedRun) -> list[Log]:
        from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId, LogFilterTimestamp
        from prefect.client.schemas.sorting import LogSort

        found: dict[UUID, Log] = {}
        of_run = LogFilterFlowRunId(any_=[run.id])
        since: datetime | None = None
        with prefect_client() as client:
            while True:
                # Not by a count of records: those that Prefect sends late move the others.
                wanted = LogFilter(flow_run_id=of_run, timestamp=LogFilterTimestamp(after_=since))
                page = client.read_logs(wanted, sort=LogSort.TIMESTAMP_ASC, limit=LOG_PAGE)
                found |= {log.id: log for log in page}
                if len(page) < LOG_PAGE:
                    return list(found.values())
                since = page[-1].timestamp

    def artifacts(self, run: QueuedRun) -> list[Any]:
        """The artifacts that the item's page lists, as Prefect's client reads them.

        Without the chart of what the run used, which only a run of some seconds has.
        """
        return [artifact for artifact in self._listed(run) if not str(artifact.key).startswith(_USAGE_CHART)]

    def usage_charts(self, run: QueuedRun) -> list[Any]:
        """The chart of what a run used, if it has one."""
        return [artifact for artifact in self._listed(run) if str(artifact.key).startswith(_USAGE_CHART)]

    def _listed(self, run: QueuedRun) -> list[Any]:
        from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

        wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        with prefect_client() as client:
            found = client.read_artifacts(artifact_filter=wanted)
        return [artifact for artifact in found if artifact.type != "result"]


def prefect_client() -> SyncPrefectClient:
    """Prefect's own client; its certificates are loaded once for all of them, which is most of what one costs."""
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True, httpx_settings={"verify": _tls()})


@cache
def _warm_agents() -> ForkedCli:
    return ForkedCli(Path(tempfile.mkdtemp(prefix="launch-test-agents-")), AGENT)


def close_warm_agents() -> None:
    """End the process from which agents are forked."""
    if _warm_agents.cache_info().currsize:
        _warm_agents().close()
        shutil.rmtree(_warm_agents().folder)
        _warm_agents.cache_clear()


def run_deployment(name: str, **options: Any) -> FlowRun:
    """Start a deployment by Prefect's own function, and do not wait for its end.

    Args:
        name: of flow and deployment, as in `launch/train`.
        options: of `prefect.deployments.run_deployment`.

    Returns:
        The flow run.
    """
    from prefect import deployments
    from prefect.client.schemas.objects import FlowRun

    # Awaitable where a loop runs: this function is for tests without one.
    made = deployments.run_deployment(name, timeout=0, **options)
    assert isinstance(made, FlowRun)
    return made


async def settle_lost(session: Session, queue: str, **options: Any) -> None:
    """See, as another agent of a queue, that the agents that were killed are silent, until no item is in work.

    Args:
        session: an open connection.
        queue: a queue whose agents are all killed.
        options: of `LostAgentDetector`.
    """
    lost = LostAgentDetector(session, holder_called("watcher"), [queue], lost_seconds=1.0, **options)
    # A last heartbeat of an agent that was killed may still be on its way.
    with anyio.fail_after(DEADLINE_SECONDS):
        while await items_in_work(session.server, queue):
            await lost.check()
            await anyio.sleep(0.5)


def until(look: Callable[[], Any], seconds: float = DEADLINE_SECONDS) -> Any:
    """Look again and again until something true is seen.

    Args:
        look: gives what is seen.
        seconds: how long at most.

    Returns:
        What was seen.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        seen = look()
        if seen:
            return seen
        time.sleep(0.1)
    raise AssertionError(f"nothing of that within {seconds:g} s")
