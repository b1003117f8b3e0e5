"""The register of one user's `local-process` runs on one machine, whatever homes their agents have.

A link for each run to its folder, named by the run and its claim: so an agent that attempts an item again finds what an
agent of another home has at work of it. It lies in the user's state folder, apart for each boot and each space of
process ids, since only there a process is known by its id. A link says where to look; whether the run may be touched,
the claims of its item say. Where the folder cannot be made, or is not this user's alone, each home is by itself.
"""

from __future__ import annotations

import logging
import os
import pwd
import stat
from pathlib import Path

from prefect_launch.core.filesystem import remove_tree
from prefect_launch.runners.base import Found, Labels, RunPlan, run_name
from prefect_launch.runners.process import supervisor
from prefect_launch.runners.process.files import RunFolder, folders_at_work

log = logging.getLogger("prefect_launch.agent")


class MachineRegister:
    """The register, as one agent sees it.

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
