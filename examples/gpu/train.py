"""A run on the GPUs that the agent has allocated to it. A framework sees these cards only, and counts them from 0."""

from __future__ import annotations

import os
import time

from prefect_launch.inputs import load_config, save_outputs

config = {"seconds": 1.0, **load_config()}
cards = os.environ.get("CUDA_VISIBLE_DEVICES", "")
started = time.time()
print(f"training on the cards {cards or 'none'}", flush=True)
time.sleep(config["seconds"])  # Stands for the training.
save_outputs(cards=cards, started=started, ended=time.time())
