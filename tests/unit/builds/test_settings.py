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
        ({"type": "podman"}, "Unknown builder type 'podman'"),
        ({"type": "kubernetes"}, r"builder\.destination is not set"),
        ({"kubernetes": {"cpus": 2}}, r"builder\.type is 'docker'"),
        ({"type": "kaniko", "build-context-store": "s3://b/c"}, "the context travels in ConfigMaps"),
        ({"type": "kaniko", "kaniko-image": "team/kaniko:1"}, r"Write it as builder\.kubernetes\.image"),
        ({"base_imge": "x"}, "Did you mean 'base_image'"),
        ({"context_limit": "much"}, "context_limit"),
        ({"context_limit": True}, "context_limit"),
        ({"backend": "podman"}, "backend"),
    ],
)
def test_wrong_setting_is_refused_with_its_rule(settings: dict[str, object], said: str) -> None:
    with pytest.raises(AgentConfigError, match=said):
        builder(**settings)


DESTINATION = "registry.example.com/team/built"


def cluster(**settings: object) -> BuilderSettings:
    return builder(type="kubernetes", destination=DESTINATION, kubernetes=settings)


def test_builds_in_a_cluster_take_the_options_of_a_queue_there() -> None:
    found = cluster(
        namespace="builds",
        cpus=2,
        memory="4g",
        node_selector={"pool": "builds"},
        timeout="30min",
        args=["--cache=true"],
    ).kubernetes
    assert found.timeout_seconds == 1800
    assert found.args == ("--cache=true",)
    assert found.options["namespace"] == "builds"
    assert found.options["memory"] == "4g"


def test_kaniko_of_the_reference_means_builds_in_a_cluster() -> None:
    assert builder(type="kaniko", destination=DESTINATION).type == "kubernetes"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"cpus": "many"}, r"builder\.kubernetes option 'cpus'"),
        ({"imag": "x"}, "Did you mean 'image'"),
        ({"gpus": 1}, "'gpus'"),
        ({"push_secret": "Not A Name"}, r"builder\.kubernetes\.push_secret"),
        ({"timeout": "soon"}, r"builder\.kubernetes\.timeout must be a duration"),
        ({"image": "ka niko"}, r"builder\.kubernetes\.image"),
        ({"namespace": "UPPER"}, r"builder\.kubernetes\.namespace"),
        ({"spec": {"template": {"spec": {"containers": [{"imag": "x"}]}}}}, "imag"),
        ({"args": "--cache"}, "args"),
    ],
)
def test_wrong_setting_of_builds_in_a_cluster_is_refused_with_its_rule(settings: dict[str, object], said: str) -> None:
    with pytest.raises(AgentConfigError, match=said):
        cluster(**settings)


def test_setting_of_a_docker_engine_is_refused_for_builds_in_a_cluster() -> None:
    with pytest.raises(AgentConfigError, match=r"builder\.network is for builds on a Docker Engine"):
        builder(type="kubernetes", destination=DESTINATION, network="host")
