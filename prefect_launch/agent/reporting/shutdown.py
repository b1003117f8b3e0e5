"""What an agent was told about its end: drain (take no more, finish what runs), or leave."""

from __future__ import annotations

from prefect_launch.agent.polling.events import WakeEvent


class DrainState:
    """The orders of one agent.

    Args:
        wake: is rung at every new order.

    Attributes:
        has_begun: whether its server has answered, so that it sees what its last life left in work.
        at_work: whether its loop has begun to take items.
        stopping: leave now; what runs goes on.
        stops_jobs: when it leaves, what runs is stopped.
        drain_requested: somebody has ordered through the server that it drains.
        ends_shift: a shift that has drained so ends before its time.
    """

    def __init__(self, wake: WakeEvent) -> None:
        self._wake = wake
        self._drains_here = False
        self.has_begun = False
        self.at_work = False
        self.stopping = False
        self.stops_jobs = False
        self.drain_requested = False
        self.ends_shift = False

    @property
    def draining(self) -> bool:
        """Whether it takes no more items."""
        return self._drains_here or self.drain_requested

    def drain(self) -> None:
        """Take no more items; leave when all that is in work is done."""
        self._drains_here = True
        self._wake.set()

    def set_drain_request(self, wanted: bool, *, ends_shift: bool = False) -> None:
        """Note what the server's order says now."""
        if (wanted, ends_shift) != (self.drain_requested, self.ends_shift):
            self.drain_requested, self.ends_shift = wanted, ends_shift
            self._wake.set()

    def leave(self, *, stop_jobs: bool = False) -> None:
        """Leave now.

        Args:
            stop_jobs: stop what runs; without it, it goes on.
        """
        self.stopping = True
        self.stops_jobs = stop_jobs
        self._wake.set()
