"""What people copy from a browser's address line."""

from __future__ import annotations

import pytest

from prefect_launch.errors import SourceError
from prefect_launch.sources.remote import reject_web_pages


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
        ("https://wandb.ai/team/digits/runs/abc", "W&B run"),
        ("https://api.wandb.ai/team/digits", "W&B run"),
        ("https://wandb.our-company.example/team/digits/runs/abc", "W&B run"),
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
