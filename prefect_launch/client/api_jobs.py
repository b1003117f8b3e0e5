"""What an `Api` does with jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from uuid import UUID

if TYPE_CHECKING:
    from prefect_launch.client.api import Api
    from prefect_launch.jobs.model import Job, JobSummary


class JobCalls:
    """The calls of an `Api` about jobs; a part of `Api`, which is what `self` is."""

    @property
    def _jobs_api(self) -> Api:
        return cast("Api", self)

    def job(self, name: str) -> Job:
        """Return the job that `entity/project/name:alias`, or a shorter form, names.

        Raises:
            NotFoundError: when there is none; names the nearest one.
        """
        return self._jobs_api.call(lambda session: session.jobs.resolve(name))

    def jobs(self, entity: str | None = None, project: str | None = None) -> list[JobSummary]:
        """List the jobs of an entity and a project, of all when they are left out, by name."""
        return self._jobs_api.call(lambda session: session.jobs.list(entity, project))

    def job_aliases(self, job: Job) -> tuple[str, ...]:
        """List the aliases that mean this version of a job now, `latest` included."""
        return self._jobs_api.call(lambda session: session.jobs.aliases(job))

    def deploy_job(self, job: str, queue: str, *, name: str | None = None) -> tuple[Job, UUID, str]:
        """Make the deployment of a job on a queue, or bring it up to date.

        Args:
            job: the job; the version that it names now is what the deployment starts.
            queue: where its items go.
            name: of the deployment; by default the job's.

        Returns:
            The job, the deployment's id and its name.

        Raises:
            LaunchError: as `prefect_launch.queues.deployment.deploy_job` does.
        """
        from prefect_launch.queues.deployment import deploy_job

        return self._jobs_api.call(lambda session: deploy_job(session, job, queue, name=name))
