"""W&B's own `sweeps` package, and Hydra, as oracles: reads questions as JSON from stdin, and prints its answers.

Runs as a file in an environment of its own, where those packages are installed and this project is not.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def _violations(config: Any) -> bool:
    from sweeps.config.cfg import schema_violations_from_proposed_config  # type: ignore[import-not-found]

    try:
        found = schema_violations_from_proposed_config(config)
    except Exception:  # noqa: BLE001 - a crash on a broken file is a refusal too
        return True
    # A deprecated distribution is told in the same way, and accepted.
    return any("specify base-e exponents" not in text for text in found)


def _grid(config: Any) -> list[Any]:
    from sweeps.grid_search import grid_search_next_runs  # type: ignore[import-not-found]

    found = grid_search_next_runs([], config, n=1000)
    return [{name: each["value"] for name, each in run.config.items()} for run in found if run is not None]


def _quantiles(question: Any) -> list[float]:
    from sweeps.params import HyperParameter  # type: ignore[import-not-found]

    parameter = HyperParameter("a", question["shape"])
    return [float(parameter.ppf(quantile)) for quantile in question["quantiles"]]


def _stopped(question: Any) -> Any:
    from sweeps.hyperband_stopping import hyperband_stop_runs  # type: ignore[import-not-found]
    from sweeps.run import SweepRun  # type: ignore[import-not-found]

    runs = [
        SweepRun(name=str(number), state=state, history=[{"loss": value} for value in steps])
        for number, (state, steps) in enumerate(question["runs"])
    ]
    stopped = sorted(int(run.name) for run in hyperband_stop_runs(runs, question["config"]))
    found = [run.early_terminate_info["bands"] for run in runs if run.early_terminate_info]
    return {"stopped": stopped, "bands": found[0][:20] if found else []}


def _hydra(words: Any) -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser  # type: ignore[import-not-found]
    from omegaconf import OmegaConf  # type: ignore[import-not-found]

    config = OmegaConf.create({})
    for word in words:
        override = OverridesParser.create().parse_override(word)
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return OmegaConf.to_container(config, resolve=True)


ANSWERS = {"violations": _violations, "grid": _grid, "quantiles": _quantiles, "stopped": _stopped, "hydra": _hydra}

if __name__ == "__main__":
    questions = json.load(sys.stdin)
    answers = {kind: {key: ANSWERS[kind](each) for key, each in asked.items()} for kind, asked in questions.items()}
    json.dump(answers, sys.stdout)
