"""Entry point of a sweep's scheduler on an agent: `python -m prefect_launch.sweeps ID`."""

from __future__ import annotations

import sys

from prefect_launch.sweeps.program import main

if __name__ == "__main__":
    sys.exit(main())
