"""Ctrl-C and SIGTERM during a build: what was begun is ended, nothing of it is left, and the next try works."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
import yaml

from tests.support.builds import BuildSite
from tests.support.live import START, until
from tests.support.processes import ChildProcess
from tests.support.stopped_builds import SLOW, build_programs, build_steps, build_steps_cut_short, live_leases

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.docker_registry import DockerRegistry
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

#: Long enough for a test to see that its build was ended by it, and did not end by itself.
STEP_SECONDS = 250
PROMPT_SECONDS = 100
#: In which an engine that is busy has ended a step that nobody waits for.
SETTLE_SECONDS = 60


@pytest.fixture
def site(prefect_server: PrefectServerProcess, engine: DockerEngine, tmp_path: Path, unique: str) -> BuildSite:
    return BuildSite(prefect_server.api_url, tmp_path, unique, resource="local-container")


def slow_job(site: BuildSite, image: str, backend: str, seconds: float = STEP_SECONDS) -> Path:
    """Make a job whose image takes long; return the config of who builds it."""
    dockerfile = SLOW.format(image=image, seconds=seconds, mark=site.name)
    site.code_job({"main.py": "print('ran')", "Dockerfile": dockerfile}, dockerfile="Dockerfile")
    config = site.folder / "user/.config/prefect-launch/agent.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(yaml.safe_dump({"builder": {"base_image": image, "backend": backend}}))
    return config


def built_images(engine: DockerEngine, output: str) -> list[str]:
    """The names of images that were begun, as the output of who builds tells them, and that are there."""
    words = output.split()
    begun = {words[place + 1] for place, word in enumerate(words[:-1]) if word == "Building"}
    assert begun, output
    client = engine.client()
    try:
        return sorted(begun & {tag for image in client.images.list() for tag in image.tags})
    finally:
        client.close()


def test_first_signal_of_a_terminal_lets_an_agents_build_end(site: BuildSite, python_image: str) -> None:
    config = slow_job(site, python_image, "buildkit", seconds=4)
    (run,) = site.add()
    agent = site.agent_process("box", "--config", str(config))
    try:
        until(lambda: build_steps(site.name))
        os.killpg(agent.pid, signal.SIGINT)  # as a terminal does: to the agent and to all that it has started
        assert agent.wait(120) == 128 + signal.SIGINT
    finally:
        agent.kill()
    assert "Draining" in agent.tail()
    assert site.states(run)[-1] == "Completed", run.message


@pytest.mark.parametrize(("number", "backend"), [(signal.SIGINT, "buildkit"), (signal.SIGTERM, "engine")])
def test_second_signal_ends_an_agents_build_and_the_next_agent_makes_it(
    site: BuildSite, engine: DockerEngine, python_image: str, number: signal.Signals, backend: str
) -> None:
    config = slow_job(site, python_image, backend)
    (run,) = site.add()
    agent = site.agent_process("box", "--config", str(config))
    try:
        until(lambda: build_steps(site.name))
        os.killpg(agent.pid, number)
        until(lambda: "Draining" in agent.tail())
        os.killpg(agent.pid, number)
        assert agent.wait(PROMPT_SECONDS) == 128 + number
    finally:
        agent.kill()
    assert "Traceback" not in agent.tail()
    until(lambda: not build_steps(site.name), PROMPT_SECONDS)
    assert build_programs() == []
    assert live_leases(site.folder / "home") == []
    assert built_images(engine, site.notes(run)) == []
    with build_steps_cut_short(site.name):
        site.work_off(builder={"backend": backend})
    assert site.states(run)[-1] == "Completed", run.message


@pytest.mark.parametrize(("number", "backend"), [(signal.SIGINT, "buildkit"), (signal.SIGTERM, "engine")])
def test_add_that_is_stopped_while_it_builds_says_so_and_leaves_nothing(
    site: BuildSite,
    engine: DockerEngine,
    python_image: str,
    open_registry: DockerRegistry,
    number: signal.Signals,
    backend: str,
) -> None:
    slow_job(site, python_image, backend)
    repository = f"{open_registry.host}/team/{site.name}"
    command = ["add", "-j", f"acme/tests/{site.name}", "-q", site.name, "--build", "--repository", repository]
    environment = {
        **os.environ,
        "PREFECT_API_URL": site.api_url,
        "HOME": str(site.folder / "user"),
        "PREFECT_LAUNCH_HOME": str(site.folder / "home"),
    }

    def add(log: str) -> ChildProcess:
        # A program that is started in the background of a script hears no Ctrl-C; the tests may be.
        program = ["env", "--default-signal=INT", sys.executable, "-c", START, *command]
        return ChildProcess(program, site.folder / log, environment=environment)

    first = add("first.log")
    try:
        until(lambda: build_steps(site.name))
        os.killpg(first.pid, number)
        assert first.wait(PROMPT_SECONDS) == 128 + number
    finally:
        first.kill()
    assert first.tail().splitlines()[-1].startswith("Stopped: the image is not finished, and nothing is queued.")
    assert "Traceback" not in first.tail()
    until(lambda: not build_steps(site.name), SETTLE_SECONDS)
    assert build_programs() == []
    assert live_leases(site.folder / "home") == []
    assert built_images(engine, first.tail()) == []
    assert httpx.get(f"http://{open_registry.host}/v2/team/{site.name}/tags/list").status_code == 404
    assert site.api.items(queue=site.name) == []
    assert [job.name for job in site.api.jobs("acme", "tests") if site.name in job.name] == [site.name]
    second = add("second.log")
    try:
        with build_steps_cut_short(site.name):
            assert second.wait(200) == 0, second.tail()
    finally:
        second.kill()
    assert "builds this image already" not in second.tail()
    (run,) = site.api.items(queue=site.name)
    assert run.item.parameters["job"] == f"acme/tests/{site.name}-image:v0"
