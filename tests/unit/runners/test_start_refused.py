"""Starts that a real engine refuses, and whose fault they are."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import docker
import pytest
import requests

from prefect_launch.errors import InfrastructureError, LaunchError, SpecError
from prefect_launch.runners.docker.client import DockerEngine

RUNC = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
)


def client_that_says(explanation: str) -> Any:
    """Docker's own client, whose engine refuses a start."""
    answer = requests.Response()
    answer.status_code = 500
    client = Mock(spec=docker.APIClient)
    client.start.side_effect = docker.errors.APIError("500", response=answer, explanation=RUNC + explanation)
    client.inspect_container.return_value = {"State": {"ExitCode": 128}}
    return client


@pytest.mark.parametrize(
    ("explanation", "kind", "words"),
    [
        ("error setting rlimit type 6: operation not permitted", SpecError, "'ulimit'.*type 6.*Ask for less"),
        ("unable to start unit: Connection timed out", InfrastructureError, "cannot start the container"),
    ],
)
async def test_limit_above_the_machine_s_is_the_asker_s_fault_and_no_machine_s(
    monkeypatch: pytest.MonkeyPatch, explanation: str, kind: type[LaunchError], words: str
) -> None:
    engine = DockerEngine("unix:///nowhere.sock")
    monkeypatch.setattr(engine, "_connected", lambda: client_that_says(explanation))
    with pytest.raises(kind, match=words):
        await engine.start("c1")
