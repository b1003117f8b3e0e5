"""The tests' own servers, engine and images do what the other tests take for granted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess


async def test_work_pool_is_there_after_a_server_restart(own_prefect_server: PrefectServerProcess, unique: str) -> None:
    async with get_client() as client:
        made = await client.create_work_pool(WorkPoolCreate(name=unique, type="process"))

    own_prefect_server.restart()

    async with get_client() as client:
        assert (await client.read_work_pool(unique)).id == made.id


async def test_server_on_sqlite_knows_its_own_address(prefect_server: PrefectServerProcess) -> None:
    async with get_client() as client:
        answer = await client._client.get(f"{prefect_server.ui_url}/ui-settings")
        assert str(client.api_url).rstrip("/") == prefect_server.api_url

    assert answer.json()["api_url"] == prefect_server.api_url


@pytest.mark.postgres
async def test_server_on_postgres_keeps_a_work_pool(postgres_prefect_server: PrefectServerProcess, unique: str) -> None:
    async with get_client() as client:
        made = await client.create_work_pool(WorkPoolCreate(name=unique, type="process"))
        assert (await client.read_work_pool(unique)).id == made.id

    # On PostgreSQL there is no database file in the server's home.
    assert not list(postgres_prefect_server.home.glob("*.db"))


@pytest.mark.engine
def test_engine_runs_a_shell_script_in_the_shell_image(engine: DockerEngine, shell_image: str) -> None:
    script = "trap 'echo bye' EXIT; echo hello | cat; sleep 0.1; env | grep ^WHO="

    client = engine.client()
    output = client.containers.run(shell_image, ["sh", "-c", script], environment={"WHO": "me"}, remove=True)
    client.close()

    assert output.decode().split() == ["hello", "WHO=me", "bye"]


@pytest.mark.engine
def test_engine_runs_python_in_the_python_image(engine: DockerEngine, python_image: str) -> None:
    script = "import ctypes, hashlib, json, socket, sqlite3, ssl, subprocess, venv, zlib; print(json.dumps({'ok': 1}))"

    client = engine.client()
    output = client.containers.run(python_image, ["python", "-c", script], remove=True, user="nobody")
    client.close()

    assert output.decode().strip() == '{"ok": 1}'


@pytest.mark.engine
def test_container_on_the_bridge_has_an_address(engine: DockerEngine, shell_image: str) -> None:
    client = engine.client()
    output = client.containers.run(shell_image, ["ip", "address", "show", "dev", "eth0"], remove=True)
    client.close()

    assert "inet " in output.decode()
