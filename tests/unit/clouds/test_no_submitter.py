"""No option of a resource, whoever writes it, says who the agent is in a cloud."""

from __future__ import annotations

import pytest

from prefect_launch.errors import NotFoundError, SpecError
from prefect_launch.runners.registry import runner_class


@pytest.mark.parametrize(
    ("resource", "options"),
    [
        *(("sagemaker", {option: "x"}) for option in ("profile", "region", "credentials", "aws_access_key_id")),
        *(("vertex", {"run": {option: "x"}}) for option in ("project", "location", "region", "credentials")),
    ],
)
def test_option_that_would_say_who_the_agent_is_is_refused(resource: str, options: dict[str, object]) -> None:
    runner = runner_class(resource)

    with pytest.raises((SpecError, NotFoundError)):
        runner.check_options(options)


@pytest.mark.parametrize(("resource", "option"), [("sagemaker", "role-arn"), ("vertex", "spec")])
def test_whom_a_job_runs_as_is_no_option_of_submitters(resource: str, option: str) -> None:
    runner = runner_class(resource)

    assert option in runner.options
    assert option not in runner.submitter_options
