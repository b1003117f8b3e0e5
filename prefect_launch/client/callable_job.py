"""A job that can be called: `Api.job` returns it, with the methods that callers of the reference's library use."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect_launch.jobs.model import DOCUMENT_FILE, Job, SourceKind

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.client.queued_run import QueuedRun


@dataclass(frozen=True)
class CallableJob(Job):
    """One version of a job, as an `Api` found it.

    Attributes:
        api: that found it, and queues its runs.
        changes: what its runs change of it; `set_entrypoint` sets it.
    """

    api: Api = field(kw_only=True, repr=False, compare=False)
    changes: dict[str, Any] = field(default_factory=dict, kw_only=True, repr=False, compare=False)

    @classmethod
    def of(cls, job: Job, api: Api) -> CallableJob:
        """Return a job as one of an `Api`."""
        return cls(**{each.name: getattr(job, each.name) for each in fields(Job)}, api=api)

    def set_entrypoint(self, entrypoint: Sequence[str]) -> None:
        """Set the command of the runs that `call` queues, in place of the job's own."""
        self.changes["entry_point"] = list(entrypoint)

    def call(
        self,
        config: Mapping[str, Any],
        project: str | None = None,
        entity: str | None = None,
        queue: str | None = None,
        resource: str | None = None,
        resource_args: Mapping[str, Any] | None = None,
        template_variables: Mapping[str, Any] | None = None,
        project_queue: str | None = None,
        priority: int | str | None = None,
    ) -> QueuedRun:
        """Put a run of the job on a queue.

        Args:
            config: the job's inputs.
            project: of the run; by default the job's.
            entity: of the run, likewise.
            queue: its name; by default `default`.
            resource: must be the queue's, when given.
            resource_args: `{resource: {option: value}}`, over the queue's own.
            template_variables: values of the queue's template variables.
            project_queue: kept on the handle.
            priority: 1 (critical), 2 (high), 3 (medium, the default), 4 (low), or the word.

        Returns:
            A handle on the item.

        Raises:
            LaunchError: as `launch_add` does.
        """
        from prefect_launch.client.api import use_api
        from prefect_launch.client.launch_add import launch_add

        with use_api(self.api):
            return launch_add(
                job=self.reference,
                config={"overrides": {"run_config": dict(config)}},
                project=project,
                entity=entity,
                queue_name=queue,
                resource=resource,
                resource_args=resource_args,
                template_variables=template_variables,
                project_queue=project_queue,
                priority=priority,
                **self.changes,
            )

    def download(self, path: str | os.PathLike[str]) -> Path:
        """Write the job's document, and its code where the job keeps it, to a folder.

        Args:
            path: of the folder; it must not exist yet, or be empty.

        Raises:
            ArtifactError: when its archive is damaged.
            InfrastructureError: when the storage or the disk fails.
        """
        folder = Path(path)
        if self.kind is SourceKind.CODE:
            self.api.call(lambda session: session.jobs.fetch_code(self, folder))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / DOCUMENT_FILE).write_bytes(self.document.dump())
        return folder
