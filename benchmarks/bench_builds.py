"""What a job of code costs beyond an image: its second launch, one changed source line, many agents at once.

The floor of a launch is the same item with an image in the place of the code, on the same agent, in turns. The floor of
a build is the engine's own build of one label on the base image.
"""

from __future__ import annotations

import asyncio
import io
import time
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

from benchmarks.agents import running_agent
from benchmarks.bare_engine import StartEvents
from benchmarks.figures import Figure, Goal, at_most_over
from benchmarks.place import Place
from prefect_launch import LaunchAgent, create_job
from prefect_launch.client.api import use_api
from prefect_launch.client.launch_add import launch_add
from prefect_launch.queues.session import Session
from prefect_launch.runners.base import Labels
from prefect_launch.server.values import LogRecord
from tests.support.images import ensure_python_image

_LAUNCHES = 12
_BUILDS = 5
_AGENTS = 8
_QUEUE = "builds"
_DEADLINE_SECONDS = 120
_PAUSE_SECONDS = 0.4


def measure(place: Place) -> list[Figure]:
    """Measure launches of code that is built already, builds of a changed line, and eight agents that ask at once."""
    base = ensure_python_image(place.engine)
    config = {"builder": {"base_image": base}}
    place.api.create_run_queue(_QUEUE, "local-container")
    with use_api(place.api):
        figures = [*_launches(place, base, config), _at_once(place, config)]
    place.api.run_queue(_QUEUE).delete()
    return figures


def _job(place: Place, name: str, line: str) -> str:
    folder = place.folder / "jobs" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "main.py").write_text(f"{line}\n")
    (folder / "requirements.txt").write_text("six\n")
    create_job(str(folder), "code", name=name, entrypoint="python main.py")
    return name


def _launches(place: Place, base: str, config: dict[str, Any]) -> list[Figure]:
    events = StartEvents(place.engine.api, Labels.ITEM)
    stamp = time.time_ns()
    job = _job(place, f"bench-{stamp}", f"pass  # {stamp}")
    code, image, changed, floors = [], [], [], []
    with running_agent(place, _QUEUE, max_jobs=1, **config):
        _item(events, job=job)
        for _ in range(place.rounds(_LAUNCHES)):
            code.append(_item(events, job=job))
            image.append(_item(events, docker_image=base, entry_point=["true"]))
        for count in range(place.few(_BUILDS)):
            _job(place, job, f"pass  # {stamp} {count}")
            changed.append(_item(events, job=job) - median(code))
            floors.append(_bare_build(place, base, count))
    events.close()
    floor = median(image)
    return [
        Figure(
            "second launch of a code job", median(code), "ms", floor, "an image job", at_most_over(floor, 300, "ms")
        ),
        Figure("one changed line: its build", median(changed), "ms", median(floors), "the engine's build of one label"),
    ]


def _item(events: StartEvents, **what: Any) -> float:
    begun = time.time()
    item = launch_add(queue_name=_QUEUE, **what)
    started = events.wait(str(item.id))
    item.wait_until_finished(_DEADLINE_SECONDS)
    time.sleep(_PAUSE_SECONDS)
    return (started - begun) * 1000


def _bare_build(place: Place, base: str, count: int) -> float:
    begun = time.time()
    text = f"FROM {base}\nLABEL count={time.time_ns()}-{count}\n"
    place.engine.images.build(fileobj=io.BytesIO(text.encode()), rm=True)
    return (time.time() - begun) * 1000


def _at_once(place: Place, config: dict[str, Any]) -> Figure:
    stamp = time.time_ns()
    job = _job(place, f"bench-{stamp}", f"pass  # {stamp}")
    items = [launch_add(queue_name=_QUEUE, job=job) for _ in range(_AGENTS)]
    home = Path(place.folder / "agents")
    agents = [
        LaunchAgent(place.api, {"name": f"bench-{n}", "queues": [_QUEUE], "home": home, **config})
        for n in range(_AGENTS)
    ]

    async def work() -> None:
        await asyncio.gather(*(agent.loop(until_empty=True) for agent in agents))

    asyncio.run(asyncio.wait_for(work(), _DEADLINE_SECONDS))
    notes = [_log(place, UUID(one.id)) for one in items]
    texts = ["\n".join(record.message for record in records if record.name == "build") for records in notes]
    builds = sum("Building " in text and "builds this image already" not in text for text in texts)
    return Figure(f"builds of one image, {_AGENTS} agents at once", builds, "", 1, "one build", Goal("1", 1))


def _log(place: Place, item_id: UUID) -> list[LogRecord]:
    async def read(session: Session) -> list[LogRecord]:
        return await session.server.read_logs(item_id)

    return place.api.call(read)
