"""Each key that a spec, a job or a config accepts has an effect, or is refused: all of them are walked."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import prefect_launch
from prefect_launch import create_job, launch_add
from prefect_launch.client.build_first import _repository
from prefect_launch.client.create_job import JobRequest
from prefect_launch.client.item_check import check_item
from prefect_launch.direct.ending import retries_here
from prefect_launch.errors import LaunchError, SpecError
from prefect_launch.planning.plan import Request, local_config, preview_plan
from prefect_launch.planning.refused_fields import refuse_unread_at_queue
from prefect_launch.policy.template import QueueConfig
from prefect_launch.settings.agent_config import AgentConfig, MachineSettings
from prefect_launch.spec.launch_spec import LaunchSpec, parse_spec
from prefect_launch.spec.option import fields_of
from prefect_launch.testing import InMemoryApi

ITEM = "0198b2a4-0000-7000-8000-000000000001"
DIGEST = "sha256:" + "a" * 64
CODE = {"job": "train", "overrides": {"run_config": {"lr": 0.1}}}
IMAGE = {"docker": {"docker_image": "r.example/team/train:1"}}

#: By the dotted path of a field: the queue, what is asked for beside it, and a value.
SPEC: dict[str, tuple[str, dict[str, Any], Any]] = {
    "job": ("gpu", {}, "box"),
    "docker.docker_image": ("gpu", {}, "busybox:2"),
    "docker.user_id": ("gpu", CODE, 1234),
    "docker.pin": ("gpu", IMAGE, True),
    "docker.digest": ("gpu", IMAGE, DIGEST),
    "docker.resolved": ("gpu", {"docker": {**IMAGE["docker"], "digest": DIGEST}}, True),
    "image_uri": ("gpu", {}, "busybox:2"),
    "uri": ("cpu", {}, "nowhere"),
    "git.repo": ("cpu", CODE, "https://git.example/team/other"),
    "git.version": ("cpu", CODE, "v9"),
    "git.build_context": ("cpu", CODE, "inside"),
    "git.base_image": ("cpu", CODE, "team/base:1"),
    "git.install": ("cpu", CODE, ["-e ."]),
    "git.job_name": ("cpu", CODE, "other"),
    "entity": ("cpu", CODE, "other"),
    "project": ("cpu", CODE, "other"),
    "name": ("cpu", CODE, "mine"),
    "run_id": ("cpu", CODE, "mine"),
    "author": ("cpu", CODE, "ann"),
    "sweep_id": ("cpu", CODE, "s1"),
    "resource": ("cpu", CODE, "local-container"),
    "resource_args": ("cpu", CODE, {"local-process": {"nice": 3}}),
    "template_variables": ("gpu", CODE, {"gpus": 2}),
    "overrides.args": ("cpu", CODE, ["--more"]),
    "overrides.run_config": ("cpu", CODE, {"lr": 0.2}),
    "overrides.artifacts": ("cpu", CODE, {"data": "team/p/data:v0"}),
    "overrides.files": ("cpu", CODE, {"conf.json": {"a": 1}}),
    "overrides.entry_point": ("cpu", CODE, ["python", "other.py"]),
    "overrides.dockerfile": ("gpu", CODE, "Dockerfile.other"),
    "overrides.working_dir": ("cpu", CODE, "inside"),
    "python_version": ("cpu", CODE, "3.12"),
    "timeout": ("cpu", CODE, "2h"),
    "metric": ("cpu", CODE, {"name": "loss", "pattern": "loss: (.+)"}),
    "registry.uri": ("gpu", CODE, "r.example/team/built"),
    "builder": ("gpu", CODE, {"accelerator": {"base_image": "team/cuda:12"}}),
    "priority": ("gpu", CODE, "high"),
    "resumable": ("cpu", CODE, True),
    "after": ("cpu", CODE, [ITEM]),
    "retries": ("cpu", CODE, {"max": 1}),
}

#: The options of a job, and a value of each.
JOB: dict[str, Any] = {
    "path": None,
    "job_type": "image",
    "entity": "other",
    "project": "other",
    "name": "other",
    "description": "a text",
    "aliases": ["best"],
    "runtime": "3.12",
    "entrypoint": "python other.py",
    "git_hash": "main",
    "build_context": "inside",
    "dockerfile": "Dockerfile",
    "base_image": "team/base:1",
    "install": ["-e ."],
    "services": {"board": "always"},
    "input_schema": {"type": "object", "required": ["lr"]},
    "inputs_as": "args",
    "inputs_from": "argparse",
    "keep": ["*.pt"],
    "retries": {"max": 1},
}


def with_value(spec: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    head, _, rest = path.partition(".")
    return {**spec, head: with_value(spec.get(head, {}), rest, value) if rest else value}


def effect(api: InMemoryApi, data: dict[str, Any], queue: str) -> Any:
    """What an item of this spec would be on its queue, and what an agent would make of it; or why it is refused.

    The parameters that it carries do not count: they are what was asked for.
    """

    async def look(session: Any) -> Any:
        checked = await check_item(api, session, spec, queue)
        draft = checked.draft
        full = parse_spec({**draft.parameters, "template_variables": draft.job_variables})
        request = Request(spec=full, item_id=ITEM, queue=queue, config=checked.queue.config)
        plan = await preview_plan(request, MachineSettings(home=Path("home")), checked.job)
        return draft.name, draft.tags, draft.labels, draft.work_queue_name, plan.model_dump(mode="json")

    try:
        spec = parse_spec({"run_id": "r1", **data}).check_source()
        refuse_unread_at_queue(spec, build=True)
        seen = api.call(look)
    except LaunchError as error:
        return str(error)
    built = "" if not spec.registry.uri else _repository(spec, AgentConfig())
    return (*seen, built, retries_here(spec, None, followed=True))


def test_each_field_of_a_spec_is_known_to_this_test() -> None:
    assert set(SPEC) == {field.path for field in fields_of(LaunchSpec)}


@pytest.mark.parametrize("path", SPEC)
def test_field_of_a_spec_changes_what_is_run_or_is_refused(path: str, job_api: InMemoryApi) -> None:
    queue, beside, value = SPEC[path]
    if path == "docker.pin":
        job_api.registry.digests["r.example/team/train:1"] = DIGEST
    assert effect(job_api, with_value(beside, path, value), queue) != effect(job_api, beside, queue)


@pytest.mark.parametrize(
    ("queue", "given", "words"),
    [
        ("cpu", with_value(CODE, "overrides.dockerfile", "Dockerfile"), "runs the code without an image"),
        ("cpu", with_value(CODE, "docker.user_id", 7), "runs the code without an image"),
        ("cpu", with_value(CODE, "builder", SPEC["builder"][2]), "runs the code without an image"),
        ("gpu", with_value(IMAGE, "overrides.dockerfile", "Dockerfile"), "run as it is"),
        ("gpu", with_value(IMAGE, "python_version", "3.12"), "run as it is"),
        ("gpu", with_value(IMAGE, "git.version", "v2"), "is an image"),
        ("gpu", with_value(IMAGE, "git.base_image", "busybox"), "for the job that is made of a uri"),
        ("cpu", with_value(CODE, "git.build_context", "x"), "uri, and job='train' names what runs"),
        ("gpu", with_value(IMAGE, "image_uri", "another:1"), "name two images"),
        ("gpu", with_value(CODE, "docker.pin", True), "of an image that is named"),
        ("cpu", with_value(CODE, "registry.uri", "r.example/x"), "builder.destination of its own config"),
        ("cpu", with_value(CODE, "registry.type", "ecr"), "registry"),
        ("cpu", with_value(CODE, "additional_services", [{"config": {}}]), "nothing here starts additional services"),
        ("cpu", with_value(CODE, "resource_args", {"local-process": {"env": []}}), "env is an empty list"),
    ],
)
def test_what_nothing_would_read_is_refused_at_the_queue(
    queue: str, given: dict[str, Any], words: str, job_api: InMemoryApi
) -> None:
    with pytest.raises(LaunchError, match=words):
        launch_add(config=given, queue_name=queue)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (with_value(CODE, "priority", "high"), "priority .'high'. is for a queue"),
        (with_value(CODE, "template_variables", {"gpus": 2}), "template_variables .* is for a queue"),
        (with_value(CODE, "registry.uri", "r.example/x"), "without an image"),
    ],
)
def test_what_only_a_queue_reads_is_refused_of_a_run_here_and_now(
    given: dict[str, Any], words: str, job_api: InMemoryApi
) -> None:
    spec = parse_spec(given)
    job = job_api.call(lambda session: session.jobs.resolve("train"))
    request = Request(spec=spec, item_id=ITEM, config=local_config("local-process"))
    with pytest.raises(SpecError, match=words):
        asyncio.run(preview_plan(request, MachineSettings(home=Path("home")), job))


def test_project_queue_is_what_was_given(job_api: InMemoryApi) -> None:
    assert launch_add(docker_image="busybox", queue_name="gpu", project_queue="registry").project_queue == "registry"
    assert launch_add(docker_image="busybox", queue_name="gpu").project_queue is None


# --- jobs ---


def test_each_option_of_a_job_is_known_to_this_test() -> None:
    assert set(JOB) == set(JobRequest.model_fields)


@pytest.mark.parametrize("option", JOB)
def test_option_of_a_job_changes_the_job_or_is_refused(option: str, tmp_path: Path) -> None:
    code = tmp_path / "code"
    for name in ("main.py", "other.py", "Dockerfile", "inside/main.py"):
        (code / name).parent.mkdir(exist_ok=True, parents=True)
        (code / name).write_text("print()\n")
    other = tmp_path / "another"
    other.mkdir()
    (other / "main.py").write_text("print(1)\n")

    def made(**options: Any) -> Any:
        options = {"schema" if name == "input_schema" else name: value for name, value in options.items()}
        given: dict[str, Any] = {"path": str(code), "job_type": "code", "entrypoint": "python main.py", **options}
        try:
            job = create_job(**given, api=InMemoryApi(entity="acme", project="digits"))
        except LaunchError as error:
            return str(error)
        return job.path, job.description, job.aliases, job.document

    assert made(**{option: str(other) if option == "path" else JOB[option]}) != made()


# --- configs ---


def parts_of(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """A model, and those of its parts."""
    yield model
    for field in model.model_fields.values():
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from parts_of(inner)


def called(node: ast.expr) -> str:
    """What a value is called: `config` of `self._config`, `settings` of `settings.get(…)`."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return called(node.func.value)
    return (node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else "").lstrip("_")


