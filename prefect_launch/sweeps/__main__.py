"""Entry point of a sweep's scheduler on an agent: `python -m prefect_launch.sweeps ID`."""

from __future__ import annotations

import sys

from prefect_launch.core.early_signals import early_signals


def _run() -> int:
    """Run it; a request to leave that comes while the program is loaded is kept for it."""
    with early_signals(lambda line: None) as early:
        from prefect_launch.sweeps.program import main

        return main(sys.argv[1:], early)


if __name__ == "__main__":
    sys.exit(_run())
