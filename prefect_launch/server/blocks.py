"""Blocks of Prefect that hold credentials, read by their type and name.

Every server knows the types of Prefect's own integrations, so no agent needs the package (prefect-docker, prefect-aws,
prefect-gcp) that a type comes from.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from prefect_launch.errors import AgentConfigError


class BlockType(NamedTuple):
    """A type of blocks: its slug on the server, its class, and its title in the UI."""

    slug: str
    class_name: str
    title: str


DOCKER_REGISTRY: Final = BlockType(
    "docker-registry-credentials", "DockerRegistryCredentials", "Docker Registry Credentials"
)
AWS: Final = BlockType("aws-credentials", "AwsCredentials", "AWS Credentials")
GCP: Final = BlockType("gcp-credentials", "GcpCredentials", "GCP Credentials")

#: Reads what a block of a type holds, by its name.
ReadBlock = Callable[[BlockType, str], Awaitable[dict[str, Any]]]


async def read_block(kind: BlockType, name: str) -> dict[str, Any]:
    """Return what a block holds, its secrets in plain text.

    Args:
        kind: the block's type.
        name: the block's name; `SLUG/NAME` is accepted too.

    Raises:
        AgentConfigError: when there is no such block.
    """
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    short = name.removeprefix(f"{kind.slug}/")
    try:
        async with get_client() as client:
            found = await client.read_block_document_by_name(short, kind.slug, include_secrets=True)
    except ObjectNotFound:
        raise AgentConfigError(
            f"There is no {kind.class_name} block {short!r} on the Prefect server. Make it in the UI (Blocks,"
            f" {kind.title}), or correct the config."
        ) from None
    return {key: plain(value) for key, value in found.data.items()}


def plain(value: Any) -> Any:
    """Return a block's value, taken out of pydantic's secrets."""
    return value.get_secret_value() if hasattr(value, "get_secret_value") else value
