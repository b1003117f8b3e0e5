"""`prefect.yaml`, `flows/` and `blocks/`: what a user deploys with Prefect's own commands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_launch.errors import AgentConfigError
from prefect_launch.settings.agent_config_block import LaunchAgentConfig
from tests.acceptance.conftest import Cli
from tests.support.prefect_server import PrefectServerProcess, client_settings, server_on_sqlite, warm_prefect

PROJECT = Path(__file__).resolve().parents[2]
COMMAND_SECONDS = 120
# Prints why the server starts no sweep with a wrong number of workers.
REFUSED_FORM = """
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
with get_client(sync_client=True) as client:
    form = client.read_deployment_by_name("launch-sweep/sweep")
    for number in (0, "many"):
        try:
            client.create_flow_run_from_deployment(form.id, parameters={"config": {}, "num_workers": number})
        except PrefectHTTPStatusError as error:
            print(error.response.text)
"""
# Long enough to run one job on a busy machine; a shift always lasts to its end.
SHIFT_SECONDS = 15


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServerProcess]:
    """A server of this file's own: what is deployed here says where every job of a server is kept."""
    made = server_on_sqlite(tmp_path_factory.mktemp("server"))
    made.start()
    with client_settings(made):
        yield made
    made.stop()


@pytest.fixture(scope="module")
def saved_blocks(server: PrefectServerProcess) -> PrefectServerProcess:
    """That server, when it knows our block types and has their ready documents."""
    for name in ("job_store", "agent_config"):
        _run("block", "register", "--file", f"blocks/{name}.py")
        _run(f"blocks/{name}.py")
    return server


def test_blocks_register_and_their_documents_configure_an_agent(saved_blocks: PrefectServerProcess) -> None:
    listed = _run("block", "ls")
    block = LaunchAgentConfig.load("default")
    assert isinstance(block, LaunchAgentConfig)
    config = block.agent_config()

    assert "launch-job-store" in listed
    assert "launch-agent-config" in listed
    assert config.queues == ("default",)
    assert config.max_jobs == 1


def test_project_deploys_its_flows_on_a_process_pool(server: PrefectServerProcess) -> None:
    _run("work-pool", "create", "machines", "--type", "process")
    _run("--no-prompt", "deploy", "--all")

    listed = _run("deployment", "ls")

    names = ("launch-agent/agent", "launch-here/here", "launch-enqueue/enqueue", "launch-sweep/sweep")
    assert all(name in listed for name in names)
    refused = _run("-c", REFUSED_FORM)
    assert "0 is less than the minimum of 1" in refused
    assert "'many' is not valid" in refused


def test_agent_flow_runs_an_item_of_the_queue_that_its_block_names(
    saved_blocks: PrefectServerProcess, launch_cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "main.py").touch()
    launch_cli("queue", "create", "default")
    launch_cli("job", "create", "code", "code", "-n", "nothing")
    _run("-c", "import asyncio; from flows.enqueue import enqueue; asyncio.run(enqueue('nothing', priority='high'))")

    _run(
        "-c", f"import asyncio; from flows.agent import agent; asyncio.run(agent(max_runtime_seconds={SHIFT_SECONDS}))"
    )

    listed = launch_cli("item", "list", "--state", "completed").stdout
    assert "nothing" in listed
    assert "high" in listed


def test_block_with_a_wrong_agent_setting_is_refused_before_it_is_saved() -> None:
    with pytest.raises(AgentConfigError, match="max_job"):
        LaunchAgentConfig(queues=["gpu"], more={"max_job": 2})


def _run(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "COLUMNS": "200"}
    done = warm_prefect().run(arguments, cwd=PROJECT, environment=environment, seconds=COMMAND_SECONDS)
    if done.returncode:
        pytest.fail(f"{' '.join(arguments)} ended with {done.returncode}\n{done.stdout}{done.stderr}", pytrace=False)
    return done.stdout
