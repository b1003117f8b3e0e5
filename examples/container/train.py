"""Estimate pi with random points: the program of an image. It needs nothing but Python."""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--points", type=int, default=100_000)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

random.seed(args.seed)
inside = sum(random.random() ** 2 + random.random() ** 2 < 1 for _ in range(args.points))
print(f"pi is about {4 * inside / args.points:.4f}")
# What is in this folder is kept; `outputs.json` is shown with the run.
Path(os.environ["LAUNCH_OUTPUT_DIR"], "outputs.json").write_text(json.dumps({"pi": 4 * inside / args.points}))
