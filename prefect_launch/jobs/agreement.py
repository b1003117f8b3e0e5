"""Whether the `version` that a spec names beside a job is the job's own: a job's version stands in its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from prefect_launch.errors import SpecError

if TYPE_CHECKING:
    from prefect_launch.jobs.model import Job

#: As many characters of a commit's id as people write.
_SHORT_COMMIT_CHARS: Final = 7


def check_version(job: Job, version: str | None, *, named: str | None = None) -> None:
    """Refuse a version that is not the one that the job is at.

    Args:
        job: as it was resolved.
        version: what the spec says beside it, if anything: `v3`, `3`, the alias in the job's name, a git job's commit.
        named: the job, as the spec names it.

    Raises:
        SpecError: naming the version, the job, and how its version is chosen.
    """
    if version is None:
        return
    commit = _commit(job)
    own = {f"v{job.version}", str(job.version), (named or "").partition(":")[2]} - {""}
    if version in own or (len(version) >= _SHORT_COMMIT_CHARS and commit.startswith(version)):
        return
    at = f"v{job.version}, commit {commit[:12]}" if commit else f"v{job.version}"
    raise SpecError(
        f"version={version!r} does not agree with the job {named or job.reference!r}, which is at {at}. version chooses"
        f" what a git uri is taken at; choose a job's version in its name, such as job='{job.name}:v{job.version}'."
    )


def _commit(job: Job) -> str:
    git = getattr(job.document.source, "git", None)
    return git.commit if git is not None else ""
