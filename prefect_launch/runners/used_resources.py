"""The resources that have run something for a home: where its runs are looked for, besides those of its queues.

A runner's libraries (Docker's take 75 ms of CPU time) are imported only where there may be a run to find. A home that
is older than these notes may have used any resource.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from prefect_launch.runners.registry import runner_names

_FOLDER: Final = "resources"


def note_resource(home: Path, resource: str) -> None:
    """Write down that a resource is about to run something.

    Args:
        home: the folder of prefect-launch on this machine; made if it is not there.
        resource: its name.
    """
    folder = home / _FOLDER
    if (folder / resource).exists():
        return
    known = used_resources(home)
    folder.mkdir(parents=True, exist_ok=True)
    for name in {*known, resource}:
        (folder / name).touch()


def used_resources(home: Path) -> frozenset[str]:
    """Return the resources that may have runs of a home, of those that can be run here.

    Args:
        home: the folder of prefect-launch on this machine.
    """
    folder = home / _FOLDER
    if folder.is_dir():
        return frozenset(name for name in runner_names() if (folder / name).exists())
    return frozenset(runner_names()) if (home / "runs").exists() else frozenset()
