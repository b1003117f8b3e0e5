"""Template variables in the options of clusters: what only the owner chooses, on every resource that runs elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from prefect_launch.errors import QueueError
from tests.support.queue_config import make_config


@pytest.mark.parametrize(
    ("resource", "config"),
    [
        ("slurm", {"partition": "{{v}}"}),
        ("slurm", {"account": "team-{{v}}"}),
        ("slurm", {"qos": "{{v}}"}),
        ("slurm", {"nodelist": "{{v}}"}),
        ("slurm", {"container": "apptainer", "mount": ["/data/{{v}}:/data"]}),
        ("slurm", {"sbatch": ["--switches={{v}}"]}),
        ("ray", {"output_dir": "/shared/{{v}}"}),
        ("ray", {"secrets": "{{v}}"}),
        ("ray", {"runtime_env": {"py_executable": "{{v}}"}}),
        ("ray", {"runtime_env": {"container": {"image": "{{v}}"}}}),
        ("vertex", {"spec": {"worker_pool_specs": [{"machine_spec": {"machine_type": "{{v}}"}}]}}),
        ("vertex", {"spec": {"staging_bucket": "gs://{{v}}"}}),
        ("vertex", {"run": {"service_account": "{{v}}"}}),
        ("prefect", {"work_pool": "{{v}}"}),
        ("prefect", {"work_pool": "p", "work_queue": "${author}"}),
        ("prefect", {"work_pool": "p", "python": "{{v}}"}),
        ("prefect", {"work_pool": "p", "job_variables": {"namespace": "{{v}}"}}),
        ("prefect", {"work_pool": "p", "job_variables": {"volumes": ["{{v}}:/data"]}}),
    ],
)
def test_variable_without_a_rule_chooses_nothing_that_is_the_owners(resource: str, config: dict[str, Any]) -> None:
    with pytest.raises(QueueError, match="only the queue's owner may"):
        make_config(resource, config, {"v": {"type": "string"}})

    bounded = {"v": {"type": "string", "enum": ["a", "b"]}}
    if "${author}" not in str(config):
        assert make_config(resource, config, bounded)


@pytest.mark.parametrize(
    ("resource", "config"),
    [
        ("slurm", {"cpus": "{{n}}", "memory": "{{n}}g", "time": "{{n}}", "nodes": "{{n}}"}),
        ("slurm", {"env": {"NAME": "{{v}}"}}),
        ("vertex", {"spec": {"worker_pool_specs": [{"replica_count": "{{n}}"}], "labels": {"team": "{{v}}"}}}),
        ("ray", {"cpus": "{{n}}", "resources": {"tpu": "{{n}}"}, "runtime_env": {"pip": ["{{v}}"]}}),
        (
            "prefect",
            {"work_pool": "p", "image": "{{v}}", "job_variables": {"cpu_request": "{{n}}", "env": {"A": "{{v}}"}}},
        ),
    ],
)
def test_how_much_a_job_gets_and_its_variables_are_free(resource: str, config: dict[str, Any]) -> None:
    assert make_config(resource, config, {"n": {"type": "integer"}, "v": {"type": "string"}})


def test_number_is_chosen_between_the_owners_minimum_and_maximum() -> None:
    with pytest.raises(QueueError, match="of a number: minimum and maximum"):
        make_config("slurm", {"nice": "{{n}}"}, {"n": {"type": "integer", "maximum": 5}})

    assert make_config("slurm", {"nice": "{{n}}"}, {"n": {"type": "integer", "minimum": 0, "maximum": 5}})
