"""Git over ssh, from OpenSSH's own server, with a private key from a secret."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from prefect_launch.errors import AgentConfigError, InfrastructureError, SourceError
from prefect_launch.sources.fetch import GitCheckout
from prefect_launch.sources.git_command import Git
from prefect_launch.sources.git_info import resolve_commit
from prefect_launch.sources.remote import GitSettings
from tests.conftest import engine_required
from tests.support.git_repository import Repository
from tests.support.ssh_server import SshMissingError, SshServer, make_key


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SshServer]:
    """A server; ssh here has no agent and nothing of the machine's own."""
    try:
        server = SshServer(tmp_path / "ssh")
    except SshMissingError as missing:
        (pytest.fail if engine_required() else pytest.skip)(str(missing))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    monkeypatch.delenv("GIT_SSH_COMMAND", raising=False)
    yield server
    server.stop()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """A repository with one commit."""
    made = Repository(tmp_path / "team" / "train")
    made.commit(main="print('one')")
    return made


def _git(key: str, known_hosts: Path, **settings: object) -> Git:
    async def read(name: str) -> str:
        return key

    credentials = {"127.0.0.1": {"ssh_key": "deploy-key"}}
    given = {"credentials": credentials, "known_hosts": known_hosts, **settings}
    return Git(GitSettings.model_validate(given), read_secret=read)


def memory_files() -> set[str]:
    """The open files of this process that are in memory alone, as a key is."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # The list's own.
            found.add(f"{descriptor} {os.readlink(f'/proc/self/fd/{descriptor}')}")
    return {one for one in found if "memfd:" in one}


async def test_private_remote_is_read_with_a_key_that_is_on_no_disk(
    ssh: SshServer, repository: Repository, tmp_path: Path
) -> None:
    # What a form in a browser makes of a key: other line ends, and none at the end.
    key = ssh.user_key.read_text().strip().replace("\n", "\r\n")
    git = _git(key, tmp_path / "known_hosts")
    before = memory_files()

    commit = await resolve_commit(git, ssh.url(repository.path), "main")
    await GitCheckout(tmp_path / "home", git=git).check_out(ssh.url(repository.path), commit, tmp_path / "code")

    assert (tmp_path / "code" / "main.py").read_text() == "print('one')"
    line = ssh.user_key.read_bytes().splitlines()[2]
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and line in path.read_bytes()]
    assert kept == [ssh.user_key]
    assert memory_files() <= before


async def test_remote_is_refused_to_another_key(ssh: SshServer, repository: Repository, tmp_path: Path) -> None:
    stranger = make_key(tmp_path / "stranger").read_text()

    with pytest.raises(SourceError, match=r"Permission denied.*Secret block"):
        await resolve_commit(_git(stranger, tmp_path / "known_hosts"), ssh.url(repository.path), None)


async def test_unknown_host_is_taken_at_first_sight_and_refused_when_its_key_changes(
    ssh: SshServer, repository: Repository, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    git = _git(ssh.user_key.read_text(), known)
    await resolve_commit(git, ssh.url(repository.path), None)
    assert ssh.known_host.split()[2] in known.read_text()

    other = make_key(tmp_path / "other").with_suffix(".pub").read_text()
    known.write_text(f"[127.0.0.1]:{ssh.port} {other}")
    with pytest.raises(InfrastructureError, match=r"Host key verification failed.*known hosts"):
        await resolve_commit(git, ssh.url(repository.path), None)


async def test_strict_operator_lets_only_known_hosts_be_asked(
    ssh: SshServer, repository: Repository, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    git = _git(ssh.user_key.read_text(), known, host_keys="strict")

    with pytest.raises(InfrastructureError, match="Host key verification failed"):
        await resolve_commit(git, ssh.url(repository.path), None)
    known.write_text(ssh.known_host)
    assert await resolve_commit(git, ssh.url(repository.path), None) == repository.git("rev-parse", "HEAD")


async def test_token_in_the_place_of_a_key_is_told_to_the_operator(
    ssh: SshServer, repository: Repository, tmp_path: Path
) -> None:
    with pytest.raises(AgentConfigError, match="'deploy-key' holds no private key"):
        await resolve_commit(_git("token", tmp_path / "known_hosts"), ssh.url(repository.path), None)


async def test_many_fetches_at_once_each_have_their_key(ssh: SshServer, repository: Repository, tmp_path: Path) -> None:
    git = _git(ssh.user_key.read_text(), tmp_path / "known_hosts")

    commits = await asyncio.gather(*(resolve_commit(git, ssh.url(repository.path), None) for _ in range(5)))

    assert set(commits) == {repository.git("rev-parse", "HEAD")}
