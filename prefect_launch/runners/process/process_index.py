"""Index of local processes: which runs a user has on one machine, asked for by label or by item.

Each run has one link, `<home>/processes/<run's name>-<claim>`, to its folder. It outlives boots and machines: the next
life of an agent finds there what ended meanwhile, and several machines may share a home on a network disk. The user's
state folder lists the homes on this machine, so an agent also finds what an agent of another home runs of its item. A
link only says where to look. The claims of the item decide whether the run may be touched.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect_launch.runners.base import PLAN_FILE, Found, Labels, RunPlan, RunState, run_name
from prefect_launch.runners.process import supervisor
from prefect_launch.runners.process.files import RunFolder

log = logging.getLogger(__name__)


class ProcessIndex:
    """All local runs of this user that an agent of one home can find on this machine.

    The same attempt at an item has one link for each claim that it was made under. What another machine made is left
    alone, since its processes cannot be seen from here. A run whose folder cannot be read any more has no owner: its
    processes are killed, so that its item can run again.

    Args:
        home: the folder of prefect-launch on this machine; made when the first run is.
    """

    def __init__(self, home: Path) -> None:
        self._home = home.absolute()
        self._is_alone = False

    def add(self, plan: RunPlan) -> None:
        """Add a run that was created, before it is started."""
        folder = self._home / "processes"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _link(_homes() / hashlib.sha256(bytes(self._home)).hexdigest(), self._home)
        except OSError as error:
            self._note_alone(error)
        claim = plan.labels.get(Labels.CLAIM, "")
        _link(folder / (f"{plan.name}-{claim}" if claim else plan.name), plan.run_dir.absolute())

    def find(self, labels: Mapping[str, str]) -> list[Found]:
        """List the runs of this home and machine that have all these labels."""
        found = []
        for link, folder in _links(self._home):
            about = _about(folder)
            if about is None:
                _drop(link, folder)
            elif labels.items() <= about["labels"].items() and not _is_elsewhere(about):
                found.append(
                    Found(handle=str(folder.path), state=folder.state, labels=about["labels"], run_dir=folder.path)
                )
        return found

    def find_beside(self, item_id: str) -> list[Found]:
        """List the runs of an item whose end is not known, of all homes, with the labels of item, attempt and claim.

        A direct `launch` has no claim, and is left out: nobody else attempts it again.
        """
        start, found = run_name(item_id), []
        for home in self._all_homes():
            try:
                links = list(_links(home, start))
            except OSError as error:
                self._note_alone(error)
                continue
            for link, folder in links:
                attempt, _, claim = link.name[len(start) :].partition("-")
                if claim and _may_run_here(folder):
                    labels = {Labels.ITEM: item_id, Labels.ATTEMPT: attempt, Labels.CLAIM: claim}
                    found.append(Found(handle=str(folder.path), state=folder.state, labels=labels, run_dir=folder.path))
        return found

    def others(self, plan: RunPlan) -> list[Path]:
        """Return the folders of the same attempt that were made in this home under another claim, on this machine."""
        own = plan.run_dir.absolute()
        links = _links(self._home, plan.name)  # Of the tenth attempt too, when this is the first.
        folders = [folder for link, folder in links if link.name == plan.name or link.name[len(plan.name)] == "-"]
        return [one.path for one in folders if one.path != own and not _is_elsewhere(_about(one) or {})]

    def remove(self, folder: RunFolder) -> None:
        """Remove a run from the index, and the files that mark its folder as one."""
        (folder.path / supervisor.ENVIRONMENT).unlink(missing_ok=True)
        (folder.path / supervisor.PROCESS).unlink(missing_ok=True)
        for link, other in _links(self._home):
            if other.path == folder.path.absolute():
                link.unlink(missing_ok=True)

    def environments_in_use(self) -> set[Path]:
        """Return the environments of the runs of this home that have not ended."""
        running = [folder for _, folder in _links(self._home) if folder.state is not RunState.EXITED]
        processes = [folder.read(supervisor.PROCESS) or {} for folder in running]
        return {Path(process["venv"]) for process in processes if "venv" in process}

    def _all_homes(self) -> list[Path]:
        """Return the homes that this user's runs were made in on this machine; at least this one."""
        homes = {self._home}
        try:
            for link in _homes().iterdir():
                home = Path(os.readlink(link))
                if os.path.isdir(home):
                    homes.add(home)
                else:
                    link.unlink(missing_ok=True)
        except OSError as error:
            self._note_alone(error)
        return sorted(homes)

    def _note_alone(self, error: OSError) -> None:
        """Log once that the list of homes cannot be used."""
        if not self._is_alone:
            self._is_alone = True
            log.debug("what agents of other homes run on this machine is not known: %s", error)


def machine() -> dict[str, str]:
    """Return the identity of this machine and its PID namespace; other machines may share the home."""
    return {
        "host": os.uname().nodename,
        "boot_id": str(supervisor.identity(os.getpid())["boot_id"]),
        "pid_namespace": str(os.stat("/proc/self/ns/pid").st_ino),
    }


def state_folder() -> Path:
    """Return where this user's programs keep what they know of this machine: the same whatever `HOME` says."""
    named = Path(os.environ.get("XDG_STATE_HOME", ""))
    if named.is_absolute():
        return named / "prefect-launch"
    try:
        home = Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        raise FileNotFoundError(f"the user {os.geteuid()} has no home") from None
    return home / ".local" / "state" / "prefect-launch"


def _homes() -> Path:
    """Return the folder that lists this user's homes on this machine: it is made, and is the user's alone."""
    path = state_folder() / "homes" / os.uname().nodename.replace(os.sep, "_")
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = path.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise PermissionError(f"{path} is not a folder that is this user's alone")
    return path


def _link(link: Path, target: Path) -> None:
    with suppress(FileExistsError):
        link.symlink_to(target)


def _links(home: Path, start: str = "") -> Iterator[tuple[Path, RunFolder]]:
    """Yield the links of a home whose names begin so, and the folders that they lead to."""
    path = home / "processes"
    for name in sorted(os.listdir(path)) if path.is_dir() else []:
        if name.startswith(start):
            try:
                yield path / name, RunFolder(Path(os.readlink(path / name)))
            except OSError:
                continue  # Another agent has removed it just now, or it is no link of ours.


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


def _is_elsewhere(about: Mapping[str, Any]) -> bool:
    """Whether another machine has made a run: a host may be renamed, or boot anew, but not both at once."""
    made_on, here = about.get("machine") or {}, machine()
    return bool(made_on) and all(made_on.get(key) != here[key] for key in ("host", "boot_id"))


def _may_run_here(folder: RunFolder) -> bool:
    """Whether a run that has not ended may have processes here; not one of an earlier boot, or of another user."""
    try:
        if os.stat(folder.path).st_uid != os.geteuid() or folder.has(supervisor.EXIT):
            return False
    except FileNotFoundError:
        return True  # Its job may run on, though its folder was removed.
    except OSError:
        return False
    made_on, here = (folder.read(supervisor.PROCESS) or {}).get("machine") or {}, machine()
    return all(made_on.get(key, here[key]) == here[key] for key in ("boot_id", "pid_namespace"))


def _drop(link: Path, folder: RunFolder) -> None:
    """Remove the link of a run whose folder cannot be read any more, and kill its processes."""
    if folder.has(supervisor.PROCESS) or not folder.path.exists():
        killed = folder.kill_marked()
        log.warning("the run folder %s is broken: nothing of it is kept; killed processes: %s", folder.path, killed)
    link.unlink(missing_ok=True)
