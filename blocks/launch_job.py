"""The block type of a job on a queue, which flows trigger.

`prefect block register --file blocks/launch_job.py` makes the type known to the server; make documents of it in the UI,
or with `LaunchJob(job="digits", queue="gpu").save("digits")`.
"""

from __future__ import annotations

from prefect_launch.client.job_block import LaunchJob

__all__ = ["LaunchJob"]
