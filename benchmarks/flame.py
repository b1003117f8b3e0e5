"""The command `python -m benchmarks.flame [FOLDER]`: flame graphs of an agent and of its server at work, as SVG files.

py-spy samples both (fetched by `uvx`) while one agent with eight slots runs a hundred short processes. Only threads
that hold Python's lock are sampled, so the graphs show work, and no waiting. Frames too narrow to be read are left out.
Root may be needed to look into a process.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.agents import running_agent
from benchmarks.bench_throughput import PROCESS_SLOTS, instant_job
from benchmarks.place import open_place
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.core.states import TERMINAL

_ITEMS = 100
_SAMPLES_A_SECOND = 250
_QUEUE = "flame"
#: What py-spy gets to be ready.
_START_SECONDS = 3.0
_FRAME = re.compile(r'<g><title>[^<]*</title><rect [^>]*?width="(?P<width>[\d.]+)%".*?</g>')
#: Narrower frames cannot be read, and are most of a file.
_LEAST_PERCENT = 0.3
_UVX = Path(sys.executable).with_name("uvx")


def main(folder: Path) -> None:
    """Sample an agent and a server, and write a graph of each."""
    with open_place(quick=False) as place, ExitStack() as stack:
        spec = {"job": instant_job(place)}
        place.api.create_run_queue(_QUEUE, "local-process")
        agent = stack.enter_context(running_agent(place, _QUEUE, max_jobs=PROCESS_SLOTS))
        launch_add_many([spec], _QUEUE, api=place.api)
        place.until_items(_QUEUE, 1, *TERMINAL)  # All that it needs is loaded.
        place.api.call(lambda session: session.server.update_pool(_QUEUE, is_paused=True))
        launch_add_many([spec] * _ITEMS, _QUEUE, api=place.api)
        server = place.server.pid
        assert server is not None
        with _sampled(agent.pid, folder / "flame-agent.svg"), _sampled(server, folder / "flame-server.svg"):
            time.sleep(_START_SECONDS)
            place.api.call(lambda session: session.server.update_pool(_QUEUE, is_paused=False))
            launch_add_many([spec], _QUEUE, api=place.api)  # Its event wakes the agent.
            place.until_items(_QUEUE, _ITEMS + 2, *TERMINAL, look_seconds=2.0)


@contextmanager
def _sampled(pid: int, file: Path) -> Iterator[None]:
    command = [str(_UVX), "py-spy", "record", "--gil", "--function", "--format", "flamegraph"]
    command += ["--rate", str(_SAMPLES_A_SECOND), "--pid", str(pid), "--output", str(file)]
    spy = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        spy.send_signal(signal.SIGINT)
        spy.wait()
    file.write_text(_FRAME.sub(_kept, file.read_text().replace(str(Path.cwd()), ".")))


def _kept(frame: re.Match[str]) -> str:
    return frame[0] if float(frame["width"]) >= _LEAST_PERCENT else ""


if __name__ == "__main__":
    main(Path(sys.argv[1] if sys.argv[1:] else "docs/images"))
