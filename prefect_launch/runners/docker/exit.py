"""How a container ended, in the words of runs. Nothing is asked here."""

from __future__ import annotations

from prefect_launch.runners.base import ExitStatus
from prefect_launch.runners.docker.engine import Container
from prefect_launch.runners.exit_codes import signal_of


def exit_of(container: Container | None, *, stopped: bool, warnings: tuple[str, ...]) -> ExitStatus:
    """Say how a container ended; `None` stands for one that is gone."""
    if container is None:
        return ExitStatus(
            exit_code=None,
            stopped=stopped,
            error="the container was removed by somebody else while it ran, and its exit code with it",
        )
    error = None
    if container.failed_to_start:
        error = f"the entry point cannot be run in the image {container.image!r}: {container.error}"
    code = container.exit_code
    return ExitStatus(
        exit_code=code,
        signal=None if error else signal_of(code),
        # A child that was killed for want of memory is no failure when the job itself went on and succeeded.
        oom_killed=container.oom_killed and code != 0,
        stopped=stopped,
        error=error,
        started_at=container.started_at,
        ended_at=container.ended_at,
        warnings=warnings,
    )
