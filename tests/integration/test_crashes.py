"""An agent that is killed at any call outside, between its claim of an item and its end: the next one goes on.

Each step is one life of an agent in a process of its own, ended by SIGKILL before or after a call to the server, the
runner or the job store, and the life of the next agent of its name. What was started ends while no agent is there.

A death before a call, or after one that only reads, leaves the same outside as a death after the last call that changed
something. Those are the steps here, with the moments before the calls to the runner, between which the run's folder
changes. At the calls to the server and the store the runner makes no difference: containers die at the runner's calls.
`make soak` takes every step of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.crash_harness import WANTED, CrashHarness, crash_at
from tests.support.mortal_agent import Lives

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


@pytest.fixture
def harness(
    request: pytest.FixtureRequest, prefect_server: Any, lives: Lives, tmp_path: Path, unique: str
) -> CrashHarness:
    if request.param == "processes":
        return CrashHarness(prefect_server, lives, "local-process", tmp_path, unique)
    config = {"env": {"COUNT": "/count"}, "volume": [f"{tmp_path}:/count"]}
    request.getfixturevalue("engine")
    image = request.getfixturevalue("shell_image")
    with_code = request.param == "code in containers"
    return CrashHarness(
        prefect_server, lives, "local-container", tmp_path, unique, image, with_code=with_code, config=config
    )


def differs(step: str, resource: str) -> bool:
    """Whether what is outside at a step differs from the step before it, and from what another resource has shown."""
    moment, call, _ = step.split()
    is_new = resource == "local-process" or call in RUNNERS
    return is_new and call in (CHANGES if moment == "after" else AFTER_FILES)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.soak)], ids=["what differs", "every"])
@pytest.mark.parametrize("harness", ["processes", pytest.param("containers", marks=pytest.mark.engine)], indirect=True)
def test_agent_killed_at_any_step_runs_the_item_once_and_tells_all_of_it(harness: CrashHarness, every: bool) -> None:
    site = harness.site("unharmed")
    harness.add(site)
    harness.live(site)  # The environment is there from here on.
    other = harness.site("unharmed-too", "")
    run = harness.add(other)
    unharmed = harness.live(other)
    assert unharmed.status == 0, unharmed.log
    assert harness.see(other, run) == WANTED
    assert set(unharmed.calls) >= AT_LEAST
    steps = [step for step in unharmed.calls if every or differs(step, harness.resource)]
    assert len(steps) > (15 if harness.resource == "local-process" else 6)
    crash_at(harness, steps)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("harness", ["processes"], indirect=True)
def test_agent_killed_while_it_makes_an_environment_runs_the_item_once(harness: CrashHarness) -> None:
    crash_at(harness, BUILD, home="fresh")


@pytest.mark.engine
@pytest.mark.timeout(300)
@pytest.mark.parametrize("harness", ["code in containers"], indirect=True)
def test_agent_killed_while_it_fills_a_container_runs_the_item_once(harness: CrashHarness) -> None:
    crash_at(harness, FILL)
