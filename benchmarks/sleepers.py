"""Containers that do nothing, run by an agent: what a machine full of long, silent jobs looks like."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from benchmarks.agents import running_agent
from benchmarks.place import Place
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.core.states import StateType
from prefect_launch.runners.base import Labels

if TYPE_CHECKING:
    from tests.support.processes import ChildProcess

#: The first process of a container ignores the signals that it has no handler for: this one must be killed.
SLEEP = ("sleep", "3600")
_LOOK_SECONDS = 0.2


@contextmanager
def queue_of_containers(place: Place, name: str) -> Iterator[str]:
    """Make a queue; at the end its containers and the queue are removed."""
    made = place.api.create_run_queue(name, "local-container")
    try:
        yield name
    finally:
        for container in containers(place, name):
            place.engine.api.remove_container(container["Id"], force=True)
        made.delete()


@contextmanager
def agent_at_rest(place: Place, queue: str, *, max_jobs: int) -> Iterator[ChildProcess]:
    """Run an agent that has done one item already, so that all that it needs is loaded."""
    with running_agent(place, queue, max_jobs=max_jobs) as agent:
        launch_add_many([_spec(place, "true")], queue, api=place.api)
        place.until_items(queue, 1, StateType.COMPLETED, look_seconds=_LOOK_SECONDS)
        yield agent


def run_sleepers(place: Place, queue: str, count: int) -> None:
    """Put sleepers on a queue, and wait until all of them run."""
    launch_add_many([_spec(place, *SLEEP)] * count, queue, api=place.api)
    place.until_items(queue, count, StateType.RUNNING, look_seconds=_LOOK_SECONDS)


def containers(place: Place, queue: str) -> list[dict[str, str]]:
    """List a queue's containers, in one call of the engine."""
    wanted = {"label": [f"{Labels.QUEUE}={queue}"]}
    found: list[dict[str, str]] = place.engine.api.containers(all=True, filters=wanted)
    return found


def _spec(place: Place, *command: str) -> dict[str, object]:
    return {"docker": {"docker_image": place.shell_image}, "overrides": {"entry_point": list(command)}}
