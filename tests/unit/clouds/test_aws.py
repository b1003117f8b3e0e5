"""Who an agent is at AWS: the real client against services on the loopback."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from botocore import exceptions

from prefect_launch.clouds import aws
from prefect_launch.clouds.aws import AwsAccount, aws_errors
from prefect_launch.clouds.settings import AwsSettings
from prefect_launch.errors import AgentConfigError, NoIdentityError, UnreachableError
from prefect_launch.server.blocks import BlockType
from tests.support.clouds import ACCOUNT, KEY, ROLE, SECRET, USER, AwsFault, FakeCloud

REGION = "eu-west-1"
BLOCK = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": REGION}


def account(block: dict[str, Any] | None = None, **settings: str) -> AwsAccount:
    async def read(kind: BlockType, name: str) -> dict[str, Any]:
        assert (kind.slug, name) == ("aws-credentials", "mine")
        return block or BLOCK

    return AwsAccount(AwsSettings(**settings), read_block=read)


def log_in(folder: Path, profile: str, **values: str) -> None:
    """Write a profile of the machine's AWS config."""
    lines = [f"[profile {profile}]", *(f"{key} = {value}" for key, value in values.items())]
    (folder / "aws-config").write_text("\n".join(lines))


async def test_agent_is_who_the_profile_of_its_config_says(cloud: FakeCloud, tmp_path: Path) -> None:
    log_in(tmp_path, "training", aws_access_key_id=KEY, aws_secret_access_key=SECRET, region=REGION)
    found = account(profile="training")

    assert (await found.identity(), await found.account_id(), await found.region()) == (USER, ACCOUNT, REGION)
    assert cloud.asked == [f"sts:GetCallerIdentity as {KEY} in {REGION}"]


async def test_agent_is_who_its_block_says(cloud: FakeCloud) -> None:
    found = account(credentials="mine")

    assert (await found.identity(), await found.region()) == (USER, REGION)


async def test_region_of_the_config_goes_before_that_of_the_block(cloud: FakeCloud) -> None:
    assert await account(credentials="mine", region="us-east-2").region() == "us-east-2"


async def test_agent_assumes_the_role_of_its_config(cloud: FakeCloud) -> None:
    found = account(credentials="mine", role_arn=ROLE)

    assert await found.identity() == f"arn:aws:sts::{ACCOUNT}:assumed-role/launch/session"
    assert [one.split()[0] for one in cloud.asked] == ["sts:AssumeRole", "sts:GetCallerIdentity"]


async def test_open_client_gets_new_keys_of_its_role_before_they_expire(cloud: FakeCloud) -> None:
    cloud.life = timedelta(minutes=5)
    async with account(credentials="mine", role_arn=ROLE).client("sts") as client:
        first = await client.get_caller_identity()
        await client.get_caller_identity()

    assert first["Account"] == ACCOUNT
    assert len([one for one in cloud.asked if "AssumeRole" in one]) == 2


async def test_open_client_uses_the_keys_that_its_block_has_now(
    cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "_KEYS_LIFE", timedelta(minutes=5))
    cloud.keys["AKIANEW"] = "arn:aws:iam::123456789012:user/new"
    block = dict(BLOCK)
    async with account(block, credentials="mine").client("sts") as client:
        first = await client.get_caller_identity()
        block["aws_access_key_id"] = "AKIANEW"
        second = await client.get_caller_identity()

    assert (first["Arn"], second["Arn"]) == (USER, "arn:aws:iam::123456789012:user/new")


async def test_open_client_uses_the_keys_that_its_profile_has_now(
    cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "_KEYS_LIFE", timedelta(minutes=5))
    cloud.keys["AKIANEW"] = "arn:aws:iam::123456789012:user/new"
    log_in(tmp_path, "training", aws_access_key_id=KEY, aws_secret_access_key=SECRET, region=REGION)
    async with account(profile="training").client("sts") as client:
        first = await client.get_caller_identity()
        log_in(tmp_path, "training", aws_access_key_id="AKIANEW", aws_secret_access_key=SECRET, region=REGION)
        second = await client.get_caller_identity()

    assert (first["Arn"], second["Arn"]) == (USER, "arn:aws:iam::123456789012:user/new")


async def test_client_that_nobody_has_opened_is_somebodys_after_a_login(cloud: FakeCloud, tmp_path: Path) -> None:
    async with account(region=REGION).client("sts") as client:
        with pytest.raises(NoIdentityError), aws_errors("who the agent is"):
            await client.get_caller_identity()
        log_in(tmp_path, "default", aws_access_key_id=KEY, aws_secret_access_key=SECRET)
        found = await client.get_caller_identity()

    assert found["Arn"] == USER


