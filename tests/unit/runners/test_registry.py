"""The table of resources."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest

from prefect_launch.errors import AgentConfigError, NotFoundError, SpecError
from prefect_launch.jobs.model import SourceKind
from prefect_launch.runners.process.runner import LocalProcessRunner
from prefect_launch.runners.registry import RUNNERS, make_runner, runner_class, runner_names


def test_both_resources_are_known() -> None:
    assert {"local-container", "local-process"} <= set(runner_names())
    assert runner_class("local-process") is LocalProcessRunner


def test_each_runner_bears_the_name_that_it_is_found_under(tmp_path: Path) -> None:
    for name in ("local-container", "local-process"):
        assert make_runner(name, tmp_path).name == name
        assert runner_class(name).submitter_options <= runner_class(name).options


def test_wrong_resource_is_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(NotFoundError, match=r"'local-proces'\. Did you mean 'local-process'\?.*local-container"):
        runner_class("local-proces")


def test_image_job_on_local_process_is_refused_with_what_it_runs() -> None:
    with pytest.raises(SpecError, match=r"image.*local-process.*code"):
        runner_class("local-process").check_source(SourceKind.IMAGE)


def test_wrong_process_option_is_refused_with_the_nearest_right_one() -> None:
    with pytest.raises(NotFoundError, match=r"'nise'.*Did you mean 'nice'"):
        runner_class("local-process").check_options({"nise": 3})


@pytest.mark.parametrize("value", [-1, 20, "x", 1.5, True, None])
def test_nice_outside_of_its_range_is_refused(value: object) -> None:
    with pytest.raises(SpecError, match="nice"):
        runner_class("local-process").check_options({"nice": value})


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("no_such_package:Runner", "cannot be imported.*no_such_package"),
        ("pathlib:NoSuchRunner", "cannot be imported.*NoSuchRunner"),
        ("pathlib:Path", "is no class derived from Runner"),
    ],
)
def test_resource_of_a_broken_package_is_named_with_its_class(place: str, words: str) -> None:
    with (
        patch.dict(RUNNERS._places, moon=place),
        pytest.raises(AgentConfigError, match=f"{place}.*resource 'moon'.*{words}"),
    ):
        runner_class("moon")
