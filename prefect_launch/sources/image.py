"""Image jobs: there is no code to fetch, the image brings it. The folder is made, and stays empty."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import anyio

from prefect_launch.jobs.model import Job, SourceKind
from prefect_launch.sources.base import Source

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry


class ImageSource(Source):
    """A container image that is run as it is."""

    kind: ClassVar[SourceKind] = SourceKind.IMAGE

    async def fetch(self, job: Job, destination: Path, registry: JobRegistry) -> None:
        """Make the empty folder."""
        await anyio.Path(destination).mkdir(parents=True, exist_ok=True)
