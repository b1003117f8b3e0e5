"""Registry of runners: which resource name is which class, and which resources a home has used.

Runners are entry points of the group `prefect_launch.runners`, so a third party adds a resource with a package of its
own. A home records the resources that it has used, so that an agent looks for runs only there and imports no
library in vain (Docker's takes 75 ms of CPU time). A home older than these records may have used any resource.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from prefect_launch.clouds.accounts import Clouds
from prefect_launch.core.plugins import Plugins
from prefect_launch.registries.base import Registry
from prefect_launch.runners.base import Runner

RUNNERS: Final = Plugins(
    "prefect_launch.runners",
    "resource",
    Runner,  # type: ignore[type-abstract]
)


def runner_names() -> tuple[str, ...]:
    """Return the names of all resources that can be run here, sorted."""
    return RUNNERS.names


def runner_class(name: str) -> type[Runner]:
    """Return the runner of a resource.

    Args:
        name: the resource's name, such as "local-container".

    Raises:
        NotFoundError: when there is none of that name; the message names the nearest right one.
        AgentConfigError: when a third party's runner cannot be imported, or is no runner.
    """
    return RUNNERS.find(name)


def make_runner(name: str, home: Path, registry: Registry | None = None, clouds: Clouds | None = None) -> Runner:
    """Return a new runner of a resource, for one agent whose folder is `home`.

    Args:
        registry: who knows the credentials for images.
        clouds: who the runner is in the clouds; default: as this machine is logged in.

    Raises:
        LaunchError: as `runner_class` does.
    """
    runner = runner_class(name)(home)
    runner.registry = registry
    if clouds is not None:
        runner.clouds = clouds
    return runner


# --- resources that a home has used ---

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
