"""Settings of an agent's identity in the clouds."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.errors import AgentConfigError
from prefect_launch.settings.agent_config import parse_agent_config


def test_config_says_who_the_agent_is_in_each_cloud() -> None:
    given = {"aws": {"profile": "training", "region": "eu-west-1"}, "gcp": {"credentials": "mine"}}

    found = parse_agent_config({"clouds": given}).clouds

    assert (found.aws.profile, found.aws.region, found.gcp.credentials) == ("training", "eu-west-1", "mine")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"asw": {}}, "Did you mean 'aws'"),
        ({"aws": {"profil": "x"}}, "Did you mean 'profile'"),
        ({"aws": "training"}, "must be mappings"),
        ({"aws": {"region": "Europe West"}}, "such as eu-west-1"),
        ({"aws": {"role_arn": "launch"}}, "a role's ARN"),
        ({"aws": {"profile": "x", "credentials": "y"}}, "only one"),
        ({"gcp": {"service_account": "launch"}}, "a service account's address"),
        ({"gcp": {"credentials": 7}}, "the name of a block"),
    ],
)
def test_wrong_settings_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(AgentConfigError, match=words):
        parse_agent_config({"clouds": given})


def test_keys_in_the_place_of_a_blocks_name_are_refused_without_being_shown() -> None:
    with pytest.raises(AgentConfigError, match="the name of a block") as caught:
        parse_agent_config({"clouds": {"aws": {"credentials": {"aws_secret_access_key": "of-the-agent"}}}})
    assert "of-the-agent" not in str(caught.value)
