"""How long a job waits for `import prefect_launch.inputs`, and a person for `prefect-launch --help`.

The floor of both is an interpreter that does nothing. Runs alternate with the floor's, so that a busy machine slows
both; the median is taken, after one run that fills the file cache and writes the compiled files.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.figures import Figure, Goal, at_most_over, print_table

_ROOT = Path(__file__).resolve().parents[1]
_ROUNDS = 15
_NOTHING = (sys.executable, "-c", "pass")
_INPUTS = (sys.executable, "-c", "import prefect_launch.inputs")
_HELP = (sys.executable, "-c", "from prefect_launch.cli import main; main()", "--help")


def measure(rounds: int = _ROUNDS) -> list[Figure]:
    """Measure both.

    Args:
        rounds: how often each is run.

    Raises:
        subprocess.CalledProcessError: when one of them fails.
    """
    nothing, inputs, help_page = _alternate((_NOTHING, _INPUTS, _HELP), rounds)
    floor_name = "python -c pass"
    return [
        Figure("import prefect_launch.inputs", inputs, "ms", nothing, floor_name, at_most_over(nothing, 50, "ms")),
        Figure("prefect-launch --help", help_page, "ms", nothing, floor_name, Goal("≤ 200 ms", 200)),
    ]


def _alternate(commands: Sequence[Sequence[str]], rounds: int) -> list[float]:
    for command in commands:
        _milliseconds(command)
    times = [[_milliseconds(command) for command in commands] for _ in range(rounds)]
    return [median(column) for column in zip(*times, strict=True)]


def _milliseconds(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, cwd=_ROOT, check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - begin) * 1000


if __name__ == "__main__":
    print_table(measure())
