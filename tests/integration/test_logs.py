"""Logs that are too much, or no text: whole in the file, bounded on the server, with a note of what was left out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefect_launch.agent.item.logs import SHARE_BYTES, TAIL_BYTES
from prefect_launch.core.states import StateType
from tests.integration.test_agent_containers import container
from tests.support.agent_thread import running
from tests.support.live import Site, until

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess

LINES = 200_000
CHATTY = "import sys; sys.stdout.write(''.join(f'line {n:06d} of a chatty job\\n' for n in range(200_000)))"
LONG = "import sys; sys.stdout.write('x' * 5_000_000 + '\\nEND\\n')"
BYTES = "import sys; sys.stdout.buffer.write(b'a\\xff\\xfe\\x00b\\nc\\n')"

#: A bar as tqdm writes it, and what follows it. It is wide, and on the same stream: the engine hands the end of a line
#: that has not ended on in pieces of 16 KB, those of each stream by themselves.
BAR = r"""
import sys, time
for n in range(51):
    sys.stdout.write(f"\rtrain: {2 * n:3d}%|{'#' * (20 * n):1000}| {n}/50")
    sys.stdout.flush()
    time.sleep(0.1)
sys.stdout.write("\n")
print("done")
"""


def whole_log(site: Site, run: QueuedRun) -> bytes:
    """The whole log as it was kept beside the outputs."""
    kept = site.api.call(lambda session: session.jobs.read_output(run.id, 1, "job.log"))
    assert kept is not None
    return bytes(kept)


def expected(script: str) -> bytes:
    if script == CHATTY:
        return b"".join(b"line %06d of a chatty job\n" % number for number in range(LINES))
    return b"x" * 5_000_000 + b"\nEND\n" if script == LONG else b"a\xff\xfe\x00b\nc\n"


def check(site: Site, run: QueuedRun, script: str) -> None:
    assert whole_log(site, run) == expected(script)
    shown = site.log(run)
    assert len(shown) <= SHARE_BYTES + TAIL_BYTES + 10_000
    if script == BYTES:
        assert shown == "a\ufffd\ufffd\ufffdb\nc"
    else:
        assert "bytes left out here; the whole log is kept" in shown
        assert shown.endswith("line 199999 of a chatty job" if script == CHATTY else "END")


@pytest.mark.parametrize("script", [CHATTY, LONG, BYTES], ids=["200000-lines", "5-mb-line", "not-utf-8"])
def test_log_of_a_process_is_whole_in_the_file_and_bounded_on_the_server(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str, script: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    site.job(f'python -c "{script}"')
    (run,) = site.add()
    site.work_off()
    assert site.states(run)[-1] == "Completed"
    check(site, run, script)


@pytest.mark.engine
@pytest.mark.parametrize("script", [CHATTY, LONG, BYTES], ids=["200000-lines", "5-mb-line", "not-utf-8"])
def test_log_of_a_container_is_whole_in_the_file_and_bounded_on_the_server(
    prefect_server: PrefectServerProcess,
    engine: DockerEngine,
    python_image: str,
    tmp_path: Path,
    unique: str,
    script: str,
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique, resource="local-container")
    (run,) = site.add({**container(python_image, ""), "overrides": {"entry_point": ["python", "-c", script]}})
    site.work_off()
    assert site.states(run)[-1] == "Completed"
    check(site, run, script)


def check_bar(site: Site, run: QueuedRun) -> None:
    """Run an item that draws a bar, and see what its page shows meanwhile and afterwards."""
    with running(site.agent()):
        until(lambda: "train: " in site.log(run))
        assert run.item.state_type is StateType.RUNNING
        assert "100%" not in site.log(run)
        until(lambda: run.item.state_type is StateType.COMPLETED)
    *states, last, done = site.log(run).splitlines()
    assert 1 <= len(states) <= 2
    assert (last, done) == (f"train: 100%|{'#' * 1000}| 50/50", "done")
    drawn = [f"\rtrain: {2 * n:3d}%|{'#' * (20 * n):1000}| {n}/50".encode() for n in range(51)]
    assert whole_log(site, run) == b"".join(drawn) + b"\ndone\n"


def test_progress_bar_of_a_process_is_shown_while_it_is_drawn(
    prefect_server: PrefectServerProcess, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique)
    script = tmp_path / "bar.py"
    script.write_text(BAR)
    site.job(f"python {script}")
    (run,) = site.add()
    check_bar(site, run)


@pytest.mark.engine
def test_progress_bar_of_a_container_is_shown_while_it_is_drawn(
    prefect_server: PrefectServerProcess, engine: DockerEngine, python_image: str, tmp_path: Path, unique: str
) -> None:
    site = Site(prefect_server.api_url, tmp_path, unique, resource="local-container")
    (run,) = site.add({**container(python_image, ""), "overrides": {"entry_point": ["python", "-c", BAR]}})
    check_bar(site, run)
