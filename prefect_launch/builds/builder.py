"""What builds an image of an order: the seam, and what builders tell of a failure.

An image gets its tag when it is whole, so nothing half-made is ever under it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

from prefect_launch.builds.pip_access import PipAccess
from prefect_launch.builds.request import BuildOrder
from prefect_launch.errors import BuildError, InfrastructureError, clause

#: Takes the lines of a build's log; may be called from any thread.
LineSink = Callable[[str], None]

_SHOWN_LINES: Final = 15
#: The words of the engine, of pip and of uv for a fault of the machine, not of what is built.
_MACHINE_FAULTS: Final = re.compile(
    r"no space left on device|failed to fetch|error sending request|dns error|connection (?:refused|reset)|timed out"
    r"|temporary failure in name resolution|invalid peer certificate"
    r"|HTTP status (?:server error|client error \(40[137])|tls handshake|cannot allocate memory"
    r"|CERTIFICATE_VERIFY_FAILED",
    re.IGNORECASE,
)
_MISSING: Final = (
    re.compile(r"Because (?P<name>[\w.\-\[\]]+)(?:==\S+)? was not found"),
    re.compile(r"there (?:is|are) no versions? of (?P<name>[\w.\-\[\]]+)"),
    re.compile(r"No matching distribution found for (?P<name>\S+)"),
    re.compile(r"Failed to (?:build|download)(?: and build)? `?(?P<name>[\w.\-\[\]=]+)"),
)


class Builder(ABC):
    """One way to build images."""

    #: As people are told it.
    name: ClassVar[str]
    #: Whether folders of this machine can be mounted into a build step.
    mounts_folders: ClassVar[bool] = False

    @abstractmethod
    async def build(self, order: BuildOrder, access: PipAccess, log: LineSink) -> str:
        """Build an image and return its id, or the order's name when it has that already. Cancelled, it stops.

        Args:
            order: what is built.
            access: what pip is told in the installing step.
            log: takes the build's output.

        Raises:
            BuildError: when a step fails; it is named, with the last lines.
            InfrastructureError: when the engine, the network or the disk is at fault.
        """


def failure(step: str, reason: str, lines: Sequence[str]) -> BuildError | InfrastructureError:
    """Make the error of a build that failed.

    Args:
        step: the step of the Dockerfile that failed.
        reason: what the builder says.
        lines: the last lines of the build's output, oldest first.
    """
    shown = [line for line in lines if line.strip()][-_SHOWN_LINES:]
    said = " ".join(line.strip(" ╰─▶×│") for line in shown)
    tail = "".join(f"\n  {line}" for line in shown)
    if _MACHINE_FAULTS.search(reason) or _MACHINE_FAULTS.search(said):
        return InfrastructureError(
            f"The image cannot be built here: the step {step!r} failed: {clause(reason)}. Look at this machine's"
            f" disk, network and package index.{tail}"
        )
    missing = next((match["name"] for sign in _MISSING if (match := sign.search(said))), None)
    what = f" The package {missing.strip('`')!r} cannot be had." if missing else ""
    return BuildError(
        f"The image cannot be built: the step {step!r} failed: {clause(reason)}.{what} Correct the Dockerfile or the"
        f" requirements.{tail}"
    )
