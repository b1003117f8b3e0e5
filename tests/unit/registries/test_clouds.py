"""Registries of the clouds: known by their address, credentials by the machine's identity there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import responses
import respx
from moto import mock_aws

from prefect_launch.errors import RegistryError
from prefect_launch.registries.clouds import (
    acr_credentials,
    cloud_of,
    ecr_credentials,
    exchange_azure_token,
    gar_credentials,
)
from prefect_launch.registries.keychain import Keychain

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
GAR = "europe-west1-docker.pkg.dev"
ACR = "team.azurecr.io"
AZURE = {"AZURE_TENANT_ID": "00000000-0000-0000-0000-00000000000a", "AZURE_CLIENT_ID": "c", "AZURE_CLIENT_SECRET": "s"}


@pytest.fixture(autouse=True)
def _nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has no identity in any cloud, and asks no network for one."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "GOOGLE_APPLICATION_CREDENTIALS", *AZURE):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    with mock_aws():
        yield


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


@pytest.mark.usefixtures("aws")
async def test_identity_in_aws_gets_credentials_for_ecr() -> None:
    found = await Keychain().credentials_for(ECR)

    assert found is not None
    assert found.user == "AWS"
    assert found.password


def test_machine_that_is_nobody_in_aws_has_no_credentials_for_ecr() -> None:
    assert ecr_credentials(ECR) is None


@pytest.mark.usefixtures("aws")
async def test_refusal_of_aws_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "not-there")

    with pytest.raises(RegistryError, match="not-there"):
        await Keychain().credentials_for(ECR)


def test_machine_that_is_nobody_at_google_has_no_credentials() -> None:
    assert gar_credentials(GAR) is None


def test_identity_at_google_gets_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    (tmp_path / "login.json").write_text(json.dumps(login))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "login.json"))
    with responses.RequestsMock() as web:
        web.post("https://oauth2.googleapis.com/token", json={"access_token": "of-google", "expires_in": 3600})
        found = gar_credentials(GAR)

    assert found == ("oauth2accesstoken", "of-google")


def test_refusal_of_google_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    login = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    (tmp_path / "login.json").write_text(json.dumps(login))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "login.json"))
    with responses.RequestsMock() as web:
        web.post("https://oauth2.googleapis.com/token", status=400, json={"error": "invalid_grant"})
        with pytest.raises(RegistryError, match="application-default login"):
            gar_credentials(GAR)


def test_identity_in_azure_is_found_and_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in AZURE.items():
        monkeypatch.setenv(name, value)
    authority = f"https://login.microsoftonline.com/{AZURE['AZURE_TENANT_ID']}"
    known = {
        "authorization_endpoint": f"{authority}/oauth2/v2.0/authorize",
        "token_endpoint": f"{authority}/oauth2/v2.0/token",
        "issuer": f"{authority}/v2.0",
    }
    with responses.RequestsMock(assert_all_requests_are_fired=False) as azure, respx.mock as web:
        azure.get(re.compile(r".*/\.well-known/openid-configuration"), json=known)
        azure.get(re.compile(r".*/common/discovery/instance"), json={"tenant_discovery_endpoint": "", "metadata": []})
        azure.post(
            known["token_endpoint"], json={"access_token": "of-azure", "expires_in": 3600, "token_type": "Bearer"}
        )
        exchange = web.post(f"https://{ACR}/oauth2/exchange").mock(httpx.Response(200, json={"refresh_token": "r"}))
        found = acr_credentials(ACR)

    assert found == ("00000000-0000-0000-0000-000000000000", "r")
    assert b"access_token=of-azure" in exchange.calls[0].request.content


def test_token_of_azure_is_changed_for_a_password_of_the_registry() -> None:
    with respx.mock as web:
        exchange = web.post(f"https://{ACR}/oauth2/exchange").mock(
            httpx.Response(200, json={"refresh_token": "of-registry"})
        )
        found = exchange_azure_token(ACR, "of-azure")

    assert found == ("00000000-0000-0000-0000-000000000000", "of-registry")
    assert b"access_token=of-azure" in exchange.calls[0].request.content


def test_registry_that_does_not_take_the_identity_is_reported() -> None:
    with respx.mock as web:
        web.post(f"https://{ACR}/oauth2/exchange").mock(httpx.Response(401))
        with pytest.raises(RegistryError, match="AcrPull"):
            exchange_azure_token(ACR, "of-azure")


def test_machine_that_is_nobody_in_azure_has_no_credentials() -> None:
    assert acr_credentials(ACR) is None
