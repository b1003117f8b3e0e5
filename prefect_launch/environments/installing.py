"""What installing says, here and in an image alike: faults of the machine, and a project that is left out."""

from __future__ import annotations

from typing import Final

#: uv's and pip's words for a fault of the network or the disk, not of the requirements; for Python's `re` and for
#: `grep -E` alike, whatever the case.
MACHINE_FAULT_PATTERN: Final = (
    "failed to fetch|error sending request|dns error|connection (refused|reset)|timed out|invalid peer certificate"
    "|no space left|permission denied|HTTP status (server error|client error [(]40[137])|establish a new connection"
)
#: Said of an environment in which only the dependencies of a project are.
PROJECT_LEFT_OUT: Final = (
    "The project itself is not installed, only what it depends on: its build backend cannot build it. Correct"
    " pyproject.toml, or write package = false under [tool.uv] there when the code is run where it lies."
)
