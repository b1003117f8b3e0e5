"""Where the code of jobs comes from: one class a kind, in one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from prefect_launch.jobs.model import Job, SourceKind
from prefect_launch.sources.base import Source
from prefect_launch.sources.code import CodeSource
from prefect_launch.sources.git import GitSource
from prefect_launch.sources.git_settings import GitSettings
from prefect_launch.sources.image import ImageSource

#: The one table of kinds.
SOURCES: Mapping[SourceKind, type[Source]] = MappingProxyType(
    {each.kind: each for each in (CodeSource, GitSource, ImageSource)}
)

__all__ = ["SOURCES", "CodeSource", "GitSource", "ImageSource", "Source", "source_of"]


def source_of(job: Job, home: Path, settings: GitSettings | None = None) -> Source:
    """Return what fetches the code of a job.

    Args:
        job: the job.
        home: the folder of prefect-launch on this machine.
        settings: how git works on this machine.
    """
    return SOURCES[job.kind](home, settings)
