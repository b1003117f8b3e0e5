"""The registry's contract on a real one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from prefect_launch.registries.base import Registry
from prefect_launch.registries.client import RemoteRegistries
from tests.support.docker_engine import DockerEngine
from tests.support.docker_registry import DockerRegistry
from tests.support.ports import free_port
from tests.support.pushed_images import push
from tests.support.registry_contract import RegistryContract

pytestmark = pytest.mark.engine


class _Elsewhere(RemoteRegistries):
    """The registries as they are seen from where one of them is out of sight."""

    async def digest_of(self, reference: str) -> str | None:
        return await super().digest_of(f"127.0.0.1:{free_port()}/{reference.partition('/')[2]}")


class TestRemoteRegistries(RegistryContract):
    @pytest.fixture
    def there(
        self, engine: DockerEngine, open_registry: DockerRegistry, image_in: Callable[[str], str]
    ) -> tuple[str, str]:
        image = image_in(open_registry.host)
        return image, push(engine, image, image)

    @pytest.fixture
    def registry(self) -> Registry:
        return RemoteRegistries()

    @pytest.fixture
    def away(self) -> Registry:
        return _Elsewhere(pauses=())
