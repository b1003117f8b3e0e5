"""What is left of a build that was stopped: its program, its step, its lease."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect_launch.core.file_lock import locked_if_free
from tests.support.processes import MARK, marked_processes

#: A Dockerfile whose one step takes so long, and can be known among the processes of this machine by its mark.
SLOW = "FROM {image}\nWORKDIR /app\nCOPY . .\nRUN echo slow step; sleep {seconds}; : {mark}\n"


def build_programs() -> list[str]:
    """Docker's commands that this test run has started and that still build."""
    return [left.command for left in marked_processes(os.environ[MARK]) if "--progress=plain" in left.command]


def build_steps(mark: str) -> dict[int, str]:
    """The processes of a build step, by their ids: those of an engine on this machine."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # no process, or one that has ended meanwhile
            continue
        if f": {mark}" in command:
            found[int(folder.name)] = command
    return found


@contextmanager
def build_steps_cut_short(mark: str) -> Iterator[None]:
    """End the waiting of each slow step that comes up inside the block; the step itself succeeds."""
    over = threading.Event()

    def cut() -> None:
        while not over.wait(0.1):
            for pid in build_steps(mark):
                with contextlib.suppress(OSError):
                    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                        os.kill(int(child), signal.SIGTERM)

    cutting = threading.Thread(target=cut)
    cutting.start()
    try:
        yield
    finally:
        over.set()
        cutting.join()


def live_leases(home: Path) -> list[Path]:
    """The leases that make others of a home wait for a build."""
    held = []
    for lease in (home / "builds").glob("*.lock"):
        with locked_if_free(lease) as is_free:
            held += [] if is_free else [lease]
    return held
