"""What pip is told on a machine, as secrets of a build."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from prefect_launch.environments.pip_config import PipAccess, read_pip_access
from prefect_launch.errors import AgentConfigError

URL = "https://me:s3cr%40t@index.example/root"


def access(tmp_path: Path, text: str, *, folders: bool = True, **environ: str) -> PipAccess:
    file = tmp_path / "pip.conf"
    file.write_text(text)
    return read_pip_access(str(file), folders=folders, environ={"HOME": str(tmp_path), **environ})


def variables(given: PipAccess) -> dict[str, str]:
    """What a shell has after it has read the file."""
    text = given.files["index.env"].decode()
    said = subprocess.run(["env", "-i", "sh", "-c", f"{text}\nenv"], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in said.splitlines() if line.startswith(("PIP_", "UV_", "SSL", "HTTP")))


def test_indexes_are_told_to_pip_and_to_uv(tmp_path: Path) -> None:
    given = access(tmp_path, f"[global]\nindex-url = {URL}\nextra-index-url = https://a.example https://b.example\n")
    told = variables(given)
    assert told["PIP_INDEX_URL"] == told["UV_DEFAULT_INDEX"] == URL
    assert told["PIP_EXTRA_INDEX_URL"] == told["UV_INDEX"] == "https://a.example https://b.example"


def test_certificates_are_carried_along_and_named_where_they_will_be(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("certificate")
    given = access(tmp_path, f"[global]\ncert = {tmp_path}/ca.pem\n")
    assert given.files["ca.pem"] == b"certificate"
    assert variables(given)["PIP_CERT"] == variables(given)["SSL_CERT_FILE"] == "/run/launch/ca.pem"


def test_index_in_a_folder_is_mounted_or_left_out(tmp_path: Path) -> None:
    (tmp_path / "index/simple").mkdir(parents=True)
    (tmp_path / "wheels").mkdir()
    indexes = f"file://{tmp_path}/index/simple https://a.example"
    text = f"[global]\nextra-index-url = {indexes}\nfind-links = {tmp_path}/wheels\n"
    given = access(tmp_path, text)
    assert given.folders == (f"{tmp_path}/index", f"{tmp_path}/wheels")
    assert "file://" in variables(given)["UV_INDEX"]
    without = access(tmp_path, text, folders=False)
    assert (without.folders, variables(without)["UV_INDEX"]) == ((), "https://a.example")


def test_passwords_are_shown_in_no_log(tmp_path: Path) -> None:
    given = access(tmp_path, f"[global]\nindex-url = {URL}\n")
    assert given.mask.text(f"Looking in {URL}; s3cr@t") == "Looking in https://me:********@index.example/root; ********"
    assert "s3cr" not in repr(given)


def test_proxies_go_along_with_what_pip_is_told(tmp_path: Path) -> None:
    assert (
        variables(access(tmp_path, "", HTTPS_PROXY="http://proxy.example:1"))["HTTPS_PROXY"] == "http://proxy.example:1"
    )


def test_nothing_is_told_when_the_operator_says_so() -> None:
    assert read_pip_access("none", folders=True) == PipAccess()


def test_configuration_file_that_is_not_there_is_refused() -> None:
    with pytest.raises(AgentConfigError, match=r"no file '/no/pip\.conf'"):
        read_pip_access("/no/pip.conf", folders=True)
