"""The contract of remote runners, on a server in memory and a worker that starts real wrappers of real jobs."""

from __future__ import annotations

from prefect_launch.testing.runner_contract import RemoteRunnerContract


class TestPrefectRunner(RemoteRunnerContract):
    """Each promise of the contract, kept in another work pool: a wrapper takes a second or more to start."""

    limit_seconds = 60.0
    stop_margin_seconds = 30.0
    short_seconds = 2
    starts_at_once = False
