"""Which secret goes to which remote, and what the file of settings may say."""

from __future__ import annotations

from pathlib import Path

import pytest

from prefect_launch.errors import AgentConfigError
from prefect_launch.settings.agent_config import parse_agent_config
from prefect_launch.sources.remote import GIT_CONFIG_VARIABLE, GitSettings, machine_git_settings

SETTINGS = GitSettings.model_validate(
    {
        "credentials": {
            "github.com": "ours",
            "github.com/team": {"token": "team", "ssh_key": "team-key"},
            "Git.Example:8443": {"token": "port", "username": "robot"},
        }
    }
)


@pytest.mark.parametrize(
    ("remote", "token"),
    [
        ("https://github.com/other/x.git", "ours"),
        ("https://GitHub.com/other/x.git", "ours"),
        ("https://github.com/team/x.git", "team"),
        ("https://github.com/teammates/x.git", "ours"),
        ("git@github.com:team/x.git", "team"),
        ("ssh://git@github.com/team/x", "team"),
        ("https://git.example:8443/x/y", "port"),
        ("https://git.example/x/y", None),
        ("https://github.com.evil.example/team/x", None),
        ("https://evil.example/github.com/team/x", None),
    ],
)
def test_longest_host_or_path_that_fits_a_remote_names_its_secret(remote: str, token: str | None) -> None:
    found = SETTINGS.credential(remote)

    assert (found.token if found else None) == token


def test_file_of_settings_serves_the_agents_of_the_machine_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "git.yaml"
    file.write_text("timeout: 20min\nhost_keys: strict\ncredentials:\n  github.com: token\n")
    monkeypatch.setenv(GIT_CONFIG_VARIABLE, str(file))

    assert machine_git_settings().timeout == 1200
    assert parse_agent_config({"queues": ["gpu"]}).machine.git.host_keys == "strict"
    assert parse_agent_config({"queues": ["gpu"], "git": {"timeout": 5}}).machine.git == GitSettings(timeout=5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("credentials: {'https://github.com': x}", "must be a host"),
        ("credentials: {'me@github.com': x}", "must be a host"),
        ("timeout: -1", "timeout"),
        ("timeout: soon", "Invalid duration 'soon'"),
        ("host_keys: 'off'", "'accept-new' or 'strict'"),
        ("credential: {}", "credential"),
        ("credentials: {github.com: {token: x, usrname: y}}", "usrname"),
        ("[1, 2]", "the whole"),
        ("{", "cannot be read"),
    ],
)
def test_wrong_settings_are_refused_with_the_place(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "git.yaml").write_text(text)
    monkeypatch.setenv(GIT_CONFIG_VARIABLE, str(tmp_path / "git.yaml"))

    with pytest.raises(AgentConfigError, match=words):
        machine_git_settings()


def test_file_that_the_environment_names_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(GIT_CONFIG_VARIABLE, str(tmp_path / "none.yaml"))

    with pytest.raises(AgentConfigError, match="cannot be read"):
        machine_git_settings()
