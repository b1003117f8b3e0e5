"""A job declares a config file, and a submitter's overrides are in it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefect_launch.errors import LaunchError
from prefect_launch.inputs import manage_config_file
from prefect_launch.inputs.config_files import deep_merge
from tests.unit.inputs.conftest import Launch


def test_json_file_is_overridden_on_disk(launched: Launch, job_dir: Path) -> None:
    (job_dir / "c.json").write_text('{"lr": 0.1, "model": {"depth": 2, "sizes": [1, 2]}}')
    launched(file_overrides={"c.json": {"lr": 0.5, "model": {"sizes": [9]}, "new": "ü"}})

    values = manage_config_file("c.json")

    expected = {"lr": 0.5, "model": {"depth": 2, "sizes": [9]}, "new": "ü"}
    assert values == expected
    assert (job_dir / "c.json").read_text() == json.dumps(expected, indent=2) + "\n"


@pytest.mark.parametrize("suffix", ["yaml", "yml"])
def test_yaml_file_is_overridden_on_disk_in_its_own_order(launched: Launch, job_dir: Path, suffix: str) -> None:
    file = job_dir / f"c.{suffix}"
    file.write_text("# comment\nz: 1\na:\n  b: yes\n  when: 2024-01-02\n")
    launched(file_overrides={file.name: {"a": {"b": "日本"}}})

    manage_config_file(file.name)

    assert file.read_text() == "z: 1\na:\n  b: 日本\n  when: 2024-01-02\n"


@pytest.mark.parametrize("declared", ["conf/c.json", "./conf/c.json", "conf//c.json", "conf/./c.json"])
@pytest.mark.parametrize("overridden", ["conf/c.json", "./conf/c.json", "conf/.//c.json"])
def test_other_spellings_of_a_path_mean_the_same_file(
    launched: Launch, job_dir: Path, declared: str, overridden: str
) -> None:
    (job_dir / "conf").mkdir()
    (job_dir / "conf/c.json").write_text('{"x": 1}')
    launched(file_overrides={overridden: {"x": 2}})

    assert manage_config_file(declared) == {"x": 2}


def test_path_may_be_a_path_object_with_spaces_and_dots(launched: Launch, job_dir: Path) -> None:
    (job_dir / "my config..json").write_text("{}")
    launched(file_overrides={"my config..json": {"x": 1}})

    assert manage_config_file(Path("my config..json")) == {"x": 1}


def test_overrides_of_other_files_leave_this_one_alone(launched: Launch, job_dir: Path) -> None:
    (job_dir / "c.json").write_text('{"x":1}')
    launched(file_overrides={"d.json": {"x": 2}, "sub/c.json": {"x": 3}, "/c.json": {"x": 4}, "../c.json": {"x": 5}})

    assert manage_config_file("c.json") == {"x": 1}
    assert (job_dir / "c.json").read_text() == '{"x":1}'


def test_large_overrides_arrive_in_chunks(launched: Launch, job_dir: Path) -> None:
    (job_dir / "c.json").write_text("{}")
    launched(file_overrides={"c.json": {"text": "🚀" * 40_000}})

    assert manage_config_file("c.json")["text"] == "🚀" * 40_000


def test_wandb_name_of_the_overrides_works_too(monkeypatch: pytest.MonkeyPatch, job_dir: Path) -> None:
    (job_dir / "c.json").write_text("{}")
    monkeypatch.setenv("WANDB_LAUNCH_FILE_OVERRIDES", '{"c.json": {"x": 1}}')

    assert manage_config_file("c.json") == {"x": 1}


def test_number_one_is_written_over_true(launched: Launch, job_dir: Path) -> None:
    (job_dir / "c.json").write_text('{"x": true}')
    launched(file_overrides={"c.json": {"x": 1}})
    manage_config_file("c.json")

    assert json.loads((job_dir / "c.json").read_text())["x"] is not True


def test_file_that_has_its_values_already_is_not_written(launched: Launch, job_dir: Path) -> None:
    (job_dir / "c.json").write_text('{"x":   1}')
    launched(file_overrides={"c.json": {"x": 1}})
    manage_config_file("c.json")

    assert (job_dir / "c.json").read_text() == '{"x":   1}'


def test_file_keeps_its_mode_and_no_temporary_file_stays(launched: Launch, job_dir: Path) -> None:
    (job_dir / "c.json").write_text("{}")
    (job_dir / "c.json").chmod(0o640)
    launched(file_overrides={"c.json": {"x": 1}})
    manage_config_file("c.json")

    assert stat.S_IMODE((job_dir / "c.json").stat().st_mode) == 0o640
    assert os.listdir(job_dir) == ["c.json"]


def test_program_that_was_not_launched_leaves_the_file_alone(job_dir: Path) -> None:
    (job_dir / "c.yaml").write_text("# mine\nx: 1\n")

    assert manage_config_file("c.yaml") == {"x": 1}
    assert (job_dir / "c.yaml").read_text() == "# mine\nx: 1\n"
    assert os.listdir(job_dir) == ["c.yaml"]


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("/etc/c.json", "absolute"),
        ("../c.json", r"'\.\.'"),
        ("a/../../c.json", r"'\.\.'"),
        ("missing.json", "does not exist"),
        ("c.toml", r"only \.json, \.yaml, \.yml"),
        ("c", r"only \.json"),
        ("c.JSON", r"only \.json"),
        ("c\n.json", "control character"),
        ("folder.json", "not a file"),
        ("leaves.json", "link that leaves"),
        ("loop.json", "does not exist"),
        ("", "relative path"),
        (7, "relative path"),
    ],
)
def test_bad_path_is_refused_with_the_rule(job_dir: Path, tmp_path: Path, path: Any, rule: str) -> None:
    (job_dir / "folder.json").mkdir()
    (tmp_path / "outside.json").write_text("{}")
    (job_dir / "leaves.json").symlink_to("../outside.json")
    (job_dir / "loop.json").symlink_to("loop.json")

    with pytest.raises(LaunchError, match=rule):
        manage_config_file(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.json", b"{"),
        ("c.json", b""),
        ("c.json", b"[1]"),
        ("c.json", b"\xff\xfe"),
        ("c.yaml", b"a: [1"),
        ("c.yaml", b"- 1"),
        ("c.yaml", b"!!python/object/apply:os.system ['true']"),
        ("c.yaml", b"\x00"),
    ],
)
def test_file_that_holds_no_mapping_is_refused(job_dir: Path, name: str, content: bytes) -> None:
    (job_dir / name).write_bytes(content)

    with pytest.raises(LaunchError, match=name):
        manage_config_file(name)
    assert (job_dir / name).read_bytes() == content


def test_empty_yaml_file_is_an_empty_config(launched: Launch, job_dir: Path) -> None:
    (job_dir / "c.yaml").write_text("")
    launched(file_overrides={"c.yaml": {"x": 1}})

    assert manage_config_file("c.yaml") == {"x": 1}
    assert yaml.safe_load((job_dir / "c.yaml").read_text()) == {"x": 1}


def test_overrides_that_are_no_mapping_are_refused(monkeypatch: pytest.MonkeyPatch, job_dir: Path) -> None:
    (job_dir / "c.json").write_text("{}")
    monkeypatch.setenv("LAUNCH_FILE_OVERRIDES", '{"c.json": [1]}')

    with pytest.raises(LaunchError, match="must be a mapping"):
        manage_config_file("c.json")


def test_merge_replaces_lists_and_changes_nothing_it_was_given() -> None:
    values = {"a": {"b": [1, 2], "c": 1}, "d": {"e": 1}}

    assert deep_merge(values, {"a": {"b": [3]}, "d": None}) == {"a": {"b": [3], "c": 1}, "d": None}
    assert values == {"a": {"b": [1, 2], "c": 1}, "d": {"e": 1}}
