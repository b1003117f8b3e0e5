"""Images' names, taken apart."""

from __future__ import annotations

import pytest

from prefect_launch.errors import SpecError
from prefect_launch.registries.base import is_loopback, normal_host, parse_reference, parse_repository

DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("text", "host", "repository", "version"),
    [
        ("ubuntu", "docker.io", "library/ubuntu", "latest"),
        ("team/train:1.2", "docker.io", "team/train", "1.2"),
        ("docker.io/busybox", "docker.io", "library/busybox", "latest"),
        ("index.docker.io/team/train", "docker.io", "team/train", "latest"),
        ("localhost/train:1", "localhost", "train", "1"),
        ("127.0.0.1:5000/train", "127.0.0.1:5000", "train", "latest"),
        ("registry.example:5000/a/b/c:1", "registry.example:5000", "a/b/c", "1"),
        (f"registry.example/a@{DIGEST}", "registry.example", "a", DIGEST),
        (f"registry.example/a:1@{DIGEST}", "registry.example", "a", DIGEST),
    ],
)
def test_reference_names_registry_repository_and_version(text: str, host: str, repository: str, version: str) -> None:
    image = parse_reference(text)

    assert (image.host, image.repository, image.version) == (host, repository, version)


def test_docker_hub_answers_under_another_name_than_people_write() -> None:
    assert parse_reference("ubuntu").api_host == "registry-1.docker.io"
    assert parse_reference("registry.example:5000/a").api_host == "registry.example:5000"


def test_pinned_name_keeps_how_the_image_was_written() -> None:
    assert parse_reference("team/train:1.2").at(DIGEST) == f"team/train@{DIGEST}"


@pytest.mark.parametrize("text", ["", "Upper/case", "a b", "a:1:2", "-x", "a@sha256:12", "http://registry.example/a"])
def test_reference_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="Invalid image"):
        parse_reference(text)


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("registry.example:5000/team/train", "registry.example:5000/team/train"),
        ("https://registry.example/team/train/", "registry.example/team/train"),
        ("docker.io/user/train", "docker.io/user/train"),
        ("localhost:5000/train", "localhost:5000/train"),
    ],
)
def test_repository_for_built_images_loses_its_scheme(text: str, repository: str) -> None:
    assert parse_repository(text) == repository


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("registry.example/train:1", "may not have a tag"),
        (f"registry.example/train@{DIGEST}", "may not have a tag"),
        ("team/train", "names no registry"),
        ("train", "names no registry"),
        ("registry.example:5000", "and no repository there"),
        ("a b", "Invalid image"),
    ],
)
def test_repository_that_is_none_is_refused(text: str, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        parse_repository(text)


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("https://index.docker.io/v1/", "docker.io"),
        ("https://Registry.example:5000/v2/", "registry.example:5000"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
    ],
)
def test_address_of_a_registry_has_one_form(address: str, host: str) -> None:
    assert normal_host(address) == host


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1:5000", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("10.0.0.1:5000", False),
        ("a.example", False),
    ],
)
def test_loopback_is_known_by_its_address(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
