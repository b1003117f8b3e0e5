import argparse
import os
import pathlib

import six

parser = argparse.ArgumentParser()
parser.add_argument("--output", type=pathlib.Path)
parser.add_argument("--note")
given = parser.parse_args()
given.output.mkdir(exist_ok=True)
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], given.note, six.__version__, flush=True)
