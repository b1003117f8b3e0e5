"""Which resources may have runs of a home."""

from __future__ import annotations

from pathlib import Path

from prefect_launch.runners.registry import note_resource, runner_names, used_resources


def test_new_home_has_used_no_resource(tmp_path: Path) -> None:
    assert used_resources(tmp_path / "home") == set()


def test_home_has_used_what_was_noted_there(tmp_path: Path) -> None:
    note_resource(tmp_path / "home", "local-process")
    note_resource(tmp_path / "home", "local-process")
    assert used_resources(tmp_path / "home") == {"local-process"}

    note_resource(tmp_path / "home", "local-container")
    assert used_resources(tmp_path / "home") == {"local-container", "local-process"}


def test_home_that_is_older_than_the_notes_may_have_used_every_resource(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert used_resources(tmp_path) == set(runner_names())

    note_resource(tmp_path, "local-process")
    assert used_resources(tmp_path) == set(runner_names())


def test_resource_of_a_package_that_is_gone_is_looked_at_no_more(tmp_path: Path) -> None:
    note_resource(tmp_path, "of-a-package-that-is-gone")

    assert used_resources(tmp_path) == set()
