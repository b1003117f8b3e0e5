"""Git remote check: only https, ssh and `git@host:path` remotes, without passwords, and no pages of a browser.

The rule and its words are the reference's. All else that git understands runs programs (`ext::`), reads the machine's
own files (`file://`, a path) or is an option in disguise (a leading `-`).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Final
from urllib.parse import urlsplit

from prefect_launch.errors import SourceError

#: git gets them too, so that a redirect or a submodule cannot bypass the rule.
ALLOWED_PROTOCOLS: Final = ("https", "ssh")

_HOST: Final = r"[A-Za-z0-9\[](?:[A-Za-z0-9.:\-_\]]*)"
_SCP: Final = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.\-]*@{_HOST}:[^:\s-][^\s]*\Z")
_URL: Final = re.compile(rf"(?:https|ssh)://(?:[^@/\s-][^@/\s]*@)?{_HOST}/[^\s]+\Z")
_FILE: Final = re.compile(r"file:///[^\s]+\Z")
#: The pages of a repository on git hosts, after its path.
_PAGE: Final = re.compile(
    r"(?P<repository>/[^/]+(?:/[^/]+)*?/[^/]+)(?:/-)?/"
    r"(?P<kind>tree|blob|raw|blame|commits?|src/(?:branch|tag|commit)|src|pull|pulls|merge_requests|issues|releases/tag)"
    r"/(?P<rest>[^?#]+)"
)
_WITH_REF: Final = ("tree", "blob", "raw", "blame", "commit", "commits", "src")
_WANDB_HOST: Final = re.compile(r"(?:[a-z0-9-]+\.)*wandb\.ai\Z")
_WANDB_RUN: Final = re.compile(r"/[^/]+/[^/]+/(?:runs|sweeps|jobs|artifacts)(?:/|\Z)")


def check_remote(remote: object, protocols: Collection[str] = ALLOWED_PROTOCOLS) -> str:
    """Return a remote if git may use it.

    Args:
        remote: the given value.
        protocols: what git may speak; tests add `file`.

    Raises:
        SourceError: when it is of another kind, or holds credentials.
    """
    text = remote if isinstance(remote, str) else repr(remote)
    known = _URL.match(text) or _SCP.match(text) or ("file" in protocols and _FILE.match(text))
    allowed = bool(known) and text.isprintable()
    if not allowed:
        raise SourceError(
            f"Refusing to fetch git remote {_masked(text)[:200]!r}: only https://, ssh://, and git@host:path remotes"
            " are allowed."
        )
    if _has_credentials(text):
        raise SourceError(
            f"The git remote {_masked(text)!r} holds credentials, which would be stored with the job. Leave them out,"
            " and let git find them where it runs: a credential helper, or an ssh key."
        )
    return text


def without_credentials(remote: str) -> str:
    """Return a remote without the credentials of an https remote, as it may be recorded."""
    if "://" not in remote:
        return remote
    parts = urlsplit(remote)
    host = parts.netloc.rpartition("@")[2]
    user = parts.username or ""
    return parts._replace(netloc=f"{user}@{host}" if user and parts.scheme == "ssh" else host).geturl()


def split_remote(remote: str) -> tuple[str, str, str]:
    """Return a remote's scheme (`ssh` for `git@host:path`), its host in lower case with its port if any, its path."""
    if "://" in remote:
        parts = urlsplit(remote)
        return parts.scheme, parts.netloc.rpartition("@")[2].lower(), parts.path.strip("/")
    host, _, path = remote.partition(":")
    return "ssh", host.rpartition("@")[2].lower(), path.strip("/")


def name_of(remote: str) -> str:
    """Return the name of a remote's repository: `git@host:team/Digits.git` gives `team-Digits`."""
    return "-".join(PurePosixPath(split_remote(remote)[2].removesuffix(".git")).parts)


def _has_credentials(remote: str) -> bool:
    if "://" not in remote:
        return False
    parts = urlsplit(remote)
    return bool(parts.password) or (parts.scheme == "https" and "@" in parts.netloc)


def _masked(remote: str) -> str:
    return re.sub(r"(?<=://)[^@/]*@", "***@", remote)


def reject_web_pages(uri: str) -> None:
    """Refuse an address of a web page that people copy from a browser, and name the remote that it belongs to.

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
    hint = f" and {page['rest'].split('/')[0]!r} as the version" if page["kind"].split("/")[0] in _WITH_REF else ""
    raise SourceError(
        f"{_plain(uri)!r} is a page of a repository, not the repository. Give {remote!r} as the URI{hint}."
    )


def _plain(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()[:200]
