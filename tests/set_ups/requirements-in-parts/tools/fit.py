import argparse

import six
import toolz

from shapes import sizes

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--data", default="./data/größen 1.csv")
    given = parser.parse_args()
    print("sum", given.scale * sum(sizes.read(given.data)), "with", six.__version__, toolz.__version__)
