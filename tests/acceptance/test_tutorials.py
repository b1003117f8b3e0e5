"""Every block of code of the tutorials and of the how-tos runs, in its order, as a reader would run it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.docker_engine import DockerEngine
from tests.support.prefect_server import PrefectServerProcess
from tests.support.reader import PROJECT, followed
from tests.support.slurm import SlurmCluster

DOCS = PROJECT / "docs"
TUTORIALS = DOCS / "tutorials"


@pytest.mark.timeout(1200)
def test_tutorial_of_one_box_and_what_builds_on_it_run(
    own_prefect_server: PrefectServerProcess, tmp_path: Path
) -> None:
    shown = followed(
        tmp_path / "reader",
        [TUTORIALS / "gpu-box.md", TUTORIALS / "sweeps.md", DOCS / "how-to.md"],
        {
            "pip install 'prefect-launch[gpu]'": "prefect-launch --version",
            # The test's server has started already, on a port of its own.
            "prefect server start": f"curl --fail --silent --show-error {own_prefect_server.api_url}/health",
            "http://127.0.0.1:4200/api": own_prefect_server.api_url,
            # This machine has no GPU.
            """'{"gpus": 1}'""": """'{"gpus": 0}'""",
            "prefect-launch agent check": "prefect-launch agent check --help >&2; true",
            # Nobody types here.
            'getpass("Token: ")': '"a-token-of-this-test"',
        },
    )

    assert "hidden_units" in shown
    assert "epoch  30/30" in shown
    assert "best: trial" in shown
    assert "attempt 2: step 3" in shown
    assert "a-token-of-this-test" not in shown


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_tutorial_of_containers_runs(
    own_prefect_server: PrefectServerProcess, engine: DockerEngine, python_image: str, tmp_path: Path
) -> None:
    shown = followed(
        tmp_path / "reader",
        [TUTORIALS / "containers.md"],
        {
            "http://127.0.0.1:4200/api": own_prefect_server.api_url,
            # The tests' engine has a socket of its own, and no program `docker`.
            "docker version": 'test -n "$DOCKER_HOST"',
            "python:3.12-slim": python_image,
        },
    )

    assert "42" in shown
    assert "pi: 3." in shown


@pytest.mark.timeout(600)
def test_tutorial_of_clusters_runs_its_job_on_slurm(
    own_prefect_server: PrefectServerProcess, slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    shown = followed(
        tmp_path / "reader",
        [TUTORIALS / "clusters.md"],
        {
            "http://127.0.0.1:4200/api": own_prefect_server.api_url,
            """'{"partition": "gpu"}'""": """'{"partition": "main"}'""",
            "/mnt/shared": str(tmp_path / "shared"),
        },
    )

    assert re.search(r"here +hpc +completed", shown)


@pytest.mark.timeout(600)
def test_tutorial_of_a_move_from_wandb_runs(own_prefect_server: PrefectServerProcess, tmp_path: Path) -> None:
    adapted = {"http://127.0.0.1:4200/api": own_prefect_server.api_url}

    shown = followed(tmp_path / "reader", [TUTORIALS / "from-wandb.md"], adapted)

    assert re.search(r"of-a-file +completed", shown)
    assert "vision-sweep" in shown


@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_tutorial_of_a_team_takes_a_job_to_a_machine_that_shares_only_server_and_store(
    own_postgres_prefect_server: PrefectServerProcess, tmp_path: Path
) -> None:
    shown = followed(
        tmp_path / "reader",
        [TUTORIALS / "team-server.md"],
        {
            "pip install 'prefect-launch[postgres]'": "prefect-launch --version",
            "prefect server start --host 0.0.0.0": f"curl --fail --silent {own_postgres_prefect_server.api_url}/health",
            "http://server.example:4200/api": own_postgres_prefect_server.api_url,
            "/mnt/shared/launch": str(tmp_path / "shared"),
            # The second machine: another home, so that nothing but the server and the store is shared.
            "prefect-launch agent start": f"PREFECT_HOME={tmp_path}/second prefect-launch agent start",
            "prefect-launch agent list": "prefect-launch item list -q shared --state completed",
        },
    )

    assert "completed" in shown