def reads(tree: ast.AST) -> set[tuple[str, str]]:
    """Each attribute that is read, and what its owner is called."""
    return {
        (called(node.value), node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


@cache
def package() -> tuple[ast.Module, ...]:
    """The code of the product."""
    root = Path(prefect_launch.__file__).parent
    return tuple(ast.parse(path.read_text()) for path in root.rglob("*.py") if "testing" not in path.parts)


@cache
def read_of_configs() -> frozenset[str]:
    """What is read of anything that a config, or a part of one, is called."""
    return frozenset(attribute for tree in package() for owner, attribute in reads(tree) if owner in CALLED)


def read_by_itself(model: type[BaseModel]) -> set[str]:
    """What a model's own methods read, but for the one that only writes it down."""
    methods = [
        method
        for tree in package()
        for node in tree.body
        if isinstance(node, ast.ClassDef) and node.name == model.__name__
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name != "to_template"
    ]
    return {attribute for method in methods for owner, attribute in reads(method) if owner == "self"}


#: What a config, or a part of one, is called where it is read.
CALLED = {"config", "settings", "builder", "wandb", "git", "credential", "accelerator", "outputs"}


@pytest.mark.parametrize("model", sorted({*parts_of(AgentConfig), *parts_of(QueueConfig)}, key=repr))
def test_field_of_a_config_is_read(model: type[BaseModel]) -> None:
    assert not set(model.model_fields) - read_of_configs() - read_by_itself(model)


def test_agent_of_an_entity_takes_short_job_names_for_that_entitys(job_api: InMemoryApi) -> None:
    agent = prefect_launch.LaunchAgent(job_api, {"queues": ["cpu"], "entity": "other"})
    assert agent.api.entity == "other"
