"""Code jobs: the archive in the job store, checked by its digest and unpacked with care."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from prefect_launch.jobs.model import Job, SourceKind
from prefect_launch.sources.base import Source

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry


class CodeSource(Source):
    """An archive of a folder."""

    kind: ClassVar[SourceKind] = SourceKind.CODE

    async def fetch(self, job: Job, destination: Path, registry: JobRegistry) -> None:
        """Unpack the archive."""
        await registry.fetch_code(job, destination)
