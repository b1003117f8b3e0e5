"""A job for a Slurm cluster: every task says who it is, and the first one leaves the outputs."""

from __future__ import annotations

import json
import os
from pathlib import Path

rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
print(f"task {rank} of {world} on {os.uname().nodename}, job {os.environ.get('SLURM_JOB_ID')}")
if rank == 0:
    Path(os.environ["LAUNCH_OUTPUT_DIR"], "outputs.json").write_text(json.dumps({"tasks": world}))
