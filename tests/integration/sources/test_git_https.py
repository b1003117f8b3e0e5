"""Git over https with a password, as a private remote asks for it: what is sent, what is kept, and what is not told."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefect_launch.errors import AgentConfigError, InfrastructureError, NotFoundError, SourceError
from prefect_launch.sources.fetch import GitCheckout
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.git_info import resolve_commit
from prefect_launch.sources.remote import GitSettings
from tests.integration.sources.conftest import PASSWORD
from tests.support.git_server import USER, GitServer

MEGABYTE = 1024**2


def _git(host: str | None, **settings: object) -> Git:
    async def read(name: str) -> str:
        if name != "git-token":
            raise NotFoundError(f"There is no Secret block {name!r}.")
        return f"{PASSWORD}\n"

    credentials = {} if host is None else {host: {"token": "git-token", "username": USER}}
    return Git(GitSettings.model_validate({"credentials": credentials, **settings}), read_secret=read)


def _processes() -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue


async def test_private_remote_is_read_with_the_secret_of_its_host(git_host: GitServer, tmp_path: Path) -> None:
    repository = git_host.repository("team/train")
    commit = repository.commit(main="print('one')")
    git = _git(git_host.host)

    assert await resolve_commit(git, git_host.url("team/train"), "main") == commit
    await GitCheckout(tmp_path / "home", git=git).check_out(git_host.url("team/train"), commit, tmp_path / "code")

    assert (tmp_path / "code" / "main.py").read_text() == "print('one')"
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert kept == []


async def test_secret_is_on_no_command_line_while_git_waits(git_host: GitServer, tmp_path: Path) -> None:
    git_host.repository("team/train").commit(main="x")
    git = _git(git_host.host)
    git_host.hanging.set()

    asking = asyncio.create_task(resolve_commit(git, git_host.url("team/train"), None))
    await asyncio.to_thread(git_host.was_asked.wait, 30)
    seen = [line for line in _processes() if git_host.host in line]
    asking.cancel()
    await asyncio.wait([asking])

    assert seen
    assert not [line for line in seen if PASSWORD in line]
    assert not [line for line in _processes() if git_host.host in line], "git's own children go with it"


async def test_remote_without_a_secret_or_with_a_wrong_one_is_refused_with_the_next_step(git_host: GitServer) -> None:
    git_host.repository("team/train").commit(main="x")
    url = git_host.url("team/train")

    with pytest.raises(SourceError, match=r"does not let this machine in.*Secret block.*git settings"):
        await resolve_commit(_git(None), url, None)
    with pytest.raises(SourceError, match="does not let this machine in"):
        await resolve_commit(_git(f"{git_host.host}/other-team"), url, None)
    git_host.password = "changed"
    with pytest.raises(SourceError, match="Authentication failed") as refused:
        await resolve_commit(_git(git_host.host), url, None)
    assert PASSWORD not in str(refused.value)


async def test_secret_that_is_not_there_is_told_to_the_operator(git_host: GitServer) -> None:
    git = _git(None, credentials={git_host.host: "no-such"})

    with pytest.raises(AgentConfigError, match=r"the secret .no-such. for localhost:\d+\. There is no Secret"):
        await resolve_commit(git, git_host.url("team/train"), None)


async def test_remote_that_hangs_is_given_up_in_time(git_host: GitServer, tmp_path: Path) -> None:
    commit = git_host.repository("team/train").commit(main="x")
    source = GitCheckout(tmp_path / "home", git=_git(git_host.host, timeout=1))
    git_host.hanging.set()

    begun = time.monotonic()
    with pytest.raises(InfrastructureError, match="took more than 1 s"):
        await source.check_out(git_host.url("team/train"), commit, tmp_path / "code")

    assert time.monotonic() - begun < 60
    assert not [line for line in _processes() if git_host.host in line]
    assert not (tmp_path / "code").exists()


async def test_second_fetch_brings_only_what_is_new_and_a_third_asks_nothing(
    git_host: GitServer, tmp_path: Path
) -> None:
    repository = git_host.repository("team/train")
    (repository.path / "weights.bin").write_bytes(os.urandom(8 * MEGABYTE))
    first = repository.commit(main="print('one')")
    source = GitCheckout(tmp_path / "home", git=_git(git_host.host))
    url = git_host.url("team/train")

    await source.check_out(url, first, tmp_path / "first")
    whole, git_host.sent = git_host.sent, 0
    second = repository.commit(main="print('two')")
    await source.check_out(url, second, tmp_path / "second")
    new, git_host.sent = git_host.sent, 0
    git_host.asked.clear()
    await source.check_out(url, first, tmp_path / "third")

    assert whole > 8 * MEGABYTE
    assert new < 20_000
    assert git_host.asked == []
    assert (tmp_path / "second" / "main.py").read_text() == "print('two')"
    assert (tmp_path / "third" / "main.py").read_text() == "print('one')"


async def test_many_that_want_one_commit_at_once_fetch_it_once(git_host: GitServer, tmp_path: Path) -> None:
    repository = git_host.repository("team/train")
    (repository.path / "weights.bin").write_bytes(os.urandom(MEGABYTE))
    commit = repository.commit(main="x")
    sources = [GitCheckout(tmp_path / "home", git=_git(git_host.host)) for _ in range(6)]

    await asyncio.gather(
        *(
            source.check_out(git_host.url("team/train"), commit, tmp_path / f"code-{number}")
            for number, source in enumerate(sources)
        )
    )

    assert MEGABYTE < git_host.sent < 2 * MEGABYTE
    assert all((tmp_path / f"code-{number}" / "main.py").exists() for number in range(6))


async def test_relative_submodule_comes_with_the_same_secret(git_host: GitServer, tmp_path: Path) -> None:
    inner = git_host.repository("team/inner")
    inner.commit(lib="x = 1")
    outer = git_host.repository("team/outer")
    outer.commit(main="import inner.lib")
    outer.git("submodule", "--quiet", "add", inner.url, "inner")
    outer.git("config", "--file", ".gitmodules", "submodule.inner.url", "../inner")
    commit = outer.commit()

    source = GitCheckout(tmp_path / "home", git=_git(f"{git_host.host}/team"))
    await source.check_out(git_host.url("team/outer"), commit, tmp_path / "code")

    assert (tmp_path / "code" / "inner" / "lib.py").read_text() == "x = 1"


async def test_damaged_copy_is_made_anew(git_host: GitServer, tmp_path: Path) -> None:
    repository = git_host.repository("team/train")
    (repository.path / "data.bin").write_bytes(os.urandom(100_000))
    commit = repository.commit(main="x")
    url = git_host.url("team/train")
    source = GitCheckout(tmp_path / "home", git=_git(git_host.host))
    await source.check_out(url, commit, tmp_path / "code")
    (mirror,) = [path for path in (tmp_path / "home" / "git").iterdir() if path.is_dir()]

    for number, damage in enumerate((_cut_packs, _flip_packs, _drop_objects, _empty_refs, _drop_head)):
        damage(mirror)
        await source.check_out(url, commit, tmp_path / f"code-{number}")
        assert (tmp_path / f"code-{number}" / "main.py").read_text() == "x", damage.__name__


def _cut_packs(mirror: Path) -> None:
    for pack in mirror.glob("objects/pack/*.pack"):
        pack.chmod(0o600)
        pack.write_bytes(pack.read_bytes()[:200])


def _flip_packs(mirror: Path) -> None:
    for pack in mirror.glob("objects/pack/*.pack"):
        pack.chmod(0o600)
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 0xFF
        pack.write_bytes(content)


def _drop_objects(mirror: Path) -> None:
    shutil.rmtree(mirror / "objects" / "pack")


def _empty_refs(mirror: Path) -> None:
    for ref in mirror.glob("refs/launch/*"):
        ref.write_text("")


def _drop_head(mirror: Path) -> None:
    (mirror / "HEAD").unlink()


async def test_fetch_that_was_killed_leaves_nothing_in_the_way(git_host: GitServer, tmp_path: Path) -> None:
    repository = git_host.repository("team/train")
    first = repository.commit(main="one")
    url = git_host.url("team/train")
    source = GitCheckout(tmp_path / "home", git=_git(git_host.host))
    await source.check_out(url, first, tmp_path / "first")
    (mirror,) = [path for path in (tmp_path / "home" / "git").iterdir() if path.is_dir()]
    for left in ("shallow.lock", "packed-refs.lock", "objects/pack/tmp_pack_x"):
        (mirror / left).write_text("half")
    second = repository.commit(main="two")

    await source.check_out(url, second, tmp_path / "second")

    assert (tmp_path / "second" / "main.py").read_text() == "two"
    assert not (mirror / "objects/pack/tmp_pack_x").exists()


async def test_commit_that_was_rewritten_away_is_reported_as_gone(git_host: GitServer, tmp_path: Path) -> None:
    repository = git_host.repository("team/train")
    lost = repository.commit(main="one")
    repository.git("commit", "--quiet", "--amend", "--message", "rewritten")
    repository.git("reflog", "expire", "--expire=now", "--all")
    repository.git("gc", "--quiet", "--prune=now")

    source = GitCheckout(tmp_path / "home", git=_git(git_host.host))
    with pytest.raises(SourceError, match=f"The commit {lost} of https://localhost.* is gone"):
        await source.check_out(git_host.url("team/train"), lost, tmp_path / "code")
    assert not (tmp_path / "code").exists()
