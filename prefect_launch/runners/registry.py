"""Registry of runners: which resource name is which class, and which resources a home has used.

Runners are entry points of the group `prefect_launch.runners`, so a third party adds a resource with a package of its
own. A runner's module is imported on first use. This package's own runners are known without its metadata too (a plain
checkout). A home notes the resources that have run something for it, so that an agent looks for runs there and imports
no library in vain (Docker's takes 75 ms of CPU time); a home older than these notes may have used any resource.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from prefect_launch.errors import AgentConfigError, unknown_name
from prefect_launch.registries.base import Registry
from prefect_launch.runners.base import Runner

_GROUP = "prefect_launch.runners"
_BUILT_IN = {
    "local-process": "prefect_launch.runners.process.runner:LocalProcessRunner",
    "local-container": "prefect_launch.runners.docker.runner:LocalContainerRunner",
}


def runner_names() -> tuple[str, ...]:
    """Return the names of all resources that can be run here, sorted."""
    return tuple(sorted(_table()))


def runner_class(name: str) -> type[Runner]:
    """Return the runner of a resource.

    Args:
        name: the resource's name, such as "local-container".

    Raises:
        NotFoundError: when there is none of that name; the message names the nearest right one.
        AgentConfigError: when a third party's runner cannot be imported, or is none.
    """
    table = _table()
    if name not in table:
        raise unknown_name("resource", name, table)
    module, _, attribute = table[name].partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise AgentConfigError(
            f"The runner of the resource {name!r}, {table[name]!r}, cannot be imported ({error})."
            " Install or repair the package that brings it."
        ) from error
    if not (isinstance(found, type) and issubclass(found, Runner)):
        raise AgentConfigError(
            f"The runner of the resource {name!r}, {table[name]!r}, is no class derived from Runner."
        )
    return found


def make_runner(name: str, home: Path, registry: Registry | None = None) -> Runner:
    """Return a new runner of a resource, for one agent whose folder is `home`.

    Args:
        registry: who knows the credentials for images.

    Raises:
        LaunchError: as `runner_class` does.
    """
    runner = runner_class(name)(home)
    runner.registry = registry
    return runner


@lru_cache(maxsize=1)
def _table() -> dict[str, str]:
    # Reading what is installed takes 5 ms, which every item would pay several times.
    return {**_BUILT_IN, **{point.name: point.value for point in entry_points(group=_GROUP)}}


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
