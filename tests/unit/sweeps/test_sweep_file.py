"""Sweep files as people write them: what is read of each, and what is refused with which words."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest

from prefect_launch.errors import LaunchError, SpecError
from prefect_launch.spec.scheduling import Cause
from prefect_launch.sweeps.config import DEFAULT_WORKERS, SweepConfig, parse_sweep
from prefect_launch.sweeps.distributions import IntUniform, LogUniformValues, Uniform
from prefect_launch.sweeps.preview import preview_sweep
from prefect_launch.sweeps.sweep_file import MAX_FILE_BYTES, parse_sweep_yaml, read_sweep_file

FILES = Path(__file__).parents[2] / "sweep_files"
READ = sorted((FILES / "read").iterdir())
REFUSED = sorted((FILES / "refused").iterdir())


def sweep(**given: Any) -> SweepConfig:
    return parse_sweep({"method": "random", "parameters": {"x": {"value": 1}}, **given})


def in_file(name: str) -> SweepConfig:
    return parse_sweep(read_sweep_file(FILES / "read" / f"{name}.yaml"))


def expected(file: Path) -> str:
    """What the first line of a case says after its word."""
    return file.read_text().splitlines()[0].partition(": ")[2]


@pytest.mark.parametrize("file", READ, ids=lambda file: file.stem)
def test_file_that_people_write_is_read_and_its_points_are_counted(file: Path) -> None:
    preview = preview_sweep(parse_sweep(read_sweep_file(file)))

    assert ("infinite" if preview.points is None else str(preview.points)) == expected(file)
    assert 1 <= len(preview.samples) <= 5


@pytest.mark.parametrize("file", REFUSED, ids=lambda file: file.stem)
def test_broken_file_is_refused_with_the_place_the_value_and_the_rule(file: Path) -> None:
    with pytest.raises(LaunchError) as refusal:
        parse_sweep(read_sweep_file(file))

    assert expected(file) in str(refusal.value)


def test_number_without_a_dot_is_a_number_and_a_quoted_one_stays_text() -> None:
    read = parse_sweep_yaml("a: 1e-4\nb: -2E+3\nc: 1.5e3\nd: '1e-4'\ne: 10\nf: 1.0\ng: e4\nh: no\ni: 1e\nj: .5\nk: 3.")

    assert read == {
        **{"a": 1e-4, "b": -2000.0, "c": 1500.0, "d": "1e-4", "e": 10, "f": 1.0, "g": "e4", "h": False, "i": "1e"},
        **{"j": 0.5, "k": 3.0},
    }
    assert isinstance(read["e"], int)
    assert isinstance(read["f"], float)


def test_word_that_is_a_boolean_as_a_value_is_text_as_a_name() -> None:
    assert parse_sweep_yaml("on: {yes: no}") == {"on": {"yes": False}}


def test_written_form_of_the_ends_decides_between_whole_numbers_and_reals() -> None:
    ends = {"a": {"min": 1, "max": 5}, "b": {"min": 1.0, "max": 5}, "c": {"min": 1, "max": 5.0}}
    named = {"d": {"min": 1, "max": 5, "distribution": "uniform"}}

    kinds = {path[0]: type(kind) for path, kind in sweep(parameters={**ends, **named}).parameters}

    assert kinds == {"a": IntUniform, "b": Uniform, "c": Uniform, "d": Uniform}


def test_anchors_and_merged_keys_of_yaml_are_read() -> None:
    text = "base: &lr {distribution: log_uniform_values, min: 1e-4, max: 1e-1}\nlr: {<<: *lr, max: 1}"

    (_, kind) = sweep(parameters={"lr": parse_sweep_yaml(text)["lr"]}).parameters[0]

    assert kind == LogUniformValues(min=1e-4, max=1)


def test_launch_and_scheduler_blocks_are_read_and_what_has_no_effect_is_reported() -> None:
    config = in_file("launch-blocks")

    assert config.launch.queue == "gpu"
    assert config.launch.config == {"priority": "high", "resource_args": {"local-container": {"memory": "2g"}}}
    assert config.scheduler.num_workers == 4
    assert any("scheduler.resource has no effect" in warning for warning in config.warnings)


def test_keys_of_our_own_are_read() -> None:
    config = in_file("our-own-keys")

    assert (config.args, config.seed, config.run_cap, config.max_failures, config.timeout) == (
        *("hydra", 7, 100, 10, 7200.0),
    )
    assert config.retries.on == (Cause.FAILED,)
    assert config.scheduler.num_workers == DEFAULT_WORKERS


def test_exponents_of_the_deprecated_distribution_are_reported_as_a_warning() -> None:
    (warning, _) = in_file("random-exponents").warnings

    assert warning.startswith("parameters.lr: min and max of log_uniform are exponents of e; log_uniform_values takes")


def test_sweep_without_any_end_is_reported_as_a_warning() -> None:
    assert any("has no end here" in warning for warning in sweep().warnings)
    assert not sweep(run_cap=3).warnings
    assert not sweep(method="grid").warnings


def test_target_is_reached_by_it_or_a_better_value_only() -> None:
    metric = sweep(metric={"name": "acc", "goal": "maximize", "target": 0.9}).metric
    assert metric is not None

    assert [metric.reaches_target(value) for value in (0.89, 0.9, 0.95, None, math.nan, math.inf)] == [
        *(False, True, True, False, False, False),
    ]


def test_grid_of_ten_million_million_points_is_counted_and_sampled_at_once() -> None:
    ends = {"min": -(2**63), "max": 2**63}
    config = sweep(method="grid", parameters=dict.fromkeys("abcdefgh", ends))

    started = time.process_time()
    preview = preview_sweep(config)

    assert preview.points == (2**64 + 1) ** 8
    assert [sample["h"] for sample in preview.samples] == [ends["min"] + step for step in range(5)]
    assert time.process_time() - started < 1


def test_aliases_that_multiply_or_name_themselves_are_refused_at_once() -> None:
    bomb = "a0: &a0 [1]\n" + "".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(30))

    for text in (bomb, "a: &a [*a]", "a: &a {b: *a}"):
        with pytest.raises(SpecError, match=r"more than 400,000 values once its aliases \(\*name\) are filled in"):
            parse_sweep_yaml(text)


def test_file_larger_than_the_server_keeps_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("#" * (MAX_FILE_BYTES + 1))

    with pytest.raises(SpecError, match="larger than 400,000 bytes"):
        read_sweep_file(file)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \x00"])
def test_file_that_is_no_text_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_bytes(content)

    with pytest.raises(SpecError, match=r"sweep\.yaml"):
        read_sweep_file(file)


def test_file_that_is_not_there_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(SpecError, match="cannot be read"):
            read_sweep_file(path)


def test_deeply_nested_file_is_refused_and_breaks_nothing() -> None:
    for text in ("[" * 5000, "parameters: " + "{a: {parameters: " * 300 + "{b: {value: 1}}" + "}}" * 300):
        with pytest.raises(SpecError):
            parse_sweep({"method": "random", "parameters": {"x": {"value": parse_sweep_yaml(text)}}})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"run_cap": 0}, "Invalid run_cap 0"),
        ({"run_cap": True}, "Invalid run_cap True .* must be a number"),
        ({"run_cap": 2.5}, "Invalid run_cap 2.5 .* whole number"),
        ({"metric": "loss"}, "Invalid metric 'loss' .* mapping"),
        ({"metric": {"goal": "minimize"}}, "no metric.name"),
        ({"metric": {"name": "loss", "goal": "max"}}, "Did you mean 'maximize'"),
        ({"metric": {"nmae": "loss"}}, "Unknown key 'nmae' in metric. Did you mean 'name'"),
        ({"metric": {"name": "loss", "mode": "max"}}, "Unknown key 'mode' in metric. Did you mean 'goal'"),
        ({"early_terminate": {"type": "hyperband", "miniter": 3}}, "'miniter' in early_terminate. .* 'min_iter'"),
        ({"scheduler": {"num_worker": 3}}, "'num_worker' in scheduler. Did you mean 'num_workers'"),
        ({"controller": {"typ": "local"}}, "'typ' in controller. Did you mean 'type'"),
        ({"launch": {"que": "gpu"}}, "'que' in launch. Did you mean 'queue'"),
        ({"n_trials": 5}, "'n_trials' in the sweep configuration. Did you mean 'run_cap'"),
        ({"early_terminate": "hyperband"}, "Invalid early_terminate 'hyperband' .* a mapping; .* min_iter"),
        ({"scheduler": 4}, "Invalid scheduler 4 .* a mapping; .* num_workers"),
        ({"run_cap": 1e3}, "Invalid run_cap 1000.0 .* in digits alone"),
        ({"metric": {"name": ""}}, "Invalid metric.name '' .* not empty"),
        ({"metric": {"name": "loss", "target": "low"}}, "Invalid metric.target 'low'"),
        ({"early_terminate": {"type": "median"}}, "early_terminate.type 'median' .* must be 'hyperband'"),
        ({"early_terminate": {"type": "hyperband", "min_iter": 3}}, "no metric, which early_terminate needs"),
        ({"early_terminate": {"type": "hyperband", "max_iter": 2, "s": 1}}, "no step to compare trials at"),
        ({"metrics": [{"name": "a"}, {"name": "b"}]}, "method: custom"),
        ({"command": []}, "Invalid command \\[\\]"),
        ({"command": ["python", None]}, "Put it in quotes"),
        ({"command": ["python"], "args": "json"}, r"the command has \$\{args\} for this"),
        ({"args": "gnu"}, "Invalid args 'gnu'"),
        ({"job": "a", "image_uri": "b"}, "both job and image_uri"),
        ({"retries": {"maximum": 1}}, "Unknown retry option 'maximum'"),
        ({"timeout": "soon"}, "Invalid duration 'soon'"),
        ({"parameters": {}}, "Invalid parameters {}"),
        ({"parameters": {"a b": {"value": 1}}}, "Invalid name in parameters 'a b'"),
        ({"parameters": {"a": {"values": [1], "value": 1}}}, "parameters.a.values"),
        ({"parameters": {"a": {"parameters": {}, "value": 1}}}, "only the key 'parameters'"),
        ({"parameters": {"a": {"distribution": "beta", "a": 0}}}, "parameters.a.a 0 .* greater than 0"),
        ({"parameters": {"a": {"distribution": "normal", "sigma": -1}}}, "parameters.a.sigma -1"),
        ({"parameters": {"a": {"distribution": "int_uniform", "min": 1, "max": 2.0}}}, "in digits alone"),
        ({"parameters": {"a": {"min": True, "max": 2}}}, "parameters.a.min True .* must be a number"),
        ({"parameters": {"a": {"distribution": ["uniform"]}}}, "must be one of"),
        ({"parameters": {"a": {"distribution": "loguniform"}}}, "Did you mean 'log_uniform_values'"),
    ],
)
def test_wrong_value_is_refused_with_its_place_and_rule(given: dict[str, Any], words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        sweep(**given)
