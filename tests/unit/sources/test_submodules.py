"""Submodules and links of a real repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from prefect_launch.errors import SourceError
from prefect_launch.sources.fetch import GitCheckout, resolve_url
from prefect_launch.sources.git_command import Git
from tests.support.git_repository import Repository

GIT = Git(allowed_protocols=("file",))


@pytest.mark.parametrize(
    ("url", "remote", "whole"),
    [
        ("../lib.git", "https://host:8443/team/app.git", "https://host:8443/team/lib.git"),
        ("../../lib", "https://host/team/app/", "https://host/lib"),
        ("./lib", "https://host/team/app", "https://host/team/app/lib"),
        ("../lib.git", "git@host:team/app.git", "git@host:team/lib.git"),
        ("../lib", "ssh://git@host:22/team/app", "ssh://git@host:22/team/lib"),
        ("https://other/lib", "https://host/team/app", "https://other/lib"),
    ],
)
def test_relative_address_of_a_submodule_goes_from_the_remote(url: str, remote: str, whole: str) -> None:
    assert resolve_url(url, remote) == whole


def test_relative_address_that_leaves_its_host_is_refused() -> None:
    with pytest.raises(SourceError, match="leads above its host"):
        resolve_url("../../../evil/lib", "https://host/team/app")


async def test_submodules_of_submodules_come_along_and_those_switched_off_do_not(
    repository: Repository, tmp_path: Path
) -> None:
    deep, middle = Repository(tmp_path / "deep"), Repository(tmp_path / "middle")
    deep.commit(lib="deep")
    middle.git("submodule", "--quiet", "add", "../deep", "deep")
    middle.git("config", "--file", ".gitmodules", "submodule.deep.url", "../deep")
    middle.commit()
    for path in ("middle", "off"):
        repository.git("submodule", "--quiet", "add", middle.url, path)
    repository.git("config", "--file", ".gitmodules", "submodule.off.update", "none")
    commit = repository.commit()

    await GitCheckout(tmp_path / "home", git=GIT).check_out(repository.url, commit, tmp_path / "code")

    assert (tmp_path / "code/middle/deep/lib.py").read_text() == "deep"
    assert os.listdir(tmp_path / "code/off") == []


async def test_submodule_of_another_protocol_is_refused_like_a_remote(repository: Repository, tmp_path: Path) -> None:
    repository.git("submodule", "--quiet", "add", repository.url, "inner")
    repository.git("config", "--file", ".gitmodules", "submodule.inner.url", "ext::sh -c touch% /tmp/x")
    commit = repository.commit()

    with pytest.raises(SourceError, match="Refusing to fetch git remote 'ext::"):
        await GitCheckout(tmp_path / "home", git=GIT).check_out(repository.url, commit, tmp_path / "code")
    assert not (tmp_path / "code").exists()


async def test_submodule_without_an_address_is_refused_by_its_path(repository: Repository, tmp_path: Path) -> None:
    repository.git("submodule", "--quiet", "add", repository.url, "inner")
    repository.git("config", "--file", ".gitmodules", "--unset", "submodule.inner.url")
    commit = repository.commit()

    with pytest.raises(SourceError, match=r"The submodule 'inner' .* has no address"):
        await GitCheckout(tmp_path / "home", git=GIT).check_out(repository.url, commit, tmp_path / "code")


async def test_submodules_that_name_each_other_end_in_an_error(tmp_path: Path) -> None:
    ring = Repository(tmp_path / "ring")
    first = ring.commit(main="x")
    for _ in range(12):  # each commit has the one before it as its submodule
        ring.git("update-index", "--add", "--cacheinfo", f"160000,{first},inner")
        (ring.path / ".gitmodules").write_text(f'[submodule "inner"]\n\tpath = inner\n\turl = {ring.url}\n')
        ring.git("add", ".gitmodules")
        ring.git("commit", "--quiet", "--message", "next")
        first = ring.git("rev-parse", "HEAD")

    with pytest.raises(SourceError, match="more than 8 levels deep"):
        await GitCheckout(tmp_path / "home", git=GIT).check_out(ring.url, first, tmp_path / "code")


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "folder/../../outside", "hop"])
async def test_link_that_leaves_the_repository_is_refused(repository: Repository, tmp_path: Path, target: str) -> None:
    (repository.path / "folder").mkdir()
    (repository.path / "folder" / "file").write_text("x")
    (repository.path / "hop").symlink_to("..")
    if target != "hop":
        (repository.path / "hop").unlink()
        (repository.path / "link").symlink_to(target)
    commit = repository.commit()

    with pytest.raises(SourceError, match="leads out of the repository"):
        await GitCheckout(tmp_path / "home", git=GIT).check_out(repository.url, commit, tmp_path / "code")
    assert not (tmp_path / "code").exists()


async def test_links_inside_the_repository_stay_links(repository: Repository, tmp_path: Path) -> None:
    (repository.path / "data").mkdir()
    (repository.path / "data" / "one").write_text("1")
    (repository.path / "link").symlink_to("data/one")
    (repository.path / "data" / "up").symlink_to("../main.py")
    commit = repository.commit()

    await GitCheckout(tmp_path / "home", git=GIT).check_out(repository.url, commit, tmp_path / "code")

    assert os.readlink(tmp_path / "code" / "link") == "data/one"
    assert (tmp_path / "code" / "data" / "up").read_text() == "print('one')"
