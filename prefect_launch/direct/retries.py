"""Retries of `launch`: the rule of an item of a queue, for a run here and now that is followed to its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio

from prefect_launch.agent.item.outcome import outcome_of_error
from prefect_launch.errors import ExecutionError, LaunchError, SpecError
from prefect_launch.runners.base import Phase
from prefect_launch.spec.launch_spec import LaunchSpec
from prefect_launch.spec.retry import DEFAULT_RETRIES, Cause, Retries

if TYPE_CHECKING:
    import logging

    from prefect_launch.jobs.model import Job

    Logger = logging.Logger | logging.LoggerAdapter[Any]

T = TypeVar("T")

#: A run that nobody follows is run once: there is nobody who could see its end.
_ONCE: Final = Retries(max=0)


def retries_here(spec: LaunchSpec, job: Job | None, *, followed: bool) -> Retries:
    """Return the rule of a run here and now: its spec's, its job's, or the default.

    Args:
        spec: of the run.
        job: that it runs.
        followed: whether the run is followed to its end.

    Raises:
        SpecError: when the spec asks for retries of a run that is not followed.
    """
    if followed:
        return spec.retries or (job.document.retries if job else None) or DEFAULT_RETRIES
    if spec.retries is not None and spec.retries.max:
        raise SpecError(
            f"retries (max {spec.retries.max}) need somebody who sees the run's end. With synchronous=False nobody"
            f" follows a run on the resource {spec.resource!r}, which is not on this machine: leave retries out, wait"
            " for it, or put it on a queue with launch_add."
        )
    return _ONCE


async def with_retries(
    rule: Retries,
    attempt: Callable[[int], Awaitable[T]],
    *,
    first: int,
    logger: Logger,
    pause: Callable[[float], Awaitable[None]] = anyio.sleep,
) -> T:
    """Make attempts until one ends well, or the rule gives no more.

    Args:
        rule: which ends bring it back, how often, how late.
        attempt: makes the attempt of that number.
        first: number of the first attempt.
        logger: gets a line before each further attempt.
        pause: waits for some seconds, between two attempts.

    Raises:
        LaunchError: of the last attempt.
    """
    done = 0
    while True:
        try:
            return await attempt(first + done)
        except LaunchError as error:
            if done >= rule.max or not rule.covers(_cause_of(error)):
                raise
            delay = rule.delay_seconds(done)
            done += 1
            told = str(error).partition("\n")[0]
            logger.warning("%s It is run again in %g s (retry %d of %d).", told, delay, done, rule.max)
            await pause(delay)


def _cause_of(error: LaunchError) -> Cause | None:
    if isinstance(error, ExecutionError):
        return Cause(error.cause) if error.cause else None
    return outcome_of_error(error, Phase.RUN).cause
