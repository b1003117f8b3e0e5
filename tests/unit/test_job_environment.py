"""What a job finds in its environment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from prefect_launch.core.validation import MAX_SPEC_BYTES
from prefect_launch.errors import SpecError
from prefect_launch.planning.environment import CHUNK_BYTES, JobContext, chunked, job_environment
from prefect_launch.runners.base import with_default_variables
from prefect_launch.settings.agent_config import WandbServer
from prefect_launch.spec.launch_spec import parse_spec


def context(**fields: Any) -> JobContext:
    return JobContext(**{"run_id": "r1", "item_id": "i1", "output_dir": "/launch/outputs", **fields})


def test_smallest_run_finds_exactly_these_variables() -> None:
    assert job_environment(context()) == {
        "LAUNCH_RUN_ID": "r1",
        "LAUNCH_ITEM_ID": "i1",
        "LAUNCH_ATTEMPT": "1",
        "LAUNCH_OUTPUT_DIR": "/launch/outputs",
        "LAUNCH_CONFIG": "{}",
        "LAUNCH_FILE_OVERRIDES": "{}",
        "WANDB_LAUNCH": "True",
        "WANDB_RUN_ID": "r1",
        "WANDB_LAUNCH_TRACE_ID": "i1",
        "WANDB_CONFIG": "{}",
        "WANDB_LAUNCH_FILE_OVERRIDES": "{}",
    }


def test_full_run_finds_the_names_of_wandb_too() -> None:
    found = job_environment(
        context(
            attempt=2,
            queue="gpu",
            queue_entity="team",
            image="img:1",
            project="p",
            entity="e",
            name="my run",
            author="me",
            sweep_id="s1",
            config={"lr": 0.1},
            file_overrides={"c.json": {"x": 1}},
            artifacts={"data": "e/p/data:v0"},
        )
    )

    assert found["LAUNCH_QUEUE"] == found["WANDB_LAUNCH_QUEUE_NAME"] == "gpu"
    assert found["WANDB_LAUNCH_QUEUE_ENTITY"] == "team"
    assert (found["WANDB_PROJECT"], found["WANDB_ENTITY"], found["WANDB_NAME"]) == ("p", "e", "my run")
    assert (found["WANDB_USERNAME"], found["WANDB_SWEEP_ID"], found["WANDB_DOCKER"]) == ("me", "s1", "img:1")
    assert (found["LAUNCH_ATTEMPT"], found["WANDB_RESUME"]) == ("2", "allow")
    assert found["LAUNCH_CONFIG"] == found["WANDB_CONFIG"] == '{"lr": 0.1}'
    assert found["LAUNCH_FILE_OVERRIDES"] == found["WANDB_LAUNCH_FILE_OVERRIDES"] == '{"c.json": {"x": 1}}'
    assert json.loads(found["WANDB_ARTIFACTS"]) == {"data": "e/p/data:v0"}


def test_wandb_server_is_named_only_when_the_operator_configured_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "of the agent")
    assert not {"WANDB_API_KEY", "WANDB_BASE_URL"} & set(job_environment(context()))

    server = WandbServer(base_url="https://wandb.example", api_key=SecretStr("k1"))
    found = job_environment(context(), wandb=server)
    assert (found["WANDB_BASE_URL"], found["WANDB_API_KEY"]) == ("https://wandb.example", "k1")
    assert "k1" not in repr(server)


def test_entity_that_nobody_has_named_is_not_told_to_wandb() -> None:
    assert "WANDB_ENTITY" not in job_environment(context(entity="default"))


@pytest.mark.parametrize(
    ("given", "mode"),
    [
        ({}, "offline"),
        ({"WANDB_API_KEY": "k1"}, None),
        ({"WANDB_BASE_URL": "https://wandb.example"}, None),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_wandb_works_offline_where_nobody_names_a_server(given: dict[str, str], mode: str | None) -> None:
    found = with_default_variables(given, "/launch/outputs")
    assert (found.get("WANDB_MODE"), found["WANDB_DIR"]) == (mode, "/launch/outputs")
    assert ("WANDB_MAX_END_OF_RUN_SUMMARY_METRICS" in found) == (not given.keys() & {"WANDB_API_KEY", "WANDB_BASE_URL"})
    assert found.items() >= given.items()


def test_context_takes_over_what_a_spec_says() -> None:
    spec = parse_spec(
        {
            "job": "e/p/j:latest",
            "entity": "e",
            "project": "p",
            "author": "me",
            "run_id": "r7",
            "overrides": {"run_config": {"lr": 1}, "files": {"c.json": {"x": 1}}, "artifacts": {"a": "b"}},
        }
    )
    made = JobContext.of(spec, item_id="i1", output_dir="/o", queue="q", name=None)

    assert (made.run_id, made.queue, made.entity, made.author) == ("r7", "q", "e", "me")
    assert (made.config, made.file_overrides, made.artifacts) == ({"lr": 1}, {"c.json": {"x": 1}}, {"a": "b"})


@pytest.mark.parametrize("over", [-1, 0, 1])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_config_at_the_border_of_a_chunk_is_cut_where_the_reference_cuts(over: int, chunks: int) -> None:
    config = {"x": "y" * (chunks * CHUNK_BYTES + over - len('{"x": ""}'))}
    text = json.dumps(config)
    found = job_environment(context(config=config))

    expected = [text[start : start + CHUNK_BYTES] for start in range(0, len(text), CHUNK_BYTES)]
    for name in ("LAUNCH_CONFIG", "WANDB_CONFIG"):
        if len(expected) == 1:
            assert found[name] == text
            assert f"{name}_0" not in found
        else:
            assert name not in found
            assert [found[f"{name}_{number}"] for number in range(len(expected))] == expected
            assert f"{name}_{len(expected)}" not in found


@pytest.mark.parametrize("text", ["é" * 50, "日本語" * 30, "🚀" * 25, "a🚀é日" * 20, "🚀", "a" * 99 + "🚀"])
@pytest.mark.parametrize("chunk_bytes", [4, 5, 6, 7, 10, 99, 100, 101])
def test_character_at_the_border_of_a_chunk_is_not_cut(text: str, chunk_bytes: int) -> None:
    chunks = chunked("X", text, chunk_bytes)

    assert "".join(chunks.values()) == text
    assert all(0 < len(chunk.encode()) <= chunk_bytes for chunk in chunks.values())
    assert list(chunks) == (["X"] if len(chunks) == 1 else [f"X_{number}" for number in range(len(chunks))])


@pytest.mark.parametrize("filling", ["x", "\n", "é", "🚀", '"'])
def test_largest_spec_starts_a_real_process_and_arrives_whole(tmp_path: Path, filling: str) -> None:
    weight = len(json.dumps(filling)) - 2
    half = (MAX_SPEC_BYTES - 1_000) // weight // 2
    spec = parse_spec(
        {
            "docker": {"docker_image": "x"},
            "overrides": {"run_config": {"x": filling * half}, "files": {"c.json": {"x": filling * half}}},
        }
    )
    env = job_environment(JobContext.of(spec, run_id="r1", item_id="i1", output_dir=str(tmp_path)))
    (tmp_path / "c.json").write_text("{}")
    code = (
        "from prefect_launch.inputs import load_config, manage_config_file as m\n"
        "print(len(load_config()['x']), len(m('c.json')['x']))"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, "PYTHONPATH": root}, cwd=tmp_path, capture_output=True, text=True
    )

    assert (done.stdout.split(), done.stderr) == ([str(half)] * 2, "")


def test_value_with_a_zero_byte_is_refused() -> None:
    with pytest.raises(SpecError, match="WANDB_DOCKER holds a zero byte"):
        job_environment(context(image="a\0b"))


def test_value_too_long_for_one_variable_is_refused() -> None:
    with pytest.raises(SpecError, match="WANDB_ARTIFACTS has 131,"):
        job_environment(context(artifacts={"x": "y" * 131_050}))


@pytest.mark.parametrize("config", [{"x": float("nan")}, {"x": object()}])
def test_config_that_is_no_json_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="as JSON"):
        job_environment(context(config=config))
