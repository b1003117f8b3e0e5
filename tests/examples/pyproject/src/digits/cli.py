"""The program of a project, which its build backend gives a name."""

import sys

import six


def main() -> None:
    """Say that it ran."""
    sys.stdout.write(f"trained with six {six.__version__}\n")
