"""Run a sweep as a deployment: its flow run is the sweep, and its trials are items of a queue."""

from __future__ import annotations

from prefect_launch.sweeps.flow import sweep_flow

sweep = sweep_flow()
