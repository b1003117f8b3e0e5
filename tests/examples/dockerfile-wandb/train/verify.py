"""Runs in the image: only the folder of the entry point went in."""

import os
import pathlib

assert os.getcwd() == "/train"
assert sorted(path.name for path in pathlib.Path().iterdir()) == ["Dockerfile.wandb", "verify.py"]
