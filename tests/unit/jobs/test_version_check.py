"""A version beside a job: the job's own, or refused."""

from __future__ import annotations

import pytest

from prefect_launch.errors import SpecError
from prefect_launch.jobs.model import GitCommit, GitJobSource, Job, JobDocument, SourceKind, check_version

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SOURCE = GitJobSource(git=GitCommit(remote="https://example.com/d", commit=COMMIT))
JOB = Job(
    entity="team",
    project="demo",
    name="train",
    version=2,
    digest="sha256:0",
    document=JobDocument(source_type=SourceKind.GIT, source=SOURCE),
)


@pytest.mark.parametrize("version", [None, "v2", "2", "best", COMMIT, COMMIT[:7]])
def test_version_that_is_the_jobs_own_is_taken(version: str | None) -> None:
    check_version(JOB, version, named="train:best")


@pytest.mark.parametrize("version", ["v1", "main", COMMIT[:6], "f" * 40])
def test_other_version_is_refused_with_the_jobs_own_and_the_next_step(version: str) -> None:
    with pytest.raises(SpecError, match=r"'train:best', which is at v2, commit 0123456789ab\..*job='train:v2'"):
        check_version(JOB, version, named="train:best")
