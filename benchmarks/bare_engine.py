"""The floors of containers: what the Docker Engine takes by itself, asked by the `docker` package."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import uuid4

import docker

from benchmarks.figures import steady_rate

#: Marks the containers of a benchmark; its value tells them apart.
LABEL = "launch-bench"


class StartEvents:
    """The engine's `start` events, by the value of one label of the container.

    Args:
        client: of the engine; used by a thread of its own from now on.
        label: the label.
    """

    def __init__(self, client: docker.APIClient, label: str) -> None:
        self._label = label
        self._heard: queue.Queue[tuple[str, float]] = queue.Queue()
        filters = {"type": "container", "event": ["start"], "label": [label]}
        self._stream = client.events(decode=True, filters=filters)
        threading.Thread(target=self._listen, daemon=True).start()

    def wait(self, value: str, seconds: float = 60.0) -> float:
        """Return when the container with that label value was started, in seconds since the epoch, by the engine's
        clock.

        Raises:
            TimeoutError: when it was not started in time.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                heard, at = self._heard.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise TimeoutError(f"no start event of the container {value!r} within {seconds:g} s") from None
            if heard == value:
                return at

    def close(self) -> None:
        """Stop to listen."""
        self._stream.close()

    def _listen(self) -> None:
        for event in self._stream:
            attributes: Mapping[str, Any] = event["Actor"]["Attributes"]
            self._heard.put((attributes.get(self._label, ""), event["timeNano"] / 1e9))


def create_and_start(client: docker.APIClient, image: str) -> tuple[str, str]:
    """Create and start a container that ends at once; return its id and its label's value."""
    name = uuid4().hex
    made = client.create_container(image, ["true"], labels={LABEL: name}, name=f"launch-bench-{name}")
    client.start(made["Id"])
    return made["Id"], name


def clear(client: docker.APIClient, container_id: str) -> None:
    """Wait until a container has ended, and remove it."""
    client.wait(container_id)
    client.remove_container(container_id)


def cycles_per_second(client: docker.APIClient, image: str, count: int, *, parallel: int) -> float:
    """Return how many containers a second the engine creates, starts, waits for and removes.

    Args:
        client: of the engine.
        image: an image with the program `true`.
        count: how many to run.
        parallel: how many at a time.

    Returns:
        The rate, as `steady_rate` takes it.
    """
    ends = []

    def cycle(_: int) -> None:
        clear(client, create_and_start(client, image)[0])
        ends.append(time.perf_counter())

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(cycle, range(count)))
    return steady_rate(ends, parallel)
