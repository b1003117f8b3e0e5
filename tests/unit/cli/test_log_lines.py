"""Log lines of a command: ours, and not what the clouds' clients log of an error that is told besides."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import logging
from prefect_launch.cli.process import warnings_only

warnings_only()
for name in ("aiobotocore.credentials", "botocore.credentials", "azure.identity", "google.auth", "prefect_launch"):
    logging.getLogger(name).warning("of %s", name)
"""


def test_tracebacks_of_the_clouds_clients_are_not_shown() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)

    assert done.stderr.splitlines() == ["WARNING: of prefect_launch"]
