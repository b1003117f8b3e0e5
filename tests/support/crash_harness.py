"""Crash harness: it kills agents at a step, lets the next one continue, and compares the end of the item."""

from __future__ import annotations

import contextvars
import time
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_launch.client.queued_run import QueuedRun
from tests.support.live import Site, until
from tests.support.mortal_agent import Life, Lives

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

KILLED = 137
#: Steps that are taken at the same time, each with a queue and an agent of its own.
AT_ONCE = 4
#: Counts its start and its end in a place that no agent knows of. Its two lines are far enough apart for two requests.
JOB = (
    'echo "begins $LAUNCH_QUEUE" >> "$COUNT/count"; echo one; echo \'{"acc": 1}\' > "$LAUNCH_OUTPUT_DIR/outputs.json";'
    ' sleep 0.7; echo two; echo "ends $LAUNCH_QUEUE" >> "$COUNT/count"; exit 5'
)


class CrashHarness:
    """A fault-injection harness: agents die at a step, and the next ones continue.

    Args:
        server: the Prefect server.
        lives: makes the agents live.
        resource: of the queues.
        folder: the agents' home is in it, and the jobs' count.
        name: begins the names of all queues.
        image: of containers.
        with_code: whether code is put into the image.
        config: of the queues; by it the jobs see the folder as `$COUNT`. By default that of processes.
        wanted: what is to be seen afterwards; by default all that there is.

    Attributes:
        may_miss: whether a life may come to its end before a step, since how many calls it makes is a matter of time.
        deaths: how many lives have ended at their step.
    """

    def __init__(
        self,
        server: PrefectServerProcess,
        lives: Lives,
        resource: str,
        folder: Path,
        name: str,
        image: str = "",
        *,
        with_code: bool = False,
        config: Mapping[str, Any] | None = None,
        wanted: Collection[str] = (),
    ) -> None:
        self.lives = lives
        self._config = config or {"env": {"COUNT": str(folder)}}
        self.wanted = {key: WANTED[key] for key in wanted or WANTED}
        self.may_miss = False
        self.deaths = 0
        self.resource = resource
        self._server = server
        self._folder = folder
        self._name = name
        self._image = image
        self._count = folder / "count"
        self._count.touch()
        self._job = ""
        if with_code or not image:
            self._job = self.site("job").job(JOB, base_image=image or None)

    def site(self, name: str, home: str = "") -> Site:
        return Site(
            self._server.api_url,
            self._folder / home,
            f"{self._name}-{name}",
            resource=self.resource,
            config=self._config,
        )

    def live(self, site: Site, dies_at: str | None = None) -> Life:
        settings = {"name": f"{site.name}-box", "queues": [site.name], "home": str(site.folder / "home"), "max_jobs": 1}
        return self.lives.live(self.resource, {**settings, "api_url": site.api_url}, dies_at)

    def add(self, site: Site) -> QueuedRun:
        container = {"docker": {"docker_image": self._image}, "overrides": {"entry_point": ["sh", "-c", JOB]}}
        (run,) = site.add({"job": self._job} if self._job else container)
        return run

    def counted(self, site: Site) -> list[str]:
        lines = [line.split() for line in self._count.read_text().splitlines()]
        return [word for word, queue in lines if queue == site.name]

    def crash_and_recover(self, site: Site, step: str) -> list[str]:
        """Let an agent die at a step and the next one go on; return what is wrong with the end."""
        run = self.add(site)
        first = self.live(site, step)
        time.sleep(0.15)
        if self.counted(site):
            until(lambda: len(self.counted(site)) > 1)
        self.deaths += first.status == KILLED
        second = self.live(site)
        seen = self.see(site, run)
        # How many requests a log takes is a matter of time; an agent that made fewer has not come to the step.
        dies = first.status if "write_logs" in step or (self.may_miss and first.status == 0) else KILLED
        wanted = self.wanted | {"lives": (dies, 0)}
        found = seen | {"lives": (first.status, second.status)}
        wrong = [f"{key}: {found[key]!r}, not {wanted[key]!r}" for key in wanted if found[key] != wanted[key]]
        return [f"{step}: {'; '.join(wrong)}\n{site.states(run)} {run.message}\n{second.log}"] if wrong else []

    def see(self, site: Site, run: QueuedRun) -> dict[str, Any]:
        """What can be seen of an item afterwards."""
        flow_run = site.flow_run(run)
        state = flow_run.state
        kinds = sorted(str(artifact.type) for artifact in site.artifacts(run))
        return {
            "state": (flow_run.state_name, flow_run.run_count, site.states(run).count("Running")),
            "exit code": (state.data or {}).get("exit_code") if state and isinstance(state.data, dict) else None,
            "log": site.log(run),
            "job": self.counted(site),
            "artifacts": kinds,
            "kept": site.api.call(lambda session: session.jobs.read_output(run.id, 1, "job.log")),
        }


WANTED: dict[str, Any] = {
    "state": ("Failed", 1, 1),
    "exit code": 5,
    "log": "one\ntwo",
    "job": ["begins", "ends"],
    "artifacts": ["markdown", "table"],
    "kept": b"one\ntwo\n",
}


def crash_at(harness: CrashHarness, steps: Sequence[str], home: str = "") -> None:
    def take(number: int) -> list[str]:
        return harness.crash_and_recover(harness.site(str(number), home and f"{home}-{number}"), steps[number])

    # Prefect's settings are the context's: a thread has none of its own.
    contexts = [contextvars.copy_context() for _ in steps]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda number: contexts[number].run(take, number), range(len(steps)))
        wrong = [one for each in found for one in each]
    assert not wrong, "\n\n".join(wrong)
    assert harness.deaths > len(steps) // 2, "most lives came to their end before their step"
