"""Registries of the clouds, known by their address; the clouds' real clients against services on the loopback."""

from __future__ import annotations

import json
import logging
import ssl
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from prefect_launch.clouds import aws
from prefect_launch.clouds.accounts import Clouds
from prefect_launch.clouds.settings import CloudSettings
from prefect_launch.errors import RegistryError
from prefect_launch.registries import clouds as cloud_registries
from prefect_launch.registries.clouds import cloud_of
from prefect_launch.registries.keychain import Keychain
from tests.support.clouds import (
    ACCOUNT,
    CLIENT,
    DEPUTY,
    KEY,
    ROBOT,
    ROLE,
    SECRET,
    TENANT,
    USER,
    AwsFault,
    FakeCloud,
    be_nobody,
    service_account_key,
)

ECR = f"{ACCOUNT}.dkr.ecr.eu-west-1.amazonaws.com"
GAR = "europe-west1-docker.pkg.dev"
ACR = "team.azurecr.io"


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_nobody(tmp_path, monkeypatch)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))


@pytest.fixture
async def cloud(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeCloud]:
    async with FakeCloud() as cloud:
        monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.url)
        cloud.trust(monkeypatch)
        yield cloud


@pytest.fixture
def aws_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def azure_app(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_TENANT_ID", TENANT)
    monkeypatch.setenv("AZURE_CLIENT_ID", CLIENT)
    monkeypatch.setenv("AZURE_CLIENT_SECRET", SECRET)


@pytest.fixture
def google_key(cloud: FakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key.json").write_text(json.dumps(service_account_key(f"{cloud.url}/token")))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))


def keychain(**settings: Any) -> Keychain:
    return Keychain(clouds=Clouds(CloudSettings(**settings)))


@pytest.mark.parametrize(
    ("host", "extra"),
    [
        (ECR, "ecr"),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "ecr"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "ecr"),
        (GAR, "gar"),
        ("eu.gcr.io", "gar"),
        (ACR, "acr"),
        ("docker.io", None),
        ("127.0.0.1:5000", None),
        (f"{ECR}.evil.example", None),
        ("evilgcr.io", None),
    ],
)
def test_registry_of_a_cloud_is_known_by_its_address(host: str, extra: str | None) -> None:
    cloud = cloud_of(host)

    assert (cloud.extra if cloud else None) == extra


@pytest.mark.parametrize("host", [ECR, GAR, ACR])
async def test_machine_that_is_nobody_in_a_cloud_has_no_credentials_there(cloud: FakeCloud, host: str) -> None:
    assert await Keychain().credentials_for(host) is None


@pytest.mark.usefixtures("aws_user")
async def test_keys_of_the_machine_get_credentials_for_ecr_in_the_region_of_its_address(cloud: FakeCloud) -> None:
    assert await keychain(aws={"region": "us-east-1"}).credentials_for(ECR) == ("AWS", f"of {USER}")
    assert cloud.asked == [f"ecr:GetAuthorizationToken as {KEY} in eu-west-1"]


@pytest.mark.usefixtures("aws_user")
async def test_role_of_the_config_gets_credentials_for_ecr(cloud: FakeCloud) -> None:
    found = await keychain(aws={"role_arn": ROLE}).credentials_for(ECR)

    assert found == ("AWS", f"of arn:aws:sts::{ACCOUNT}:assumed-role/launch/session")


async def test_profile_of_the_config_gets_credentials_for_ecr(cloud: FakeCloud, tmp_path: Path) -> None:
    keys = f"aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
    (tmp_path / "aws-config").write_text(f"[profile training]\n{keys}")

    assert await keychain(aws={"profile": "training"}).credentials_for(ECR) == ("AWS", f"of {USER}")


@pytest.mark.usefixtures("google_key")
async def test_identity_at_google_is_the_password_of_its_registry(cloud: FakeCloud) -> None:
    assert await Keychain().credentials_for(GAR) == ("oauth2accesstoken", f"ya29.1-of-{ROBOT}")


@pytest.mark.usefixtures("google_key")
async def test_service_account_of_the_config_is_impersonated_at_googles_registry(cloud: FakeCloud) -> None:
    found = await keychain(gcp={"service_account": DEPUTY}).credentials_for(GAR)

    assert found == ("oauth2accesstoken", f"ya29.2-of-{DEPUTY}")


@pytest.mark.usefixtures("azure_app")
async def test_token_of_azure_is_exchanged_for_a_password_of_the_registry(cloud: FakeCloud) -> None:
    assert await Keychain().credentials_for(ACR) == ("00000000-0000-0000-0000-000000000000", f"for-{ACR}")
    assert cloud.asked == [f"azure:token as {CLIENT}", f"azure:exchange of-{CLIENT} at {ACR}"]


@pytest.mark.usefixtures("azure_app", "cloud")
async def test_certificates_for_azure_are_loaded_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    load, seen = ssl.SSLContext.load_verify_locations, []

    def note(context: ssl.SSLContext, *args: Any, **kwargs: Any) -> None:
        seen.append(threading.current_thread())
        load(context, *args, **kwargs)

    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", note)
    await Keychain().credentials_for(ACR)
    assert seen
    assert threading.main_thread() not in seen


@pytest.mark.usefixtures("aws_user", "azure_app", "google_key")
@pytest.mark.parametrize(
    ("host", "fault", "words"),
    [
        (ECR, AwsFault("ExpiredTokenException", "It has expired."), "have expired"),
        (ECR, AwsFault("UnrecognizedClientException", "Invalid."), "does not know the agent's keys"),
        (ECR, AwsFault("AccessDeniedException", "No."), r"ecr:GetAuthorizationToken.*in IAM"),
        (ECR, AwsFault("ThrottlingException", "Rate exceeded"), "is busy"),
        (ECR, web.Response(text="<html>a proxy"), "no credentials in its answer"),
        (GAR, web.json_response({"error": "invalid_grant"}, status=400), r"refuses.*clouds\.gcp"),
    ],
)
async def test_refusal_of_a_cloud_is_told_with_its_next_step(
    cloud: FakeCloud,
    host: str,
    fault: AwsFault | web.Response,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(aws, "_TRIES", 1)
    cloud.faults = [fault]

    with caplog.at_level(logging.DEBUG), pytest.raises(RegistryError, match=words) as caught:
        await Keychain().credentials_for(host)
    assert repr(host) in str(caught.value)
    assert SECRET not in f"{caught.value} {caplog.text}"


async def test_wrong_secret_is_told_and_not_taken_for_a_machine_that_is_nobody_in_azure(
    cloud: FakeCloud, azure_app: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "of-another")

    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(RegistryError, match=r"AADSTS7000215.*AZURE_CLIENT_ID") as caught,
    ):
        await Keychain().credentials_for(ACR)
    assert "of-another" not in f"{caught.value} {caplog.text}"


@pytest.mark.usefixtures("azure_app")
async def test_identity_of_azure_without_a_role_at_the_registry_is_told(
    cloud: FakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_CLIENT_ID", "another-app")

    with pytest.raises(RegistryError, match="AcrPull"):
        await Keychain().credentials_for(ACR)


@pytest.mark.usefixtures("aws_user", "azure_app", "google_key")
@pytest.mark.parametrize("host", [ECR, GAR, ACR])
async def test_cloud_that_does_not_answer_is_told(cloud: FakeCloud, host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud_registries, "_ANSWER_SECONDS", 0.5)
    cloud.faults = [None, None, None]

    with pytest.raises(RegistryError, match=rf"{host}.*has not answered within 0.5 s"):
        await Keychain().credentials_for(host)
