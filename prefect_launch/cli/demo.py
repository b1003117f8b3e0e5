"""`prefect-launch demo`."""

from __future__ import annotations


def demo() -> None:
    """See it work: an embedded server, a real training job, three runs on a queue, one agent."""
    from prefect_launch.demo import run_demo

    run_demo()
