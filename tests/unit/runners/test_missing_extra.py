"""A resource whose extra is not installed: submitters do without it, and an agent is told to install it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import launch_add
from prefect_launch.client.api import use_api
from prefect_launch.errors import AgentConfigError
from prefect_launch.runners.registry import runner_class
from prefect_launch.runners.remote.sagemaker import options as sagemaker_options
from prefect_launch.testing import InMemoryApi
from tests.support.sagemaker import QUEUE
from tests.unit.runners.vertex.world import SPEC

_OF_EXTRAS = ("aiobotocore", "aiohttp", "botocore", "google.auth", "kubernetes_asyncio")


@pytest.fixture(autouse=True)
def _nothing_installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in (
        *_OF_EXTRAS,
        *(name for name in sys.modules if name.startswith(tuple(f"{one}." for one in _OF_EXTRAS))),
    ):
        monkeypatch.setitem(sys.modules, name, None)
    sagemaker_options._model.cache_clear()
    yield
    sagemaker_options._model.cache_clear()


@pytest.mark.parametrize(("resource", "config"), [("kubernetes", {}), ("sagemaker", QUEUE), ("vertex", {"spec": SPEC})])
async def test_only_the_agent_needs_the_extra_of_its_resource(
    tmp_path: Path, resource: str, config: dict[str, Any]
) -> None:
    api = InMemoryApi(entity="acme")
    with use_api(api):
        api.create_run_queue("there", resource, config=config)
        launch_add(docker_image="team/train:1", queue_name="there")
    assert len(list(api.items(queue="there"))) == 1

    runner, install = runner_class(resource)(tmp_path), rf"Install it with: pip install 'prefect-launch\[{resource}\]'"
    with pytest.raises(AgentConfigError, match=install):
        await runner.ping()
    (found,) = await runner.diagnose({})
    assert (found.is_ok, f"pip install 'prefect-launch[{resource}]'" in found.detail) == (False, True)
