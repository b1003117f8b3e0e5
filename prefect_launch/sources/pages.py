"""Addresses that people copy from a browser, and that are no git remote: a page of a git host, or a W&B run."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import urlsplit

from prefect_launch.errors import SourceError

#: How git hosts name the pages of a repository, after its path.
_PAGE: Final = re.compile(
    r"(?P<repository>/[^/]+(?:/[^/]+)*?/[^/]+)(?:/-)?/"
    r"(?P<kind>tree|blob|raw|blame|commits?|src/(?:branch|tag|commit)|src|pull|pulls|merge_requests|issues|releases/tag)"
    r"/(?P<rest>[^?#]+)"
)
_WITH_REF: Final = ("tree", "blob", "raw", "blame", "commit", "commits", "src")
_WANDB_HOST: Final = re.compile(r"(?:[a-z0-9-]+\.)*wandb\.ai\Z")
_WANDB_RUN: Final = re.compile(r"/[^/]+/[^/]+/(?:runs|sweeps|jobs|artifacts)(?:/|\Z)")


def refuse_pages(uri: str) -> None:
    """Refuse an address that is a page, and tell the remote that it is a page of.

    Raises:
        SourceError: for a page of a git host, and for anything of W&B.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    if _WANDB_HOST.match(parts.hostname or "") or _WANDB_RUN.match(parts.path):
        raise SourceError(
            f"The URI {_plain(uri)!r} is a W&B run or job, which this version cannot take over. Give the git repository"
            " that it was made from, with its commit."
        )
    page = _PAGE.match(parts.path)
    if page is None or parts.path.endswith(".git"):
        return
    remote = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{page['repository']}"
    told = f" and {page['rest'].split('/')[0]!r} as the version" if page["kind"].split("/")[0] in _WITH_REF else ""
    raise SourceError(
        f"{_plain(uri)!r} is a page of a repository, not the repository. Give {remote!r} as the URI{told}."
    )


def _plain(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()[:200]
