"""What every kind of source can do: put the code of a job into a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from prefect_launch.jobs.model import Job, SourceKind
from prefect_launch.sources.git_settings import GitSettings

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry


class Source(ABC):
    """One kind of source.

    Args:
        home: the folder of prefect-launch on this machine, where what is fetched may be kept for the next time.
        settings: how git works on this machine.
    """

    kind: ClassVar[SourceKind]

    def __init__(self, home: Path, settings: GitSettings | None = None) -> None:
        self.home = home
        self.settings = settings or GitSettings()

    @abstractmethod
    async def fetch(self, job: Job, destination: Path, registry: JobRegistry) -> None:
        """Put the code of a job into a folder.

        Args:
            job: a job of this kind.
            destination: the folder; it must not exist yet, or be empty. It is there, whole, afterwards, or as before.
            registry: where stored code is had from.

        Raises:
            SourceError: when the code cannot be had: the submitter must act.
            ArtifactError: when what is stored is damaged, or must not be unpacked.
            InfrastructureError: when the network, a host or the disk is at fault.
        """
