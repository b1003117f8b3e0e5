"""The command line, `prefect-launch`.

One file a group of commands. Nothing of Prefect is imported before a command runs, so that `--help` answers at once.
Every refusal and failure is one line on standard error and the exit code 1; Ctrl-C ends with 130.
"""

from __future__ import annotations

from prefect_launch.cli.main import main

__all__ = ["main"]
