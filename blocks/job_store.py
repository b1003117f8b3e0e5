"""The job store's block type, and a ready document of it: a folder on this machine.

`prefect block register --file blocks/job_store.py` makes the type known to the server; `python blocks/job_store.py`
saves the document `launch-job-store/default`, which every `Api` then uses. Edit it in the UI to keep jobs in a bucket.
"""

from __future__ import annotations

from prefect_launch.jobs.store import JobStore

default = JobStore()

if __name__ == "__main__":
    default.save("default", overwrite=True)
