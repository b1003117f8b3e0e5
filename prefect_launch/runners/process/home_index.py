"""The register of the `local-process` runs of one agent's home: a link for each, to the run's folder.

Whatever agent made a run, it is found here, by the labels in its folder. The same attempt at an item has one link for
each claim that it was made under. A home on a network disk may serve several machines: what another one made is left
alone, since its processes cannot be seen from here. A run whose folder says nothing any more is nobody's: what is left
of it is killed, so that its item can be run again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect_launch.runners.base import CLAIM_CHARS, PLAN_FILE, Found, Labels, RunPlan
from prefect_launch.runners.process import supervisor
from prefect_launch.runners.process.files import RunFolder, registered

log = logging.getLogger("prefect_launch.agent")


class ProcessRegister:
    """The register in one home.

    Args:
        path: its folder; made when the first run is.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(self, plan: RunPlan) -> None:
        """Enter a run that was created."""
        self._path.mkdir(parents=True, exist_ok=True)
        link = self._path / _link_name(plan.name, plan.labels.get(Labels.CLAIM, ""))
        if not link.is_symlink():
            link.symlink_to(plan.run_dir.absolute())

    def find(self, labels: Mapping[str, str]) -> list[Found]:
        """List the runs of this machine that have all these labels."""
        found = []
        for link, folder in self._runs():
            about = _about(folder)
            if about is None:
                self._drop(link, folder)
            elif labels.items() <= about["labels"].items() and not _is_elsewhere(about):
                found.append(
                    Found(handle=str(folder.path), state=folder.state, labels=about["labels"], run_dir=folder.path)
                )
        return found

    def others(self, plan: RunPlan) -> list[Path]:
        """Return the folders of the same attempt that were made under another claim, on this machine."""
        own = plan.run_dir.absolute()
        mine = [(link, folder) for link, folder in self._runs(plan.name) if folder.path != own]
        return [folder.path for _, folder in mine if not _is_elsewhere(_about(folder) or {})]

    def remove(self, folder: RunFolder) -> None:
        """Strike a run out."""
        for link, other in self._runs():
            if other.path == folder.path.absolute():
                link.unlink(missing_ok=True)

    def _runs(self, name: str = "") -> Iterator[tuple[Path, RunFolder]]:
        for link, folder in registered(self._path):
            if not name or link.name == name or link.name.startswith(f"{name}-"):
                yield link, folder

    def _drop(self, link: Path, folder: RunFolder) -> None:
        """Strike out what says nothing any more."""
        if folder.has(supervisor.PROCESS) or not folder.path.exists():
            killed = folder.kill_marked()
            log.warning("the run folder %s is broken: nothing of it is kept; killed processes: %s", folder.path, killed)
        link.unlink(missing_ok=True)


def machine() -> dict[str, str]:
    """Return what tells this machine from others that may share the home."""
    return {"host": os.uname().nodename, "boot_id": str(supervisor.identity(os.getpid())["boot_id"])}


def _is_elsewhere(about: Mapping[str, Any]) -> bool:
    """Whether another machine has made a run: a host may be renamed, or boot anew, but not both at once."""
    made_on, here = about.get("machine") or {}, machine()
    return bool(made_on) and all(made_on.get(key) != here[key] for key in here)


def _about(folder: RunFolder) -> dict[str, Any] | None:
    """Return what is known of a run: its own file, or its plan when that file is broken."""
    for name in (supervisor.PROCESS, PLAN_FILE):
        about = folder.read(name)
        labels = about.get("labels") if about is not None else None
        if isinstance(labels, dict) and all(isinstance(value, str) for value in labels.values()):
            return about
        if name == supervisor.PROCESS and not folder.has(name) and folder.supervisor_pid() is None:
            return None  # It was removed just now, or never made.
    return None


def _link_name(name: str, claim: str) -> str:
    return f"{name}-{claim[:CLAIM_CHARS]}" if claim else name
