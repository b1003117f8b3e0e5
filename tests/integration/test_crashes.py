"""An agent that is killed at any call outside, between its claim of an item and its end: the next one goes on.

Each step is one life of an agent in a process of its own, ended by SIGKILL before or after a call to the server, the
runner or the job store, and the life of the next agent of its name. What was started ends while no agent is there.

A death before a call, or after one that only reads, leaves the same outside as a death after the last call that changed
something. Those are the steps here, with the moments before the calls to the runner, between which the run's folder
changes. At the calls to the server and the store the runner makes no difference: containers die at the runner's calls.
`make soak` takes every step of both.
"""

from __future__ import annotations

import contextvars
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

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


#: Calls without which a life was no life at all; which others there are, a life that nothing ends shows.
AT_LEAST = {
    *("after propose 1", "before create 1", "after create 1", "after record_infrastructure 1", "before start 1"),
    *("after start 1", "after propose 2", "before watch 1", "after write_logs 1", "after put_outputs 1"),
    *("after create_artifact 1", "after propose 3", "before remove 1", "after remove 1"),
}
#: The way of an item whose environment is not there yet.
BUILD = ["before propose 2", "after propose 2", "before prepare 1", "after prepare 1", "before propose 3"]
#: The way of a container into which code is put.
FILL = ["before put_archive 1", "after put_archive 1", "before changed_at 1", "after changed_at 1"]
#: Calls that change something outside the agent.
CHANGES = {
    *("propose", "record_infrastructure", "write_logs", "create_artifact", "put_outputs"),
    *("prepare", "create", "start", "remove", "put_archive"),
}
#: Calls to the runner, which are not the same outside for a process and a container.
RUNNERS = {"prepare", "create", "start", "watch", "remove", "put_archive"}
#: Calls before which the agent has changed the folder of the run.
AFTER_FILES = {"create", "start", "watch", "remove", "put_outputs"}


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    lives = Lives(tmp_path_factory.mktemp("lives"))
    yield lives
    lives.close()


class Stage:
    """A place where agents die and the next ones go on.

    Args:
        server: the Prefect server.
        lives: makes the agents live.
        resource: of the queues.
        folder: the agents' home is in it, and the jobs' count.
        name: begins the names of all queues.
        image: of containers.
        with_code: whether code is put into the image.
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
    ) -> None:
        self.lives = lives
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
        config: Mapping[str, Any] = {"env": {"COUNT": str(self._folder)}}
        if self._image:
            config = {"env": {"COUNT": "/count"}, "volume": [f"{self._folder}:/count"]}
        return Site(
            self._server.api_url, self._folder / home, f"{self._name}-{name}", resource=self.resource, config=config
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

    def dies_and_goes_on(self, site: Site, step: str) -> list[str]:
        """Let an agent die at a step and the next one go on; return what is wrong with the end."""
        run = self.add(site)
        first = self.live(site, step)
        time.sleep(0.15)
        if self.counted(site):
            until(lambda: len(self.counted(site)) > 1)
        second = self.live(site)
        seen = self.see(site, run)
        # How many requests a log takes is a matter of time; an agent that made fewer has not come to the step.
        dies = first.status if "write_logs" in step else KILLED
        wanted = WANTED | {"lives": (dies, 0)}
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


@pytest.fixture
def stage(request: pytest.FixtureRequest, prefect_server: Any, lives: Lives, tmp_path: Path, unique: str) -> Stage:
    if request.param == "processes":
        return Stage(prefect_server, lives, "local-process", tmp_path, unique)
    request.getfixturevalue("engine")
    image = request.getfixturevalue("shell_image")
    with_code = request.param == "code in containers"
    return Stage(prefect_server, lives, "local-container", tmp_path, unique, image, with_code=with_code)


def die_at(stage: Stage, steps: Sequence[str], home: str = "") -> None:
    def take(number: int) -> list[str]:
        return stage.dies_and_goes_on(stage.site(str(number), home and f"{home}-{number}"), steps[number])

    # Prefect's settings are the context's: a thread has none of its own.
    contexts = [contextvars.copy_context() for _ in steps]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = pool.map(lambda number: contexts[number].run(take, number), range(len(steps)))
        wrong = [one for each in found for one in each]
    assert not wrong, "\n\n".join(wrong)


def differs(step: str, resource: str) -> bool:
    """Whether what is outside at a step differs from the step before it, and from what another resource has shown."""
    moment, call, _ = step.split()
    is_new = resource == "local-process" or call in RUNNERS
    return is_new and call in (CHANGES if moment == "after" else AFTER_FILES)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["what differs", "every"])
@pytest.mark.parametrize("stage", ["processes", pytest.param("containers", marks=pytest.mark.engine)], indirect=True)
def test_agent_killed_at_any_step_runs_the_item_once_and_tells_all_of_it(stage: Stage, every: bool) -> None:
    site = stage.site("unharmed")
    stage.add(site)
    stage.live(site)  # The environment is there from here on.
    other = stage.site("unharmed-too", "")
    run = stage.add(other)
    unharmed = stage.live(other)
    assert unharmed.status == 0, unharmed.log
    assert stage.see(other, run) == WANTED
    assert set(unharmed.calls) >= AT_LEAST
    steps = [step for step in unharmed.calls if every or differs(step, stage.resource)]
    assert len(steps) > (15 if stage.resource == "local-process" else 6)
    die_at(stage, steps)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", ["processes"], indirect=True)
def test_agent_killed_while_it_makes_an_environment_runs_the_item_once(stage: Stage) -> None:
    die_at(stage, BUILD, home="fresh")


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.parametrize("stage", ["code in containers"], indirect=True)
def test_agent_killed_while_it_fills_a_container_runs_the_item_once(stage: Stage) -> None:
    die_at(stage, FILL)
