"""`launch_add` refuses a bad call with one clear error of the right class, and nothing is queued."""

from __future__ import annotations

import math
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

from prefect_launch import create_job, launch_add, launch_add_many
from prefect_launch.errors import (
    AgentConfigError,
    InputError,
    InvalidNameError,
    LaunchError,
    NotFoundError,
    SourceError,
    SpecError,
    UnsafeSpecError,
)
from prefect_launch.spec.launch_spec import DockerSource, LaunchSpec, Overrides
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import IMAGE, inputs, items

TRAIN: dict[str, Any] = {"job": "train", "config": inputs(lr=0.1)}
REFUSED: list[tuple[dict[str, Any], type[LaunchError], str]] = [
    # the source
    ({}, SpecError, "Exactly one of job, docker_image or uri"),
    ({"job": "train", "docker_image": "b"}, SpecError, "Exactly one of"),
    ({"job": "train", "uri": "https://x/y.git"}, SpecError, "Exactly one of"),
    (
        {"job": "train", "queue_name": "cpu", "entry_point": ["python", "x.ipynb"]},
        SpecError,
        "is the notebook 'x.ipynb'",
    ),
    ({"uri": "ext::sh -c id"}, SourceError, "Refusing to fetch git remote 'ext::sh -c id'"),
    ({"uri": "file:///etc"}, SourceError, "Refusing"),
    ({"uri": "placeholder-uri-scheduler"}, SourceError, "Refusing to fetch git remote 'placeholder-uri-scheduler'"),
    ({"uri": "--upload-pack=id"}, SourceError, "Refusing"),
    ({"uri": "https://me:token@x/y.git"}, SourceError, r"'https://\*\*\*@x/y.git' holds credentials"),
    ({"uri": "https://wandb.ai/team/digits/runs/abc"}, AgentConfigError, "not one that this machine may ask"),
    ({"uri": "https://wandb.ai/team/digits/sweeps/abc"}, SourceError, "is a page of a W&B server"),
    (
        {"uri": "https://wandb.ai/team/digits/runs/abc", "config": {"git": {"job_name": "x"}}},
        SpecError,
        "whose job is as the run was",
    ),
    (
        {"uri": "https://wandb.ai/team/digits/runs/abc", "config": {"git": {"version": "v1"}}},
        SpecError,
        "is a W&B run, which has a commit",
    ),
    ({"uri": "https://github.com/team/x/tree/main/sub"}, SourceError, "Give 'https://github.com/team/x' as the URI"),
    ({"uri": "https://x/y.git", "entry_point": ["python", "../z.py"]}, SpecError, r"leaves the job's code"),
    ({"uri": "https://x/y.git", "entity": "a/b"}, InvalidNameError, "entity"),
    ({"job": "box", "config": {"git": {"version": "v1"}}}, SpecError, "does not agree with the job 'box', .*at v0"),
    # what the server could not send again
    (
        {"job": "train", "config": inputs(lr=0.1, seed=2**64)},
        SpecError,
        r"overrides\.run_config\.seed is 18446744073709551616, which Prefect's server cannot send",
    ),
    (
        {**TRAIN, "template_variables": {"gpus": -(2**64)}},
        SpecError,
        r"template_variables\.gpus is -18446744073709551616",
    ),
    ({**TRAIN, "resource_args": {"local-container": {"memory": 2**64}}}, SpecError, "memory is 18446744073709551616"),
    # what cannot be built
    ({"docker_image": "b", "build": True}, SpecError, "nothing to build: a docker_image"),
    ({"job": "box", "build": True}, SpecError, "nothing to build: the job acme/digits/box:v0"),
    ({"job": "train", "build": True, "queue_name": None}, SpecError, "without a queue"),
    ({**TRAIN, "build": True, "queue_name": "cpu"}, SpecError, "for the resource: local-process"),
    ({**TRAIN, "build": True}, SpecError, r"agent\.yaml"),
    ({**TRAIN, "build": True, "repository": "r.example/train:1"}, SpecError, "may not have a tag"),
    ({**TRAIN, "build": True, "repository": "team/train"}, SpecError, "names no registry"),
    ({"job": "train", "build": True, "repository": "r.example/train"}, InputError, "lr"),
    ({"docker_image": "a b"}, SpecError, "Invalid image 'a b'"),
    ({"docker_image": "-v"}, SpecError, "Invalid image '-v'"),
    ({"docker_image": "a\n"}, SpecError, "Invalid image"),
    ({"docker_image": "../x"}, SpecError, "Invalid image"),
    ({"docker_image": "b", "queue_name": 5}, InvalidNameError, "queue name must be text"),
    # names that are not there
    ({"job": "trian"}, NotFoundError, "Did you mean 'train'"),
    ({"job": "train:bset"}, NotFoundError, "alias or version 'bset'"),
    ({"job": "train:v7"}, NotFoundError, "v7"),
    ({"job": "other/digits/train"}, NotFoundError, "other/digits/train"),
    ({"job": "a/b/c/d"}, InvalidNameError, "a/b/c/d"),
    ({"job": "../train"}, InvalidNameError, r"\.\."),
    ({"docker_image": "b", "queue_name": "gup"}, NotFoundError, "Did you mean 'gpu'"),
    ({"docker_image": "b", "queue_name": "../gpu"}, LaunchError, r"\.\./gpu"),
    ({"docker_image": "b", "resource": "local-contaner"}, NotFoundError, "Did you mean 'local-container'"),
    ({"docker_image": "b", "resource": "local-process"}, SpecError, "runs its items on 'local-container'"),
    ({"docker_image": "b", "template_variables": {"gpu": 1}}, NotFoundError, "Did you mean 'gpus'"),
    ({"docker_image": "b", "config": {"overide": {}}}, NotFoundError, "Did you mean 'overrides'"),
    ({"docker_image": "b", "resource_args": {"local-container": {"memroy": 1}}}, LaunchError, "memroy"),
    ({"docker_image": "b", "resource_args": {"local-process": {"nice": 1}}}, SpecError, "are for 'local-process'"),
    ({"docker_image": "b", "resource_args": {"env": {"A": "1"}}}, SpecError, "below its name: {'local-container'"),
    ({"job": "train", "queue_name": "cpu", "config": inputs(lr=0.1, epoch=3)}, InputError, "epoch"),
    # values
    ({"docker_image": "b", "template_variables": {"gpus": 9}}, SpecError, "maximum 8"),
    ({"docker_image": "b", "template_variables": {"gpus": "two"}}, SpecError, "type integer"),
    ({"job": "train", "queue_name": "cpu"}, InputError, "lr"),
    ({"job": "train", "queue_name": "cpu", "config": inputs(lr="high")}, InputError, "lr"),
    ({"job": "train", "queue_name": "cpu", "config": inputs(lr=2)}, InputError, "lr"),
    ({"job": "train", "queue_name": "cpu", "config": inputs(lr=0.1, epochs=1.5)}, InputError, "epochs"),
    ({"job": "train", "queue_name": "cpu", "config": inputs(lr=0.1, optimiser="rms")}, InputError, "optimiser"),
    ({"docker_image": "b", "priority": 0}, SpecError, "Invalid priority 0"),
    ({"docker_image": "b", "priority": 9}, SpecError, "Invalid priority 9"),
    ({"docker_image": "b", "priority": "urgent"}, SpecError, "Invalid priority 'urgent'"),
    ({"docker_image": "b", "config": {"overrides": {"args": "--x"}}}, SpecError, "override args must be a list"),
    ({"docker_image": "b", "config": "not json"}, SpecError, "must be a mapping"),
    ({"docker_image": "b", "config": inputs(x=math.nan)}, SpecError, "run_config.x is nan"),
    ({"docker_image": "b", "config": inputs(x="a\0b")}, SpecError, "NUL"),
    ({"docker_image": "b", "config": inputs(x="\ud800")}, SpecError, "run_config.x holds half of a character"),
    ({"docker_image": "b", "template_variables": {"\ud800": 1}}, SpecError, "a name in template_variables holds half"),
    ({"docker_image": "b", "config": inputs(x=object())}, SpecError, "run_config.x is of the type 'object'"),
    # names
    ({"docker_image": "b", "name": "x" * 300}, SpecError, r"^Invalid run name 'x{40}' \(300 characters\)"),
    ({"docker_image": "b", "queue_name": "///"}, InvalidNameError, "For example 'my-queue'"),
    ({"docker_image": "b", "entity": "a/b"}, InvalidNameError, "entity"),
    ({"docker_image": "b", "project": "a..b"}, InvalidNameError, "project"),
    ({"docker_image": "b", "run_id": "x" * 300}, InvalidNameError, "run_id"),
    ({"docker_image": "b", "author": "a\nb"}, InvalidNameError, "author"),
    ({"docker_image": "b", "name": "a\x07b"}, SpecError, "run name"),
    # what the resource cannot run, or the queue does not let submitters set
    ({"job": "box", "queue_name": "cpu"}, SpecError, "cannot run on the resource 'local-process'"),
    ({"docker_image": "b", "queue_name": "cpu"}, SpecError, "cannot run on the resource 'local-process'"),
    ({"docker_image": "b", "resource_args": {"local-container": {"privileged": True}}}, UnsafeSpecError, "privileged"),
    ({"docker_image": "b", "resource_args": {"local-container": {"gpus": 4}}}, UnsafeSpecError, "gpus"),
]


