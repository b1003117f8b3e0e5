import sys
from importlib.util import find_spec

import six
import toolz


def main():
    print("nano", *sys.argv[1:], six.__version__, toolz.__version__, find_spec("colorama"))