async def test_role_of_a_block_is_assumed_with_the_blocks_parameters(cloud: FakeCloud) -> None:
    block = {**BLOCK, "assume_role_arn": ROLE, "assume_role_kwargs": {"ExternalId": "x-1", "Policy": None}}

    assert "assumed-role/launch" in await account(block, credentials="mine").identity()
    assert cloud.forms[0]["ExternalId"] == "x-1"
    assert cloud.forms[0]["RoleSessionName"].startswith("prefect-launch-")


async def test_role_that_may_not_be_assumed_is_named(cloud: FakeCloud) -> None:
    with pytest.raises(AgentConfigError, match=r"role/other.*in IAM"):
        await account(credentials="mine", role_arn=f"arn:aws:iam::{ACCOUNT}:role/other").identity()


async def test_machine_that_is_nobody_is_told_how_to_be_somebody(cloud: FakeCloud) -> None:
    with pytest.raises(NoIdentityError, match=r"nobody at AWS, so AWS cannot be asked for who the agent.*clouds\.aws"):
        await account(region=REGION).identity()


async def test_refused_expired_and_throttled_keys_are_told_apart(
    cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "_TRIES", 1)
    for key, code, kind, words in (
        ("AKIAOTHER", "", AgentConfigError, "does not know the agent's keys"),
        (KEY, "ExpiredToken", UnreachableError, "have expired"),
        (KEY, "AccessDenied", AgentConfigError, "does not let the agent"),
        (KEY, "Throttling", UnreachableError, "is busy"),
    ):
        cloud.faults = [AwsFault(code)] if code else []
        found = account({**BLOCK, "aws_access_key_id": key}, credentials="mine")
        with pytest.raises(kind, match=words) as caught:
            await found.identity()
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("login", "said"),
    [
        (
            {
                **{"sso_start_url": "https://nobody.example", "sso_region": REGION},
                **{"sso_account_id": ACCOUNT, "sso_role_name": "launch"},
            },
            "Error loading SSO Token",
        ),
        ({"credential_process": "false"}, "custom-process"),
    ],
    ids=["sso", "process"],
)
async def test_login_that_is_over_is_no_fault_of_the_item(
    cloud: FakeCloud, tmp_path: Path, login: dict[str, str], said: str
) -> None:
    log_in(tmp_path, "training", region=REGION, **login)

    with pytest.raises(UnreachableError, match=rf"login has expired, or gives no keys: .*{said}.*'aws sso login'"):
        await account(profile="training").identity()


@pytest.mark.parametrize(
    "error",
    [
        exceptions.UnauthorizedSSOTokenError(),
        exceptions.TokenRetrievalError(provider="sso", error_msg="Token has expired and refresh failed"),
        exceptions.RefreshWithMFAUnsupportedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_every_kind_of_login_that_is_over_says_to_log_in_again(error: Exception) -> None:
    with pytest.raises(UnreachableError, match="Log in again on the agent's machine"), aws_errors("a training job"):
        raise error


async def test_session_token_in_what_aws_says_of_a_signature_is_not_told() -> None:
    from botocore.exceptions import ClientError

    said = "The signature does not match.\n\nThe Canonical String should have been\nx-amz-security-token:of-role"
    with pytest.raises(AgentConfigError) as caught, aws_errors("who the agent is"):
        raise ClientError({"Error": {"Code": "SignatureDoesNotMatch", "Message": said}}, "GetCallerIdentity")

    assert "of-role" not in str(caught.value)


async def test_missing_profile_is_named(cloud: FakeCloud) -> None:
    with pytest.raises(AgentConfigError, match=r"not-there.*clouds\.aws"):
        await account(profile="not-there", region=REGION).identity()


async def test_missing_region_is_reported(cloud: FakeCloud) -> None:
    with pytest.raises(AgentConfigError, match=r"clouds\.aws\.region"):
        await account({**BLOCK, "region_name": None}, credentials="mine").identity()


async def test_region_that_is_written_down_later_is_found(cloud: FakeCloud, tmp_path: Path) -> None:
    found = account()
    with pytest.raises(AgentConfigError):
        await found.identity()
    log_in(tmp_path, "default", aws_access_key_id=KEY, aws_secret_access_key=SECRET, region=REGION)

    assert (await found.identity(), await found.region()) == (USER, REGION)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"aws_secret_access_key": None}, "needs both"),
        ({"aws_client_parameters": {"use_ssl": True, "endpoint_url": "http://x"}}, "endpoint_url"),
    ],
)
async def test_block_that_cannot_be_used_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(AgentConfigError, match=words):
        await account({**BLOCK, **change}, credentials="mine").identity()
