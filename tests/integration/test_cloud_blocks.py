"""Credentials for clouds in blocks of a real server: of the types that it has by itself, without Prefect's packages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import BlockDocumentCreate

from prefect_launch.clouds.accounts import Clouds
from prefect_launch.clouds.settings import CloudSettings
from prefect_launch.errors import AgentConfigError
from tests.support.clouds import KEY, PROJECT, ROBOT, SECRET, USER, FakeCloud, be_nobody, service_account_key


async def save(slug: str, name: str, data: dict[str, Any]) -> None:
    """Make a block of a type that the server knows, as its UI does."""
    async with get_client() as client:
        kind = await client.read_block_type_by_slug(slug)
        schema = await client.get_most_recent_block_schema_for_block_type(kind.id)
        assert schema is not None
        await client.create_block_document(
            BlockDocumentCreate(name=name, data=data, block_type_id=kind.id, block_schema_id=schema.id)
        )


@pytest.mark.usefixtures("prefect_server")
async def test_blocks_of_the_server_say_who_the_agent_is_in_the_clouds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unique: str
) -> None:
    be_nobody(tmp_path, monkeypatch)
    keys = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "eu-west-1"}
    async with FakeCloud() as cloud:
        monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.url)
        await save("aws-credentials", unique, keys)
        await save("gcp-credentials", unique, {"service_account_info": service_account_key(f"{cloud.url}/token")})
        clouds = Clouds(CloudSettings.model_validate({one: {"credentials": unique} for one in ("aws", "gcp")}))

        assert await clouds.aws.identity() == USER
        assert (await clouds.gcp.identity(), await clouds.gcp.project()) == (ROBOT, PROJECT)

        missing = Clouds(CloudSettings.model_validate({"aws": {"credentials": "nobodys"}}))
        with pytest.raises(AgentConfigError, match=r"no AwsCredentials block 'nobodys'"):
            await missing.aws.identity()
