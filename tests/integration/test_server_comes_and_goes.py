"""A Prefect server that goes away and comes back under ten running items: none is disturbed, all is told, once.

How long it is away is `LAUNCH_TEST_OUTAGE_SECONDS`, 5 by default.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch.core.states import StateType
from tests.support.agent_thread import running
from tests.support.live import Site, until
from tests.support.relay import Relay, relay_to

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = pytest.mark.engine

OUTAGE_SECONDS = float(os.environ.get("LAUNCH_TEST_OUTAGE_SECONDS", "5"))
STEP_SECONDS = 0.5
#: Two end while the server is away for the first time, two after its first and one after its second return; one of
#: each pair fails.
STEPS = [int(share * OUTAGE_SECONDS / STEP_SECONDS) for share in (0.2, 0.4, 2.0, 2.5, 4.0)]
#: It begins once all ten run. A process counts its start in a file beside it, so that one that was started twice is
#: seen.
STORY = (
    'while [ ! -e "$GO" ]; do sleep 0.1; done; for n in $(seq "$STEPS"); do echo line $n; sleep 0.5; done; '
    'echo "{\\"steps\\": $STEPS}" > "$LAUNCH_OUTPUT_DIR/outputs.json"; exit "$CODE"'
)


class Ten:
    """Five processes and five containers of one agent.

    Args:
        server: where their queues are.
        folder: of the test's own.
        name: beginning of their queues' names.
        image: of the containers.
    """

    def __init__(self, server: PrefectServerProcess, folder: Path, name: str, image: str) -> None:
        self.sites = [
            Site(server.api_url, folder, f"{name}-processes", config={"env": {"GO": str(folder / "go")}}),
            Site(
                server.api_url,
                folder,
                f"{name}-containers",
                resource="local-container",
                config={"volume": [f"{folder}:/told"], "env": {"GO": "/told/go"}},
            ),
        ]
        self.go = folder / "go"
        processes, containers = self.sites
        self.starts = folder / "starts"
        processes.job(f'echo "$WANDB_NAME" >> {self.starts}; {STORY}')
        self.expected: dict[str, tuple[QueuedRun, int, int]] = {}
        for number, steps in enumerate(STEPS):
            code = number % 2
            env = {"env": {"STEPS": str(steps), "CODE": str(code)}}
            (process,) = processes.add(name=f"p{number}", resource_args={"local-process": env})
            command = {"docker": {"docker_image": image}, "overrides": {"entry_point": ["sh", "-c", STORY]}}
            (container,) = containers.add(command, name=f"c{number}", resource_args={"local-container": env})
            self.expected[f"p{number}"] = (process, steps, code)
            self.expected[f"c{number}"] = (container, steps, code)

    def states(self) -> Counter[StateType | None]:
        """How many items are in which type of state."""
        items = [item for site in self.sites for item in site.api.items(queue=site.name, limit=None)]
        return Counter(item.item.state_type for item in items)

    def check(self) -> None:
        """Everything that the ten have to tell is on the server, once and in order."""
        for name, (run, steps, code) in self.expected.items():
            site = self.sites[name.startswith("c")]
            lines = [f"line {number}" for number in range(1, steps + 1)]
            assert site.log(run).splitlines() == lines, name
            states = [state for state in site.states(run) if state != "Building"]
            assert states == ["Queued", "Pending", "Running", "Failed" if code else "Completed"], (name, run.message)
            assert site.flow_run(run).run_count == 1, name
            kinds = sorted(artifact.type for artifact in site.artifacts(run) if artifact.key)
            assert kinds == (["markdown", "table"] if code else ["table"]), name
        assert sorted(self.starts.read_text().split()) == [f"p{number}" for number in range(len(STEPS))]


def outlive(ten: Ten, api_url: str, *outages: tuple[Callable[[], object], Callable[[], object]]) -> None:
    """Run the ten through outages, each given by what begins it and what ends it."""
    home = ten.sites[0].by(api_url)
    queues = [site.name for site in ten.sites]
    with running(home.agent(queues=queues, max_jobs=10, poll_seconds=1)):
        until(lambda: ten.states() == {StateType.RUNNING: 10})
        ten.go.touch()
        for begin, end in outages:
            begin()
            time.sleep(OUTAGE_SECONDS)
            end()
            time.sleep(STEP_SECONDS)
        until(lambda: ten.states()[StateType.RUNNING] == 0, 120 + 4 * OUTAGE_SECONDS)
    ten.check()


@pytest.mark.timeout(900)
def test_ten_items_outlive_a_server_that_is_killed_and_one_that_is_stopped(
    own_prefect_server: PrefectServerProcess, tmp_path: Path, unique: str, shell_image: str
) -> None:
    server = own_prefect_server
    ten = Ten(server, tmp_path, unique, shell_image)
    outlive(ten, server.api_url, (server.kill, server.start), (server.stop, server.start))


@pytest.fixture
def relay(prefect_server: PrefectServerProcess) -> Iterator[Relay]:
    """A way to the server that can be cut."""
    with relay_to(prefect_server.port) as relay:
        yield relay


@pytest.mark.timeout(900)
def test_ten_items_outlive_a_network_that_is_cut_and_one_that_swallows_everything(
    prefect_server: PrefectServerProcess, relay: Relay, tmp_path: Path, unique: str, shell_image: str
) -> None:
    ten = Ten(prefect_server, tmp_path, unique, shell_image)
    outlive(ten, relay.api_url, (relay.cut, relay.mend), (relay.block, relay.mend))
