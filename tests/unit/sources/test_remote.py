"""Which git remotes are asked, and what people copy from a browser instead."""

from __future__ import annotations

import pytest

from prefect_launch.errors import SourceError
from prefect_launch.sources.remote import check_remote, name_of, reject_web_pages, without_credentials


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


@pytest.mark.parametrize(
    ("page", "told"),
    [
        ("https://github.com/team/x/tree/main/sub", "Give 'https://github.com/team/x' as the URI and 'main'"),
        ("https://github.com/team/x/blob/v1/train.py#L3", "Give 'https://github.com/team/x' as the URI and 'v1'"),
        ("https://gitlab.com/a/b/c/-/tree/dev", "Give 'https://gitlab.com/a/b/c' as the URI and 'dev'"),
        ("https://codeberg.org/a/b/src/branch/main", "Give 'https://codeberg.org/a/b' as the URI and 'main'"),
        ("https://github.com/team/x/commit/abc123", "as the URI and 'abc123' as the version"),
        ("https://github.com/team/x/pull/5", "Give 'https://github.com/team/x' as the URI."),
        ("https://me:tok@github.com/team/x/tree/main", "Give 'https://github.com/team/x' as the URI"),
        ("https://wandb.ai/team/digits/runs/abc", "page of a W&B server"),
        ("https://api.wandb.ai/team/digits", "page of a W&B server"),
        ("https://wandb.our-company.example/team/digits/runs/abc", "page of a W&B server"),
    ],
)
def test_page_is_refused_with_the_remote_that_it_is_of(page: str, told: str) -> None:
    with pytest.raises(SourceError) as refused:
        reject_web_pages(page)
    assert told in str(refused.value)
    assert "tok" not in str(refused.value)


@pytest.mark.parametrize(
    "remote",
    [
        "https://github.com/team/x",
        "https://github.com/team/x.git",
        "https://host/group/tree/x.git",
        "https://host/tree/x",
        "git@github.com:team/tree/x",
        "ssh://git@host/a/b/tree/main",
    ],
)
def test_remote_is_no_page(remote: str) -> None:
    reject_web_pages(remote)
