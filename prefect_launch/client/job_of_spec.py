"""The job that a launch spec names: one that is kept, or one that is to be made of the spec's git URI.

A job of a URI is looked up by its content (remote, commit, entry point), so that the same request finds the same
version. It is made only when everything else was checked: a refused call leaves no job behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefect_launch.errors import InternalError
from prefect_launch.jobs.model import GitJobSource, Job, JobDraft
from prefect_launch.spec.launch_spec import GitSource, LaunchSpec

if TYPE_CHECKING:
    from prefect_launch.jobs.registry import JobRegistry


@dataclass
class NamedJob:
    """What a spec names.

    Attributes:
        job: the job; `None` for an image. One that is new is not stored yet, and may only be looked at.
        draft: of a job that is not kept yet.
    """

    job: Job | None = None
    draft: JobDraft | None = None

    async def kept(self, jobs: JobRegistry) -> Job | None:
        """Return the job, stored if it was new."""
        if self.draft is not None:
            self.job, self.draft = (await jobs.put(self.draft)).job, None
        return self.job


def same_uri(spec: LaunchSpec) -> tuple[object, ...] | None:
    """Return what specs of one URI have in common when they name the same job; `None` for a spec without one."""
    return (spec.uri, spec.git.version, spec.overrides.entry_point, spec.entity, spec.project) if spec.uri else None


async def job_named_by(spec: LaunchSpec, jobs: JobRegistry) -> NamedJob:
    """Find the job that a spec names. Nothing is stored; a git remote may be asked.

    Raises:
        NotFoundError: for an unknown job, branch, tag or commit.
        SourceError: for a URI that is no git remote, or one that cannot be read.
        InfrastructureError: when the network or a host is at fault.
    """
    if spec.job:
        return NamedJob(await jobs.resolve(spec.job))
    if not spec.uri:
        return NamedJob()
    from prefect_launch.client.job_drafts import JobRequest, draft_job

    request = JobRequest(
        path=spec.uri,
        job_type="git",
        entity=spec.entity,
        project=spec.project,
        entrypoint=spec.overrides.entry_point or (),
        git_hash=spec.git.version,
    )
    draft, _ = await draft_job(request)
    found = await jobs.find_same(draft)
    return NamedJob(found) if found is not None else NamedJob(await jobs.preview(draft), draft)


def with_job(spec: LaunchSpec, job: Job) -> LaunchSpec:
    """Return a spec that names this version of the job; of a URI, what it was resolved to stays in `git`."""
    if not spec.uri:
        return spec.model_copy(update={"job": job.reference})
    source = job.document.source
    if not isinstance(source, GitJobSource):
        raise InternalError(f"The job {job.reference} was made of the URI {spec.uri!r}, but is no git job.")
    changes = {
        "uri": None,
        "job": job.reference,
        "git": GitSource(repo=source.git.remote, version=source.git.commit),
        "overrides": spec.overrides.model_copy(update={"entry_point": None}),  # It is the job's own now.
    }
    return spec.model_copy(update=changes)
