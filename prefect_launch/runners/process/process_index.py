"""Index of local processes: which run folders a user's runs have on one machine, asked by label or by item.

One object answers for all of them, from two folders of links. The home's own, `<home>/processes`, outlives boots and
machines: a home on a network disk may serve several, and the next life of an agent finds there what has ended
meanwhile. The user's own, in the state folder, spans all homes of the user on this machine, apart for each boot and
each space of process ids, since only there a process is known by its id: so an agent that attempts an item again finds
what an agent of another home has at work of it. A link says where to look; whether the run may be touched, the claims
of its item say.
"""

from __future__ import annotations

import logging
import os
import pwd
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect_launch.core.filesystem import remove_tree
from prefect_launch.runners.base import CLAIM_CHARS, PLAN_FILE, Found, Labels, RunPlan, run_name
from prefect_launch.runners.process import supervisor
from prefect_launch.runners.process.files import RunFolder, folders_at_work, registered

log = logging.getLogger(__name__)


class ProcessIndex:
    """All local runs of this user that an agent of one home can find on this machine.

    Args:
        home: the folder of prefect-launch on this machine.
    """

    def __init__(self, home: Path) -> None:
        self._home = HomeIndex(home / "processes")
        self._machine = MachineIndex()

    def add(self, plan: RunPlan) -> None:
        """Enter a run that was created, before it is started."""
        self._machine.add(plan)
        self._home.add(plan)

    def find(self, labels: Mapping[str, str]) -> list[Found]:
        """List the runs of this home and machine that have all these labels."""
        return self._home.find(labels)

    def find_beside(self, item_id: str) -> list[Found]:
        """List the runs of an item whose end is not known, of all homes, with the labels of item, attempt and claim."""
        return self._machine.find(item_id)

    def others(self, plan: RunPlan) -> list[Path]:
        """Return the folders of the same attempt that were made in this home under another claim, on this machine."""
        return self._home.others(plan)

    def remove(self, folder: RunFolder) -> None:
        """Strike a run out, and remove from its folder what says that it is one."""
        self._machine.remove(folder)
        (folder.path / supervisor.ENVIRONMENT).unlink(missing_ok=True)
        (folder.path / supervisor.PROCESS).unlink(missing_ok=True)
        self._home.remove(folder)


class HomeIndex:
    """The links in one home, to the runs that any agent of it has made.

    The same attempt at an item has one link for each claim that it was made under. What another machine made is left
    alone, since its processes cannot be seen from here. A run whose folder says nothing any more is nobody's: what is
    left of it is killed, so that its item can be run again.

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


class MachineIndex:
    """The links of one user on this machine, as one agent sees them.

    Where their folder cannot be made, or is not this user's alone, each home is by itself.

    Args:
        root: where the registers of all machines are that share the user's folder; by default in the state folder.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._root = root
        self._is_tidy = False
        self._is_missed = False

    def add(self, plan: RunPlan) -> None:
        """Enter a run that was created, before it is started."""
        claim = plan.labels.get(Labels.CLAIM)
        if not claim:
            return  # A direct `launch` is nobody else's to attempt again.
        try:
            (self._folder() / f"{plan.name}-{claim}").symlink_to(plan.run_dir.absolute())
        except FileExistsError:
            return
        except OSError as error:
            self._miss(error)

    def find(self, item_id: str) -> list[Found]:
        """List the runs of an item whose end is not known, with the labels of item, attempt and claim."""
        start = run_name(item_id)
        try:
            here = self._folder()
            names = [name for name in sorted(os.listdir(here)) if name.startswith(start)]
            found = [_found(item_id, name[len(start) :], here / name) for name in names]
        except OSError as error:
            self._miss(error)
            return []
        return [one for one in found if one is not None]

    def remove(self, folder: RunFolder) -> None:
        """Strike a run out."""
        try:
            here, target = self._folder(), str(folder.path.absolute())
            for name in os.listdir(here):
                if _target(here, name) == target:
                    (here / name).unlink(missing_ok=True)
        except OSError as error:
            self._miss(error)

    def _folder(self) -> Path:
        """Return the folder of this boot; it is made, and what is over is cleared away, when it is first asked for."""
        here = (self._root or state_folder() / "running") / os.uname().nodename.replace(os.sep, "_")
        boot_id = str(supervisor.identity(os.getpid())["boot_id"])
        path = here / f"{boot_id}-{os.stat('/proc/self/ns/pid').st_ino}"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_is_private(path)
        if not self._is_tidy:
            self._is_tidy = True
            _forget_other_boots(here, boot_id)
            _forget_what_is_gone(path)
        return path

    def _miss(self, error: OSError) -> None:
        """Say once that it cannot be used."""
        if not self._is_missed:
            self._is_missed = True
            log.debug("what agents of other homes run on this machine is not known: %s", error)


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


def _check_is_private(path: Path) -> None:
    about = path.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise PermissionError(f"{path} is not a folder that is this user's alone")


def _forget_other_boots(here: Path, boot_id: str) -> None:
    for folder in here.iterdir():
        if not folder.name.startswith(boot_id):
            remove_tree(folder)


def _forget_what_is_gone(path: Path) -> None:
    """Strike out runs whose folder somebody has removed, unless something of them is still at work."""
    targets = {name: _target(path, name) for name in os.listdir(path)}
    gone = {name: Path(target) for name, target in targets.items() if target and not os.path.exists(target)}
    at_work = folders_at_work() if gone else set()
    for name, target in gone.items():
        if target not in at_work:
            (path / name).unlink(missing_ok=True)


def _found(item_id: str, rest: str, link: Path) -> Found | None:
    """Return what a link leads to; `None` when that has ended, was struck out just now, or is another user's."""
    attempt, _, claim = rest.partition("-")
    target = _target(link.parent, link.name)
    if target is None:
        return None
    folder = RunFolder(Path(target))
    try:
        if os.stat(target).st_uid != os.geteuid() or folder.has(supervisor.EXIT):
            return None
    except FileNotFoundError:
        pass  # Its job may run on, though its folder was removed.
    except OSError:
        return None
    labels = {Labels.ITEM: item_id, Labels.ATTEMPT: attempt, Labels.CLAIM: claim}
    return Found(handle=target, state=folder.state, labels=labels, run_dir=folder.path)


def _target(folder: Path, name: str) -> str | None:
    try:
        return os.readlink(f"{folder}/{name}")
    except OSError:
        return None
