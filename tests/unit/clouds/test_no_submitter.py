"""No option of a resource, whoever writes it, says who the agent is in a cloud."""

from __future__ import annotations

import pytest

from prefect_launch.errors import NotFoundError, SpecError
from prefect_launch.planning.item_options import submitted_options
from prefect_launch.policy.template import QueueConfig
from prefect_launch.runners.registry import runner_class
from prefect_launch.spec.launch_spec import LaunchSpec
from tests.support.queue_config import make_config


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


@pytest.mark.parametrize(
    ("resource", "option"), [("sagemaker", "region"), ("sagemaker", "credentials"), ("vertex", "project")]
)
def test_whoever_sets_what_is_the_agents_is_told_where_it_is_said(resource: str, option: str) -> None:
    told = pytest.raises(SpecError, match=rf"'{option}' of {resource} is not read: .*in (its own|the agent's) config")
    with told:
        submitted_options(QueueConfig(resource=resource), LaunchSpec(resource_args={resource: {option: "x"}}), "q")
    with told:
        make_config(resource, {option: "x"})
    with told:
        make_config(resource, submitter_options=[option])


@pytest.mark.parametrize(("resource", "option"), [("sagemaker", "role-arn"), ("vertex", "spec")])
def test_whom_a_job_runs_as_is_no_option_of_submitters(resource: str, option: str) -> None:
    runner = runner_class(resource)

    assert option in runner.options
    assert option not in runner.submitter_options


@pytest.mark.parametrize("resource", ["sagemaker", "vertex"])
def test_unknown_option_lists_each_option_once_under_its_normal_name(resource: str) -> None:
    runner = runner_class(resource)

    told = str(runner.unknown_option("sshmount", where=""))

    assert "e" in runner.options
    assert " env," in told
    assert " e," not in told
