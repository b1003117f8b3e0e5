"""How an agent builds, as its configuration says it."""

from __future__ import annotations

import pytest

from prefect_launch.builds.settings import BuilderSettings
from prefect_launch.errors import AgentConfigError
from prefect_launch.settings.agent_config import parse_agent_config


def builder(**settings: object) -> BuilderSettings:
    return parse_agent_config({"name": "box", "builder": settings}).builder


def test_sizes_are_written_as_people_write_them() -> None:
    assert builder(context_limit="1.5g").context_limit == 1.5 * 1024**3
    assert builder(context_limit=500).context_limit == 500
    assert builder(context_limit="2 MiB").context_limit == 2 * 1024**2


def test_noop_of_the_reference_means_no_builder() -> None:
    assert builder(type="noop").type == "none"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"base_image": "python:3.11 slim"}, "Invalid image"),
        ({"base_image": "python#1"}, "Invalid image"),
        ({"accelerator": {"base_image": "nvidia/cuda:12 # comment"}}, "accelerator.base_image"),
        ({"type": "dockr"}, "Did you mean 'docker'"),
        ({"type": "kaniko"}, "Unknown builder type 'kaniko'"),
        ({"base_imge": "x"}, "Did you mean 'base_image'"),
        ({"context_limit": "much"}, "context_limit"),
        ({"context_limit": True}, "context_limit"),
        ({"backend": "podman"}, "backend"),
    ],
)
def test_wrong_setting_is_refused_with_its_rule(settings: dict[str, object], said: str) -> None:
    with pytest.raises(AgentConfigError, match=said):
        builder(**settings)
