"""How long a container item waits on an idle agent: from the call of `launch_add` to the engine's `start` event.

The floor is `create` and `start` of the same image over the Engine API, up to the same event, measured after every
second item, so that a busy machine slows both. Each item comes alone: the one before has ended, and the agent sleeps.
"""

from __future__ import annotations

import time
from statistics import median

from benchmarks.agents import Front, running_agent
from benchmarks.bare_engine import LABEL, StartEvents, clear, create_and_start
from benchmarks.figures import Figure, at_most_over, percentile
from benchmarks.place import Place
from prefect_launch.client.api import use_api
from prefect_launch.client.launch_add import launch_add
from prefect_launch.runners.base import Labels

_LOOP_ITEMS = 100
_FLOW_ITEMS = 20
_WARM_UP = 3
_ITEMS_PER_FLOOR = 2
#: After an item has ended: the agent has looked for the next one, and sleeps again.
_PAUSE_SECONDS = 0.4


def measure(place: Place) -> list[Figure]:
    """Measure both ways to run an agent."""
    return [
        *_measure(place, "dispatch-loop", "agent start", "loop", _LOOP_ITEMS),
        *_measure(place, "dispatch-flow", "flow launch-agent", "flow", _FLOW_ITEMS),
    ]


def _measure(place: Place, queue: str, name: str, front: Front, items: int) -> list[Figure]:
    image = place.shell_image
    place.api.create_run_queue(queue, "local-container")
    bare, ours = StartEvents(place.engine.api, LABEL), StartEvents(place.engine.api, Labels.ITEM)
    floors, waits = [], []
    with use_api(place.api), running_agent(place, queue, max_jobs=1, front=front):
        for count in range(_WARM_UP + place.rounds(items)):
            wait = _item(queue, image, ours)
            time.sleep(_PAUSE_SECONDS)
            if count >= _WARM_UP:
                waits.append(wait)
                if count % _ITEMS_PER_FLOOR == 0:
                    floors.append(_bare(place, image, bare))
    bare.close()
    ours.close()
    place.api.run_queue(queue).delete()
    floor, floor_name = median(floors), f"create + start, median of {len(floors)}"
    beside = (floor, floor_name)
    return [
        Figure(f"dispatch, {name}, p50", median(waits), "ms", *beside, at_most_over(floor, 100, "ms")),
        Figure(f"dispatch, {name}, p99", percentile(waits, 0.99), "ms", *beside, at_most_over(floor, 400, "ms")),
    ]


def _bare(place: Place, image: str, events: StartEvents) -> float:
    begun = time.time()
    container_id, name = create_and_start(place.engine.api, image)
    started = events.wait(name)
    clear(place.engine.api, container_id)
    return (started - begun) * 1000


def _item(queue: str, image: str, events: StartEvents) -> float:
    begun = time.time()
    item = launch_add(docker_image=image, entry_point=["true"], queue_name=queue)
    started = events.wait(str(item.id))
    item.wait_until_finished(60)
    return (started - begun) * 1000
