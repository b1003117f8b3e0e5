"""The registry's contract on its in-memory fake."""

from __future__ import annotations

import pytest

from prefect_launch.testing import InMemoryRegistry
from tests.support.registry_contract import RegistryContract

IMAGE, DIGEST = "registry.example:5000/team/train:1", f"sha256:{'a' * 64}"


class TestInMemoryRegistry(RegistryContract):
    @pytest.fixture
    def there(self) -> tuple[str, str]:
        return IMAGE, DIGEST

    @pytest.fixture
    def registry(self) -> InMemoryRegistry:
        return InMemoryRegistry({IMAGE: DIGEST})

    @pytest.fixture
    def away(self) -> InMemoryRegistry:
        return InMemoryRegistry({IMAGE: DIGEST}, error="it is away")
