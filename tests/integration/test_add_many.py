"""A list of items whose call is killed in its midst, on a real server: the same call adds the rest, and none twice."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
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


def test_command_that_ctrl_c_stops_tells_how_many_items_are_there_and_goes_on_with_the_rest(
    prefect_server: PrefectServerProcess, tmp_path: Path
) -> None:
    api = Api(url=prefect_server.api_url)
    queue, file = "add-many-stopped", tmp_path / "runs.jsonl"
    api.create_run_queue(queue, "local-container")
    file.write_text("".join(json.dumps({"name": f"run-{number}"}) + "\n" for number in range(500)))
    program = str(Path(sys.executable).with_name("prefect-launch"))
    command = [program, "add", "-d", "busybox:1", "-q", queue, "--many", str(file)]
    environment = {**os.environ, **prefect_server.client_environment()}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as adding:
        while not api.items(queue=queue, limit=1):
            assert adding.poll() is None
            time.sleep(0.02)
        adding.send_signal(signal.SIGINT)
        _, said = adding.communicate(timeout=60)
    told = re.fullmatch(rf"Stopped\. At least (\d+) of 500 items are on the queue {queue}\. The same .*\n", said)
    assert (adding.returncode, bool(told)) == (130, True), said

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    there = re.search(r"^(\d+) were there already", again.stdout, re.MULTILINE)
    assert told
    assert there
    assert int(told[1]) <= int(there[1]) < 500
    names = Counter(run.name for run in api.items(queue=queue, limit=None))
    assert names == Counter(f"run-{number}" for number in range(500))
