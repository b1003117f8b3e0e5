"""Every block of code in the README runs, in its order, as a reader would run it.

What cannot be run as it stands here (another address, a program that does not end) is in a table, line by line; a line
of the table that the README no longer has fails the test.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer
from tests.support.prefect_server import PrefectServerProcess
from tests.support.readme import Reader, blocks_of

PROJECT = Path(__file__).resolve().parents[2]
README = PROJECT / "README.md"
SEVERAL_MACHINES = "Several machines"


@pytest.fixture
def own_postgres_prefect_server(postgres: PostgresServer, tmp_path: Path) -> Iterator[PrefectServerProcess]:
    """A server on PostgreSQL whose job store this test may move."""
    server = PrefectServerProcess(tmp_path / "server", database_url=postgres.create_database())
    server.start()
    yield server
    server.stop()


@pytest.mark.timeout(900)
def test_every_block_of_the_readme_runs(own_prefect_server: PrefectServerProcess, tmp_path: Path) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    reader = Reader(
        folder,
        {
            # The demo and the tests have tests of their own; here, that the targets are there.
            "make demo": f"make -C {PROJECT} --dry-run demo",
            "make test": f"make -C {PROJECT} --dry-run test",
            "source .venv/bin/activate": "prefect-launch --version",
            # The test's server has started already, on a port of its own.
            "prefect server start": f"curl --fail --silent --show-error {own_prefect_server.api_url}/health",
            "http://127.0.0.1:4200/api": own_prefect_server.api_url,
        },
    )
    try:
        shown = reader.follow([block for block in blocks_of(README) if block.section != SEVERAL_MACHINES])
    finally:
        reader.stop()

    assert "hidden_units" in shown
    assert "epoch  30/30" in shown
    assert "best: trial" in shown
    assert not reader.forgotten


@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_readme_takes_a_job_to_a_machine_that_shares_only_server_and_store(
    own_postgres_prefect_server: PrefectServerProcess, tmp_path: Path
) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    reader = Reader(
        folder,
        {
            "prefect server start --host 0.0.0.0": f"curl --fail --silent {own_postgres_prefect_server.api_url}/health",
            "http://server.example:4200/api": own_postgres_prefect_server.api_url,
            "/mnt/shared/launch": str(tmp_path / "shared"),
            # The second machine: another home, so that nothing but the server and the store is shared.
            "prefect-launch agent start": f"PREFECT_HOME={tmp_path}/second prefect-launch agent start",
            "prefect-launch agent list": "prefect-launch item list -q shared --state completed",
        },
    )

    try:
        shown = reader.follow([block for block in blocks_of(README) if block.section == SEVERAL_MACHINES])
    finally:
        reader.stop()

    assert "completed" in shown
    assert not reader.forgotten


@pytest.mark.timeout(300)
def test_readme_of_the_slurm_example_puts_its_job_on_a_queue(
    own_prefect_server: PrefectServerProcess, tmp_path: Path
) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    reader = Reader(
        folder,
        {
            "export PREFECT_LAUNCH_HOME=/SHARED/prefect-launch": f"export PREFECT_API_URL={own_prefect_server.api_url}",
            # Slurm is tested elsewhere.
            "prefect-launch agent check -q cluster": "prefect-launch queue show cluster",
            "prefect-launch agent start -q cluster": "prefect-launch item list -q cluster",
        },
    )
    try:
        shown = reader.follow(blocks_of(PROJECT / "examples" / "slurm" / "README.md"))
    finally:
        reader.stop()

    assert "Added hello-slurm-" in shown
    assert not reader.forgotten


def test_pictures_and_files_that_the_readme_names_are_there() -> None:
    named = re.findall(r"\]\((?!http)([^)#]+)\)|src=\"([^\"]+)\"", README.read_text())

    missing = [path for pair in named for path in pair if path and not (PROJECT / path).exists()]

    assert named
    assert not missing
