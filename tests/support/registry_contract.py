"""Contract of a `Registry` that is asked for digests: the tests that the real ones and the fake both pass."""

from __future__ import annotations

import pytest

from prefect_launch.errors import RegistryError, SpecError
from prefect_launch.registries.base import Registry


class RegistryContract:
    """Mix-in; a subclass brings the fixtures `registry`, `there` (an image's name and its digest) and `away` (a
    registry that fails)."""

    async def test_image_that_is_there_has_its_digest(self, registry: Registry, there: tuple[str, str]) -> None:
        name, digest = there

        assert await registry.digest_of(name) == digest

    async def test_image_that_is_not_there_has_none(self, registry: Registry, there: tuple[str, str]) -> None:
        repository, _, _ = there[0].rpartition(":")

        assert await registry.digest_of(f"{repository}:not-there") is None
        assert await registry.digest_of(f"{repository}-not-there:1") is None

    async def test_registry_that_fails_says_so(self, away: Registry, there: tuple[str, str]) -> None:
        with pytest.raises(RegistryError):
            await away.digest_of(there[0])

    async def test_name_that_is_none_is_refused(self, registry: Registry) -> None:
        with pytest.raises(SpecError):
            await registry.digest_of("Not an image")

    async def test_registry_that_wants_nobody_in_particular_has_no_credentials(
        self, registry: Registry, there: tuple[str, str]
    ) -> None:
        assert await registry.credentials_for(there[0]) is None
