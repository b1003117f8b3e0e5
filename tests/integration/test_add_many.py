"""A list of items whose call is killed in its midst, on a real server: the same call adds the rest, and none twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

from prefect_launch import Api, launch_add_many

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess

QUEUE = "add-many"
SPECS = [{"docker": {"docker_image": "busybox:1"}, "name": f"run-{number}"} for number in range(120)]
#: Kills itself as soon as a request has made some of the items.
KILLED = """
import os, signal
from prefect_launch import launch_add_many
from tests.integration.test_add_many import QUEUE, SPECS
def kill(made, of):
    if made:
        os.kill(os.getpid(), signal.SIGKILL)
launch_add_many(SPECS, QUEUE, run_id=QUEUE, progress=kill)
"""


def test_call_that_was_killed_is_completed_by_the_same_call(prefect_server: PrefectServerProcess) -> None:
    api = Api(url=prefect_server.api_url)
    api.create_run_queue(QUEUE, "local-container")
    environment = {**os.environ, **prefect_server.client_environment()}
    killed = subprocess.run([sys.executable, "-c", KILLED], env=environment, check=False, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    there = {run.id for run in api.items(queue=QUEUE, limit=None)}
    assert 0 < len(there) < len(SPECS)

    told: list[tuple[int, int]] = []
    runs = launch_add_many(SPECS, QUEUE, run_id=QUEUE, progress=lambda *made: told.append(made), api=api)

    assert told[0] == (len(there), len(SPECS))
    assert there < {run.id for run in runs}
    names = Counter(run.name for run in api.items(queue=QUEUE, limit=None))
    assert names == Counter(spec["name"] for spec in SPECS)
