"""The register of one home's process runs, which several agents read and write at the same time."""

from __future__ import annotations

import threading
from pathlib import Path

from prefect_launch.runners.process.files import registered


def test_register_is_read_while_another_agent_strikes_runs_out(tmp_path: Path) -> None:
    register = tmp_path / "processes"
    register.mkdir()
    over = threading.Event()

    def churn() -> None:
        while not over.is_set():
            for number in range(50):
                (register / f"run-{number}").symlink_to(tmp_path / "runs")
            for number in range(50):
                (register / f"run-{number}").unlink()

    other = threading.Thread(target=churn)
    other.start()
    try:
        for _ in range(2_000):
            assert all(folder.path == tmp_path / "runs" for _, folder in registered(register))
    finally:
        over.set()
        other.join()
