"""Sweep files, grids, distributions and early stopping beside W&B's own package, and arguments as Hydra reads them.

Both packages are installed in an environment of their own.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from uv import find_uv_bin

from prefect_launch.errors import LaunchError
from prefect_launch.sweeps.command import trial_arguments
from prefect_launch.sweeps.config import parse_sweep
from prefect_launch.sweeps.history import History, Trial, TrialState
from prefect_launch.sweeps.hyperband import bands, trials_to_stop
from prefect_launch.sweeps.search_space import grid_point, number_of_grid_points
from prefect_launch.sweeps.sweep_file import read_sweep_file
from tests.support import wandb_sweeps

PACKAGES = ["sweeps==0.3.0", "hydra-core==1.3.*"]
FILES = Path(__file__).parents[1] / "sweep_files"

#: Read here, and refused by W&B's schema: what launch sweeps add, what we add, and one level too much.
OURS_ALONE = {"bayes-under-sweep", "launch-blocks", "our-own-keys", "all-other-distributions"}
#: Refused here, and accepted by W&B's schema: each would end in an error, or without an end, later.
REFUSED_HERE_ALONE = {
    *(
        "command-with-unknown-macro",
        "grid-over-a-range",
        "grid-with-probabilities",
        "bayes-without-metric",
        "number-beyond-64-bits",
        "infinite-end",
    ),
    *("exponent-too-large", "quantum-too-small", "custom-without-sampler"),
}

QUANTILES = [0.003, 0.05, 0.21, 0.37, 0.49, 0.61, 0.73, 0.88, 0.997]
SHAPES: list[dict[str, Any]] = [
    {"values": [3, 1, 2]},
    {"values": [3, 1, 2], "probabilities": [0.1, 0.7, 0.2]},
    {"min": -3, "max": 12},
    {"min": -3, "max": 12.0},
    {"distribution": "uniform", "min": -3, "max": 12},
    {"distribution": "log_uniform", "min": -9.2, "max": 2},
    {"distribution": "log_uniform_values", "min": 1e-5, "max": 10},
    {"distribution": "inv_log_uniform", "min": -1, "max": 4.5},
    {"distribution": "inv_log_uniform_values", "min": 0.01, "max": 10},
    {"distribution": "normal"},
    {"distribution": "normal", "mu": 10, "sigma": 3},
    {"distribution": "log_normal", "mu": 0.1, "sigma": 2},
    {"distribution": "beta"},
    {"distribution": "beta", "a": 0.3, "b": 0.7},
    {"distribution": "beta", "a": 2, "b": 50},
    {"distribution": "q_uniform", "min": 0, "max": 10, "q": 3},
    {"distribution": "q_uniform", "min": -1, "max": 1.0, "q": 0.1},
    {"distribution": "q_log_uniform", "min": 0, "max": 5},
    {"distribution": "q_log_uniform_values", "min": 32, "max": 256, "q": 8},
    {"distribution": "q_normal", "mu": 5, "sigma": 3, "q": 0.5},
    {"distribution": "q_log_normal", "mu": 1, "q": 2},
    {"distribution": "q_beta", "a": 2, "b": 5, "q": 0.05},
]
RULES: list[dict[str, Any]] = [
    {"min_iter": 2},
    {"min_iter": 1, "eta": 1.7, "strict": False},
    {"max_iter": 27, "s": 2},
    {"max_iter": 27, "s": 5, "eta": 2, "strict": False},
]


def _early_stops() -> dict[str, Any]:
    chance = random.Random(5)
    return {
        f"{number}/{goal}/{turn}": {
            "config": {
                "method": "random",
                "metric": {"name": "loss", "goal": goal},
                "early_terminate": {"type": "hyperband", **rule},
                "parameters": {"a": {"value": 1}},
            },
            "runs": [
                (
                    chance.choice(["running", "running", "finished"]),
                    [chance.random() for _ in range(chance.randrange(1, 30))],
                )
                for _ in range(12)
            ],
        }
        for number, rule in enumerate(RULES)
        for goal in ("minimize", "maximize")
        for turn in range(5)
    }


EARLY_STOPS = _early_stops()
TEXTS = [
    *(
        "adam",
        "a b",
        "it's",
        "",
        "true",
        "null",
        "NaN",
        "1",
        "1e-3",
        "a=b",
        "x,y",
        "[1]",
        "{a}",
        "back\\slash",
        "end\\",
    ),
    *("\\'q", "${x}", "$x", "a:b", "./p/q-r.py", "résumé", "~x", "a#b", "-5", "(a)", "*", "tab\there", '"q"'),
]
VALUES = [*TEXTS, 1e-05, 3, -2.5, True, False, None, [1, "a b", [2.0]], [], {"k": "v w"}]
HYDRA: dict[str, Any] = {**{f"p{number}": value for number, value in enumerate(VALUES)}, "group": {"in": {"lr": 0.1}}}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The answers of W&B's package and of Hydra to every question: one process, since each takes seconds to start."""
    folder = tmp_path_factory.mktemp("wandb-sweeps")
    python = str(folder / "bin" / "python")
    for command in (
        ["venv", "--quiet", "--allow-existing", "--python", sys.executable, str(folder)],
        ["pip", "install", "--quiet", "--python", python, *PACKAGES],
    ):
        subprocess.run([find_uv_bin(), *command], check=True, timeout=240)
    questions = {
        "violations": {**contents("read"), **contents("refused")},
        "grid": grids(),
        "quantiles": {str(number): {"shape": shape, "quantiles": QUANTILES} for number, shape in enumerate(SHAPES)},
        "stopped": EARLY_STOPS,
        "hydra": {"words": trial_arguments(HYDRA, "hydra")},
    }
    done = subprocess.run(
        [python, wandb_sweeps.__file__], input=json.dumps(questions), capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers


def contents(folder: str) -> dict[str, Any]:
    """What the sweep files of a folder hold, by their names; those that are no YAML left out."""
    found = {}
    for file in sorted((FILES / folder).iterdir()):
        try:
            found[file.stem] = read_sweep_file(file)
        except LaunchError:
            continue
    return found


def grids() -> dict[str, Any]:
    return {name: each for name, each in contents("read").items() if name.startswith("grid-")}


def test_files_are_read_and_refused_as_wandb_does_but_for_known_differences(theirs: dict[str, Any]) -> None:
    refused_there = theirs["violations"]

    assert {name for name in contents("read") if refused_there[name]} == OURS_ALONE
    assert {name for name in contents("refused") if not refused_there[name]} == REFUSED_HERE_ALONE


def test_grids_have_the_points_of_wandb_in_its_order(theirs: dict[str, Any]) -> None:
    assert grids()
    for name, content in grids().items():
        parameters = parse_sweep(content).parameters
        ours = [grid_point(parameters, number) for number in range(number_of_grid_points(parameters) or 0)]
        assert ours == theirs["grid"][name]


def test_distributions_have_the_quantiles_of_wandb(theirs: dict[str, Any]) -> None:
    for number, shape in enumerate(SHAPES):
        ((_, kind),) = parse_sweep({"method": "random", "parameters": {"a": shape}}).parameters
        ours = [kind.draw(quantile) for quantile in QUANTILES]
        assert ours == pytest.approx(theirs["quantiles"][str(number)], rel=1e-9, abs=1e-12), shape


def test_trials_are_stopped_early_where_wandb_stops_them(theirs: dict[str, Any]) -> None:
    for name, case in EARLY_STOPS.items():
        config = parse_sweep(case["config"])
        assert config.early_terminate
        assert config.metric
        trials = tuple(
            Trial(k, {}, TrialState(state), steps=tuple(steps)) for k, (state, steps) in enumerate(case["runs"])
        )
        stopped = trials_to_stop(config.early_terminate, config.metric, History(trials))
        assert {"stopped": list(stopped), "bands": list(bands(config.early_terminate))[:20]} == theirs["stopped"][name]
    assert any(answer["stopped"] for answer in theirs["stopped"].values())


def test_hydra_reads_every_parameter_as_it_is(theirs: dict[str, Any]) -> None:
    assert theirs["hydra"]["words"] == HYDRA
