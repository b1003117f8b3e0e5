"""How long it takes to cancel an item whose container is silent and deaf: from the request to the state `Cancelled`.

Its first process handles no TERM, so the grace is always used up. The floor is the engine's own `stop` of such a
container, with the same grace, in turns with the items. The end of an item is the time that the server noted.
"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.agents import running_agent
from benchmarks.figures import Figure, at_most_over
from benchmarks.place import Place
from benchmarks.sleepers import SLEEP, queue_of_containers
from prefect_launch.client.api import use_api
from prefect_launch.client.launch_add import launch_add

if TYPE_CHECKING:
    from prefect_launch.client.queued_run import QueuedRun

_ROUNDS = 10
_GRACE_SECONDS = 1
#: After an item has become Running: nothing of its start is under way any more.
_SETTLE_SECONDS = 1.0


def measure(place: Place) -> list[Figure]:
    """Measure the median and the slowest."""
    floors, times = [], []
    image = place.shell_image
    with (
        queue_of_containers(place, "cancel") as queue,
        use_api(place.api),
        running_agent(place, queue, max_jobs=1, stopped_run_timeout=_GRACE_SECONDS),
    ):
        for _ in range(place.warm_up + place.few(_ROUNDS)):
            floors.append(_stop(place, image))
            times.append(_cancel(launch_add(docker_image=image, entry_point=list(SLEEP), queue_name=queue)))
    floors, times = floors[place.warm_up :], times[place.warm_up :]
    floor, name = median(floors), f"engine stop, grace {_GRACE_SECONDS} s"
    goal = at_most_over(floor, 1000, "ms")
    return [
        Figure("cancel a silent container, median", median(times), "ms", floor, name, goal),
        Figure(f"cancel a silent container, slowest of {len(times)}", max(times), "ms", floor, name, goal),
    ]


def _stop(place: Place, image: str) -> float:
    client: Any = place.engine.api
    container = client.create_container(image, list(SLEEP))["Id"]
    client.start(container)
    time.sleep(_SETTLE_SECONDS)
    begun = time.time()
    client.stop(container, timeout=_GRACE_SECONDS)
    spent = time.time() - begun
    client.remove_container(container)
    return spent * 1000


def _cancel(item: QueuedRun) -> float:
    item.wait_until_started(60)
    time.sleep(_SETTLE_SECONDS)
    begun = time.time()
    item.cancel()
    while not item.item.is_terminal:
        time.sleep(0.1)
    ended = item.item.end_time
    if item.item.state_name != "Cancelled" or ended is None:
        raise RuntimeError(f"{item.id} is {item.item.state_name}, not Cancelled: {item.message}")
    return (ended.timestamp() - begun) * 1000