@pytest.mark.parametrize(("given", "error", "words"), REFUSED)
def test_bad_call_is_refused_with_one_clear_error_and_nothing_is_queued(
    job_api: InMemoryApi, given: dict[str, Any], error: type[LaunchError], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        launch_add(**{"queue_name": "gpu", **given})
    assert "\n" not in str(raised.value)
    assert items(job_api) == []
    assert sorted(queue.name for queue in job_api.run_queues()) == ["cpu", "gpu"]


#: What can be said in a launch config too.
REFUSED_IN_LISTS = [
    case for case in REFUSED if not ({"build"} & set(case[0]) or isinstance(case[0].get("config"), str))
]


@pytest.mark.parametrize(("given", "error", "words"), REFUSED_IN_LISTS)
def test_one_bad_spec_of_a_list_keeps_all_from_being_queued(
    job_api: InMemoryApi, given: dict[str, Any], error: type[LaunchError], words: str
) -> None:
    data = dict(given)
    queue = data.pop("queue_name", "gpu")
    overrides = data.pop("config", {})
    image = data.pop("docker_image", None)
    if "entry_point" in data:
        overrides = {**overrides, "overrides": {"entry_point": data.pop("entry_point")}}
    bad = {**overrides, **data, **({"docker": {"docker_image": image}} if image else {})}
    good = IMAGE if queue != "cpu" else {"job": "train", **inputs(lr=0.1)}
    with pytest.raises(error, match=words.removeprefix("^")) as caught:
        launch_add_many([good, bad, good], queue, api=job_api)
    assert str(caught.value).startswith("Spec 2 of 3: ") == (queue in ("gpu", "cpu"))
    assert items(job_api) == []


def test_job_without_a_command_is_refused_where_no_image_has_one(job_api: InMemoryApi, tmp_path: Path) -> None:
    code = tmp_path / "built"
    code.mkdir()
    (code / "Dockerfile").write_text('FROM python:3.11-slim\nCOPY . .\nENTRYPOINT ["python", "fit.py"]\n')
    (code / "fit.py").write_text("print('hello')\n")
    create_job(str(code), "code", name="built", dockerfile="Dockerfile", api=job_api)
    with pytest.raises(SpecError, match="A job on local-process must have an entry point"):
        launch_add(job="built", queue_name="cpu")
    assert items(job_api) == []

    launch_add(job="built", queue_name="cpu", entry_point=["python", "fit.py"])
    launch_add(job="built", queue_name="gpu")
    assert len(items(job_api)) == 2


def test_job_that_needs_conda_is_refused_where_it_runs_without_an_image(job_api: InMemoryApi, tmp_path: Path) -> None:
    (tmp_path / "environment.yml").write_text("dependencies: [python, cudatoolkit=11, pip: [six]]\n")
    (tmp_path / "main.py").touch()
    create_job(str(tmp_path), "code", name="conda", api=job_api)
    with pytest.raises(SourceError, match=r"environment.yml asks for conda's packages \(cudatoolkit\)"):
        launch_add(job="conda", queue_name="cpu")
    assert items(job_api) == []

    create_job(str(tmp_path), "code", name="pip", install=["six"], api=job_api)
    launch_add(job="pip", queue_name="cpu")
    launch_add(job="conda", queue_name="gpu")
    assert len(items(job_api)) == 2


def test_spec_made_as_an_object_is_checked_as_one_of_plain_data_is(job_api: InMemoryApi) -> None:
    spec = LaunchSpec(docker=DockerSource(docker_image="b"), overrides=Overrides(run_config={"seed": 2**64}))
    with pytest.raises(SpecError, match=r"overrides\.run_config\.seed is 18446744073709551616"):
        launch_add_many([spec], "gpu", api=job_api)
    assert items(job_api) == []


@pytest.mark.parametrize("name", sorted(signature(launch_add).parameters.keys() - {"project_queue"}))
def test_no_argument_of_launch_add_is_dropped_without_a_word(job_api: InMemoryApi, name: str) -> None:
    good: dict[str, Any] = {"job": "train", "config": inputs(lr=0.1), "queue_name": "gpu"}
    launch_add(**good)
    with pytest.raises((LaunchError, TypeError)):
        launch_add(**{**good, name: object()})
