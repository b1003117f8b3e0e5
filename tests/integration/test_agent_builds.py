"""Jobs of code that run in images: built once, from the queue to the end, on a real server and a real engine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest
import yaml

from prefect_launch import launch
from prefect_launch.core.states import StateType
from tests.integration.test_housekeeping import keep_house
from tests.support.agent_thread import running
from tests.support.builds import BuildSite
from tests.support.live import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = pytest.mark.engine

MAIN = """
import json, os, six
import prefect_launch.inputs
print("six", six.__version__, "as", os.getuid(), "in", os.getcwd())
open("scratch.txt", "w").write("the folder of the code can be written to")
with open(os.path.join(os.environ["LAUNCH_OUTPUT_DIR"], "outputs.json"), "w") as file:
    json.dump({"six": six.__version__}, file)
"""
SLOW_SETUP = "import time; from setuptools import setup; time.sleep(6); setup(name='slow', py_modules=[])"
SLOW_DOCKERFILE = "FROM {image}\nWORKDIR /app\nCOPY . .\nRUN echo slow step; sleep {seconds}\n"


@pytest.fixture
def site(
    prefect_server: PrefectServerProcess, engine: DockerEngine, python_image: str, tmp_path: Path, unique: str
) -> BuildSite:
    return BuildSite(prefect_server.api_url, tmp_path, unique, resource="local-container")


@pytest.fixture
def client(engine: DockerEngine) -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=engine.host, version="auto")
    yield client
    client.close()


def slow_job(site: BuildSite, image: str, seconds: float) -> str:
    dockerfile = SLOW_DOCKERFILE.format(image=image, seconds=seconds)
    return site.code_job({"main.py": "print('ran')", "Dockerfile": dockerfile}, dockerfile="Dockerfile")


def step_containers(client: docker.APIClient) -> list[str]:
    """The containers that install requirements now."""
    return [container["Id"] for container in client.containers(all=True, filters={"name": "launch-build-"})]


def test_code_with_requirements_runs_in_an_image_that_is_built_once(site: BuildSite) -> None:
    site.code_job({"main.py": MAIN, "requirements.txt": "six==1.17.0\n"})
    (first,) = site.add()
    site.work_off()
    assert site.states(first) == ["Queued", "Pending", "Building", "Running", "Completed"], first.message
    assert "six 1.17.0 as 1000 in /workspace" in site.log(first)
    assert "Built prefect-launch/built:" in site.notes(first)
    assert any("1.17.0" in str(artifact.data) for artifact in site.artifacts(first))
    (second,) = site.add()
    site.work_off()
    assert site.states(second) == ["Queued", "Pending", "Running", "Completed"], second.message


def test_launch_builds_the_image_of_code_here_and_now(
    site: BuildSite, python_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = site.folder / "me/.config/prefect-launch/agent.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(yaml.safe_dump({"builder": {"base_image": python_image}}))
    monkeypatch.setenv("HOME", str(site.folder / "me"))
    monkeypatch.setenv("PREFECT_LAUNCH_HOME", str(site.folder / "home"))
    job = site.code_job({"main.py": MAIN, "requirements.txt": "six==1.17.0\n"})
    assert launch(site.api, job=job, resource="local-container").status == "finished"


def test_built_image_over_the_limit_goes_and_is_built_again_when_it_is_wanted(site: BuildSite) -> None:
    site.code_job({"main.py": "print('ran')"})
    (first,) = site.add()
    site.work_off()
    (gone,) = keep_house(site.agent("other", keep_images=0)).caches[-1].evicted
    assert f"Built prefect-launch/built:{gone.name}" in site.notes(first)
    (second,) = site.add()
    site.work_off()
    assert site.states(second) == ["Queued", "Pending", "Building", "Running", "Completed"], second.message


def test_requirement_that_does_not_exist_fails_the_item_with_the_package_and_the_last_lines(site: BuildSite) -> None:
    site.code_job({"main.py": MAIN, "requirements.txt": "no-such-package-of-launch\n"})
    (run,) = site.add()
    site.work_off()
    assert site.states(run) == ["Queued", "Pending", "Building", "Failed"]
    assert run.message.startswith("[build] The image cannot be built: the step 'sh /opt/launch/install.sh' failed")
    assert "The package 'no-such-package-of-launch' cannot be had." in run.message
    assert "no-such-package-of-launch was not found in the package registry" in site.notes(run)


@pytest.mark.parametrize("backend", ["engine", "buildkit"])
def test_step_that_fails_is_named(site: BuildSite, python_image: str, backend: str) -> None:
    dockerfile = f"FROM {python_image}\nRUN echo before\nRUN echo because; exit 7\n"
    site.code_job({"main.py": "", "Dockerfile": dockerfile}, dockerfile="Dockerfile")
    (run,) = site.add()
    site.work_off(builder={"backend": backend})
    assert site.states(run)[-1] == "Failed"
    assert "the step 'RUN echo because; exit 7' failed" in run.message
    assert "because" in site.notes(run)


def test_code_runs_in_its_base_image_and_nothing_is_built(site: BuildSite, python_image: str) -> None:
    site.code_job({"main.py": "import os; print(os.getcwd(), os.listdir())"}, base_image=python_image)
    (run,) = site.add()
    site.work_off(builder={"type": "none"})
    assert site.states(run) == ["Queued", "Pending", "Running", "Completed"], run.message
    assert site.log(run).startswith("/workspace [")
    assert "main.py" in site.log(run)


@pytest.mark.parametrize("is_built", [True, False], ids=["in a built image", "in a base image"])
def test_files_beside_the_code_are_kept_by_the_job_s_patterns_or_told(
    site: BuildSite, python_image: str, is_built: bool
) -> None:
    main = (
        "import helper; from pathlib import Path; Path('ckpt').mkdir(); Path('ckpt/1.pt').write_text('one');"
        " Path('loss.csv').write_text('1'); Path.home().joinpath('.cache').mkdir()"
    )
    where = {} if is_built else {"base_image": python_image}
    site.code_job({"main.py": main, "helper.py": ""}, keep=["ckpt/**"], **where)
    (run,) = site.add()
    site.work_off()
    told = "1 file changed in the code folder is not kept"
    assert run.message.endswith(f"Note: {told}; its log names it."), run.message
    assert f"{told}: loss.csv." in site.notes(run)
    assert set(run.files()) == {"ckpt/1.pt", "job.log"}
    (kept,) = run.download("*.pt", site.folder / "back")
    assert kept.read_text() == "one"


def test_code_without_an_image_is_refused_where_nothing_is_built(site: BuildSite) -> None:
    site.code_job({"main.py": ""})
    (run,) = site.add()
    site.work_off(builder={"type": "none"})
    assert site.states(run) == ["Queued", "Pending", "Failed"]
    assert run.message.startswith("[build] No images are built here (builder.type: none)")
    assert "add --build" in run.message


def test_context_above_the_limit_fails_the_item_before_anything_is_built(site: BuildSite) -> None:
    site.code_job({"main.py": "", "data.bin": "x" * 5_000})
    (run,) = site.add()
    site.work_off(builder={"context_limit": "4k"})
    assert site.states(run) == ["Queued", "Pending", "Failed"]
    assert "data.bin (5,000 bytes)" in run.message


@pytest.mark.parametrize("backend", ["engine", "buildkit"])
def test_cancelled_build_stops_and_leaves_nothing(
    site: BuildSite, python_image: str, client: docker.APIClient, backend: str
) -> None:
    slow_job(site, python_image, 120)
    before = {container["Id"] for container in client.containers()}
    (run,) = site.add()
    with running(site.agent(builder={"backend": backend})):
        until(lambda: "slow step" in site.notes(run).replace("RUN echo slow step", "") + "\n")
        building = {container["Id"] for container in client.containers()} - before
        run.cancel()
        until(lambda: run.item.state_type is StateType.CANCELLED)
        until(lambda: not building & {container["Id"] for container in client.containers()})


def test_eight_agents_that_ask_for_one_image_build_it_once(site: BuildSite, python_image: str) -> None:
    slow_job(site, python_image, 5)
    runs = site.add(*[{}] * 8)
    agents = [site.agent(f"box-{number}") for number in range(8)]

    async def work() -> None:
        await asyncio.gather(*(agent.loop(until_empty=True) for agent in agents))

    asyncio.run(asyncio.wait_for(work(), 120))
    assert [site.states(run)[-1] for run in runs] == ["Completed"] * 8
    assert site.built_here(runs) == 1
    waited = [log for log in map(site.notes, runs) if "builds this image already" in log]
    assert all("slow step" in log for log in waited)


def test_agent_killed_during_a_build_leaves_nothing_half_made_and_the_next_one_builds(
    site: BuildSite, python_image: str, client: docker.APIClient
) -> None:
    site.code_job(
        {"main.py": "print('ran')", "requirements.txt": "./slow\n", "slow/setup.py": f"{SLOW_SETUP}  # {site.name}"}
    )
    config = site.folder / "agent.yaml"
    config.write_text(yaml.safe_dump({"builder": {"base_image": python_image}}))
    (run,) = site.add()
    others = set(step_containers(client))
    agent = site.agent_process("box", "--config", str(config))
    try:
        until(lambda: set(step_containers(client)) - others)
    finally:
        agent.kill()
    left = set(step_containers(client)) - others
    assert left, "what a killed agent leaves is seen to be there"
    site.work_off()
    assert site.states(run)[-1] == "Completed", run.message
    assert "Built prefect-launch/built:" in site.notes(run), "an image that was there would have been taken as it is"
    assert not left & set(step_containers(client))
