"""All registries that can be reached over HTTP, as one `Registry`: each is found by the image's own name."""

from __future__ import annotations

from prefect_launch.registries.base import Credentials, Registry
from prefect_launch.registries.client import PAUSES_SECONDS, RegistryClient
from prefect_launch.registries.keychain import Keychain
from prefect_launch.registries.reference import parse_reference


class RemoteRegistries(Registry):
    """The registries of the images' names.

    Args:
        keychain: who to be at each, and which may do without TLS.
        pauses: seconds before each further try of a question that failed for the registry's sake.
    """

    def __init__(self, keychain: Keychain | None = None, *, pauses: tuple[float, ...] = PAUSES_SECONDS) -> None:
        self._keychain = keychain or Keychain()
        self._pauses = pauses

    async def digest_of(self, reference: str) -> str | None:
        image = parse_reference(reference)
        client = RegistryClient(
            image.host,
            api_host=image.api_host,
            credentials=await self._keychain.credentials_for(image.host),
            is_insecure=self._keychain.is_insecure(image.host),
            advice=self._keychain.advice(image.host),
            pauses=self._pauses,
        )
        async with client:
            return await client.digest_of(image)

    async def credentials_for(self, reference: str) -> Credentials | None:
        return await self._keychain.credentials_for(parse_reference(reference).host)
