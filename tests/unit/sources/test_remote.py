"""Which git remotes are asked, and which are refused before git is run."""

from __future__ import annotations

import pytest

from prefect_launch.errors import SourceError
from prefect_launch.sources.remote import check_remote, name_of, without_credentials


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/team/digits.git",
        "https://git.example.com:8443/team/digits",
        "ssh://git@git.example.com:2222/team/digits.git",
        "ssh://git.example.com/digits",
        "git@github.com:team/digits.git",
        "deploy@10.0.0.5:srv/digits",
        "https://[::1]:8443/digits",
    ],
)
def test_https_ssh_and_scp_like_remotes_are_allowed(remote: str) -> None:
    assert check_remote(remote) == remote


@pytest.mark.parametrize(
    "remote",
    [
        "file:///etc",
        "/srv/git/digits",
        "../digits",
        "ext::sh -c touch% /tmp/x",
        "-oProxyCommand=touch /tmp/x",
        "--upload-pack=touch /tmp/x",
        "http://example.com/digits",
        "git://example.com/digits",
        "ftp://example.com/digits",
        "ssh://-oProxyCommand=x/digits",
        "ssh://git@-oProxyCommand=x/digits",
        "git@-oProxyCommand=x:digits",
        "-git@example.com:digits",
        "git@example.com:-digits",
        "https://example.com",
        "https://example.com/a b",
        "https://example.com/a\nb",
        "https://example.com/a\x00b",
        "HTTPS::x",
        "",
        None,
        3,
    ],
)
def test_any_other_remote_is_refused_in_the_references_words(remote: object) -> None:
    with pytest.raises(SourceError, match=r"only https://, ssh://, and git@host:path remotes are allowed\."):
        check_remote(remote)


@pytest.mark.parametrize("remote", ["https://user:token@example.com/d", "https://token@example.com/d"])
def test_remote_with_credentials_is_refused_without_repeating_them(remote: str) -> None:
    with pytest.raises(SourceError, match="holds credentials") as refused:
        check_remote(remote)
    assert "token" not in str(refused.value)


def test_recorded_remote_has_no_credentials() -> None:
    assert without_credentials("https://user:token@example.com/d") == "https://example.com/d"
    assert without_credentials("ssh://git:pw@example.com:22/d") == "ssh://git@example.com:22/d"
    assert without_credentials("git@example.com:d") == "git@example.com:d"


def test_repository_gives_its_name_to_the_job() -> None:
    assert name_of("https://github.com/team/digits.git") == "team-digits"
    assert name_of("git@github.com:team/digits.git") == "team-digits"
