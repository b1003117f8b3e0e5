"""Who an agent is at Google Cloud: the real client against services on the loopback."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from prefect_launch.clouds.gcp import GcpAccount
from prefect_launch.clouds.settings import GcpSettings
from prefect_launch.errors import AgentConfigError, NoIdentityError, UnreachableError
from prefect_launch.server.blocks import BlockType
from tests.support.clouds import DEPUTY, PROJECT, ROBOT, FakeCloud, service_account_key


def account(block: dict[str, Any] | None = None, **settings: str) -> GcpAccount:
    async def read(kind: BlockType, name: str) -> dict[str, Any]:
        assert (kind.slug, name) == ("gcp-credentials", "mine")
        return block or {}

    return GcpAccount(GcpSettings(**settings), read_block=read)


async def test_agent_is_who_the_key_of_its_block_says(cloud: FakeCloud) -> None:
    found = account({"service_account_info": service_account_key(f"{cloud.url}/token")}, credentials="mine")

    assert (await found.identity(), await found.project()) == (ROBOT, PROJECT)
    assert await found.token() == f"ya29.1-of-{ROBOT}"
    assert len(cloud.asked) == 1


async def test_agent_is_whom_the_machines_own_file_names(
    cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.json").write_text(json.dumps(service_account_key(f"{cloud.url}/token")))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
    found = account(project="other", region="europe-west4")

    assert (await found.identity(), await found.project(), found.region) == (ROBOT, "other", "europe-west4")


async def test_agent_impersonates_the_service_account_of_its_config(cloud: FakeCloud) -> None:
    block = {"service_account_info": service_account_key(f"{cloud.url}/token")}
    found = account(block, credentials="mine", service_account=DEPUTY)

    assert await found.token() == f"ya29.2-of-{DEPUTY}"
    assert (await found.identity(), await found.project()) == (DEPUTY, PROJECT)


async def test_service_account_that_may_not_be_impersonated_is_named(cloud: FakeCloud) -> None:
    block = {"service_account_info": service_account_key(f"{cloud.url}/token")}

    with pytest.raises(AgentConfigError, match=r"'other@x\.example'.*iam\.serviceAccountTokenCreator"):
        await account(block, credentials="mine", service_account="other@x.example").token()


async def test_agent_on_googles_machine_is_who_the_machine_is(
    cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_GCE_CHECK")
    # google-auth reads GCE_METADATA_HOST once, when it is imported.
    monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", cloud.host)
    monkeypatch.setenv("GCE_METADATA_IP", cloud.host)
    found = account()

    assert (await found.token(), await found.identity(), await found.project()) == (
        f"ya29.1-of-{ROBOT}",
        ROBOT,
        PROJECT,
    )


async def test_token_is_renewed_before_it_expires(cloud: FakeCloud) -> None:
    cloud.life = timedelta(seconds=200)
    found = account({"service_account_info": service_account_key(f"{cloud.url}/token")}, credentials="mine")

    assert [await found.token(), await found.token()] == [f"ya29.{number}-of-{ROBOT}" for number in (1, 2)]


async def test_machine_that_is_nobody_is_told_how_to_be_somebody() -> None:
    with pytest.raises(NoIdentityError, match=r"nobody at Google Cloud.*clouds\.gcp"):
        await account().token()


async def test_refused_account_is_reported_without_its_key(cloud: FakeCloud) -> None:
    key = service_account_key(f"{cloud.url}/token", "gone@team-ml.iam.gserviceaccount.com")

    with pytest.raises(AgentConfigError, match=r"invalid_grant.*clouds\.gcp") as caught:
        await account({"service_account_info": key}, credentials="mine").token()
    assert key["private_key"] not in str(caught.value)


async def test_login_of_a_user_that_is_over_is_no_fault_of_the_item(
    cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = {"type": "authorized_user", "client_id": "gcloud", "client_secret": "-", "refresh_token": "old"}
    (tmp_path / "login.json").write_text(json.dumps(login))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "login.json"))
    monkeypatch.setattr("google.oauth2.credentials._GOOGLE_OAUTH2_TOKEN_ENDPOINT", f"{cloud.url}/token")
    revoked = {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}
    cloud.faults = [web.json_response(revoked, status=400)]

    with pytest.raises(UnreachableError, match=r"login has expired.*Token has been expired.*'gcloud auth application"):
        await account().token()


async def test_google_that_is_busy_or_away_is_told_apart_from_a_refusal(cloud: FakeCloud) -> None:
    cloud.faults = [web.json_response({"error": "try later"}, status=503) for _ in range(3)]
    for address in (cloud.url, "http://127.0.0.1:1"):
        key = service_account_key(f"{address}/token")
        with pytest.raises(UnreachableError, match="try later"):
            await account({"service_account_info": key}, credentials="mine").token()


async def test_key_that_cannot_be_read_is_reported_without_what_is_in_it() -> None:
    key = {**service_account_key("http://127.0.0.1:1"), "private_key": "half of a key"}

    with pytest.raises(AgentConfigError, match="'mine' holds no service account's key") as caught:
        await account({"service_account_info": key}, credentials="mine").token()
    assert "half of" not in str(caught.value)


async def test_missing_region_is_reported() -> None:
    with pytest.raises(AgentConfigError, match=r"clouds\.gcp\.region"):
        _ = account().region
