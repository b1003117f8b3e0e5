"""Limit of open files of an agent's process: each run that it follows holds a lock and perhaps a connection open."""

from __future__ import annotations

import logging
import math
import resource
from contextlib import suppress
from typing import Final

from prefect_launch.core.units import counted
from prefect_launch.settings.agent_config import AgentConfig

log = logging.getLogger(__name__)

#: What an agent has open without any run: connections to the server and to its resources, programs that it runs.
_AT_REST: Final = 256
#: For each run: its lock, and what a runner or a log has open.
_FOR_A_RUN: Final = 4
#: Runs at a time beyond which nobody has gone, for an agent without a limit.
_MOST_RUNS: Final = 1_000
#: Some programs of jobs, which inherit the limit, close every file that could be open one by one.
_MOST_FILES: Final = 65_536


def open_files_missing(config: AgentConfig) -> str:
    """Say what a process of this user may not have open that an agent needs; an empty text when it may.

    Args:
        config: the agent's.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _needed(config)
    if hard == resource.RLIM_INFINITY or hard >= needed:
        return ""
    return (
        f"A process may have {hard} files open here, and needs {needed} for"
        f" {counted(config.max_jobs, 'job')} at a time. Raise the"
        " limit (ulimit -Hn, or LimitNOFILE= of the agent's unit), or lower max_jobs."
    )


def raise_open_files_limit(config: AgentConfig) -> None:
    """Let this process have as many files open as its user may, and log when that is too few for the agent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(OSError, ValueError):  # Some systems have a lower limit of their own.
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if missing := open_files_missing(config):
        log.warning("%s", missing)


def _needed(config: AgentConfig) -> int:
    runs = _MOST_RUNS if math.isinf(config.max_jobs) else int(config.max_jobs)
    return min(_AT_REST + _FOR_A_RUN * runs, _MOST_FILES)
