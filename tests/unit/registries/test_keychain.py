"""Whose credentials are shown to which registry, and what is said when they cannot be had."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.errors import AgentConfigError
from prefect_launch.registries.base import TOKEN_USER, Credentials
from prefect_launch.registries.keychain import Keychain, read_docker_config, read_registries

HOST = "registry.example:5000"
OF_BLOCK = Credentials("of-block", "x")


async def blocks(name: str, host: str) -> Credentials:
    return Credentials(f"{name} for {host}", "x")


@pytest.fixture(autouse=True)
def docker_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    return tmp_path


def log_in(folder: Path, host: str, user: str = "of-docker", **more: Any) -> None:
    auth = base64.b64encode(f"{user}:pass:word".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {host: {"auth": auth}}, **more}))


def helper(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


async def test_block_of_the_config_goes_before_what_docker_is_logged_in_to(docker_folder: Path) -> None:
    log_in(docker_folder, HOST)
    keychain = Keychain(read_registries({f"https://{HOST}/v2/": {"credentials": "mine"}}), read_block=blocks)

    assert await keychain.credentials_for(HOST) == (f"mine for {HOST}", "x")


async def test_login_of_docker_is_used_when_the_config_says_nothing(docker_folder: Path) -> None:
    log_in(docker_folder, HOST)

    assert await Keychain().credentials_for(HOST) == ("of-docker", "pass:word")
    assert await Keychain().credentials_for("other.example") is None


async def test_login_of_docker_hub_is_found_under_its_old_address(docker_folder: Path) -> None:
    log_in(docker_folder, "https://index.docker.io/v1/")

    assert await Keychain().credentials_for("docker.io") == ("of-docker", "pass:word")


async def test_machine_without_docker_files_is_nobody(docker_folder: Path) -> None:
    assert await Keychain().credentials_for(HOST) is None


async def test_identity_token_of_docker_is_known_as_one(docker_folder: Path) -> None:
    (docker_folder / "config.json").write_text(json.dumps({"auths": {HOST: {"identitytoken": "t"}}}))

    assert await read_docker_config(HOST) == (TOKEN_USER, "t")


async def test_credential_helper_is_run(docker_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (docker_folder / "config.json").write_text(json.dumps({"credHelpers": {HOST: "test"}}))
    helper(docker_folder, monkeypatch, 'cat >/dev/null; echo \'{"Username": "helped", "Secret": "x"}\'')

    assert await read_docker_config(HOST) == ("helped", "x")


async def test_credential_helper_that_is_not_installed_is_reported(docker_folder: Path) -> None:
    (docker_folder / "config.json").write_text(json.dumps({"credsStore": "nowhere"}))

    with pytest.raises(AgentConfigError, match=r"docker-credential-nowhere.*docker login"):
        await read_docker_config(HOST)


async def test_credential_helper_that_fails_is_reported(docker_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (docker_folder / "config.json").write_text(json.dumps({"credHelpers": {HOST: "test"}}))
    helper(docker_folder, monkeypatch, "echo the keyring is locked; exit 1")

    with pytest.raises(AgentConfigError, match="the keyring is locked"):
        await read_docker_config(HOST)


async def test_broken_login_of_docker_is_reported(docker_folder: Path) -> None:
    (docker_folder / "config.json").write_text(json.dumps({"auths": {HOST: {"auth": "no base64!"}}}))

    with pytest.raises(AgentConfigError, match=r"config\.json"):
        await read_docker_config(HOST)


async def test_credentials_are_read_once_and_kept_for_a_while() -> None:
    read = []

    async def once(name: str, host: str) -> Credentials:
        read.append(name)
        return OF_BLOCK

    keychain = Keychain(read_registries({HOST: {"credentials": "mine"}}), read_block=once)

    assert [await keychain.credentials_for(HOST) for _ in range(3)] == [OF_BLOCK] * 3
    assert read == ["mine"]


def test_credentials_show_no_password_as_text() -> None:
    assert "secret" not in f"{Credentials('ann', 'secret')!r} {Credentials('ann', 'secret')}"


def test_registry_is_insecure_only_when_the_operator_says_so() -> None:
    keychain = Keychain(read_registries({HOST: {"insecure": True}}))

    assert keychain.is_insecure(HOST)
    assert not keychain.is_insecure("other.example")


def test_advice_names_the_block_the_login_and_the_cloud() -> None:
    advice = Keychain().advice("123456789012.dkr.ecr.eu-west-1.amazonaws.com")

    assert "DockerRegistryCredentials" in advice
    assert "docker login 123456789012" in advice
    assert "Amazon ECR" in advice


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["registry.example"], "must map"),
        ({"registry": {}}, "is no address"),
        ({"registry .example": {}}, "is no address"),
        ({HOST: "block"}, "must be a mapping"),
        ({HOST: {"credential": "block"}}, "Did you mean 'credentials'"),
        ({HOST: {"insecure": "perhaps"}}, "'insecure'"),
    ],
)
def test_wrong_settings_of_registries_are_refused(given: object, words: str) -> None:
    with pytest.raises(AgentConfigError, match=words):
        read_registries(given)
