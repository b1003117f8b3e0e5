"""Options of the resource `prefect`: what is refused, and what a worker is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch import explain_launch, launch_add
from prefect_launch.client.api import use_api
from prefect_launch.errors import LaunchError, NotFoundError, QueueError, SpecError
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.remote.prefect import options
from prefect_launch.runners.remote.prefect.command import child_command
from prefect_launch.runners.remote.prefect.runner import PrefectRunner
from prefect_launch.server.values import Pool, PriorityQueue
from prefect_launch.testing import InMemoryApi
from tests.unit.runners.prefect.world import POOL, PrefectWorld

CONTAINERS = {
    "job_configuration": {"image": "{{ image }}"},
    "variables": {"properties": {"image": {}, "cpu_limit": {}, "labels": {}, "name": {}, "env": {}}},
}


def pool_of(kind: str, template: dict[str, Any] | None = None) -> Pool:
    return Pool(id=uuid4(), name="elsewhere", type=kind, base_job_template=template or {})


def variables(world: PrefectWorld, pool: Pool, given: dict[str, Any], **changes: Any) -> dict[str, Any]:
    plan = world.plan("exit 0", options={"work-pool": "elsewhere", **given}, **changes)
    return options.job_variables(plan, options.read_target(plan.options), pool)


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"work_pol": "x"}, NotFoundError, "work-pool"),
        ({"work_pool": 3}, SpecError, "must be a text of one line"),
        ({"work_pool": ""}, SpecError, "must be a text of one line"),
        ({"work_pool": "x", "job_variables": "cpu=1"}, SpecError, "must be a mapping"),
        ({"work_pool": "x", "job_variables": {"command": "sh"}}, SpecError, "the command is prefect-launch's"),
    ],
)
def test_wrong_options_are_refused_with_the_rule(given: dict[str, Any], error: type[LaunchError], words: str) -> None:
    with pytest.raises(error, match=words):
        PrefectRunner.check_options(given)


def test_options_without_a_work_pool_are_refused() -> None:
    with pytest.raises(SpecError, match="names no work pool"):
        PrefectRunner.check_together({"env": {}})


def test_submitters_may_set_the_environment_alone() -> None:
    assert PrefectRunner.submitter_options == {"e", "env"}


def test_queue_of_prefect_launch_is_refused_as_a_pool() -> None:
    with pytest.raises(QueueError, match="is a queue of prefect-launch itself"):
        options.check_pool("elsewhere", pool_of("launch"))
    with pytest.raises(QueueError, match="There is no work pool 'elsewhere'"):
        options.check_pool("elsewhere", None)


def test_unknown_work_queue_is_refused_with_the_nearest_name() -> None:
    target = options.Target(pool="elsewhere", queue="nigt")
    with pytest.raises(NotFoundError, match="night"):
        options.check_work_queue(target, [PriorityQueue(id=uuid4(), name="night"), PriorityQueue(id=uuid4(), name="x")])


def test_unknown_job_variable_is_refused_with_the_nearest_name(world: PrefectWorld) -> None:
    with pytest.raises(NotFoundError, match="cpu_limit"):
        variables(world, pool_of("kubernetes", CONTAINERS), {"job-variables": {"cpu_limt": 2}})


def test_worker_is_told_the_image_and_whose_its_infrastructure_is(world: PrefectWorld) -> None:
    given = {"job-variables": {"cpu_limit": 2, "labels": {"team": "a"}}, "image": "own:1", "python": "/opt/python"}
    made = variables(world, pool_of("kubernetes", CONTAINERS), given)
    assert (made["image"], made["cpu_limit"]) == ("own:1", 2)
    assert made["labels"]["team"] == "a"
    assert made["name"].startswith(f"launch-{made['labels'][Labels.ITEM]}-")
    assert made["command"] == child_command("/opt/python")
    assert made["command"].startswith("/opt/python -u -c ")


def test_image_of_the_job_comes_before_that_of_the_queue(world: PrefectWorld) -> None:
    pool = pool_of("kubernetes", CONTAINERS)
    assert variables(world, pool, {"image": "queue:1"}, image="job:1")["image"] == "job:1"
    assert variables(world, pool, {}, image="job:1", resolved_image="job@sha256:1")["image"] == "job@sha256:1"


@pytest.mark.parametrize("pool", [pool_of("process"), pool_of("special", {"variables": {"properties": {"env": {}}}})])
def test_image_for_a_pool_that_runs_none_is_refused(world: PrefectWorld, pool: Pool) -> None:
    with pytest.raises(SpecError, match="names the image 'job:1', and the work pool 'elsewhere'"):
        variables(world, pool, {}, image="job:1")


def test_secret_of_a_job_variable_is_named_to_the_worker_and_nothing_else_is_filled_in(world: PrefectWorld) -> None:
    marks = {"a-mark": "registry"}
    made = variables(world, pool_of("process"), {"job-variables": {"env": {"KEY": "a-mark"}}}, secret_marks=marks)
    assert made["env"] == {"KEY": "{{ prefect.blocks.secret.registry }}"}
    with pytest.raises(SpecError, match="double braces"):
        variables(world, pool_of("process"), {"job-variables": {"env": {"KEY": "{{ prefect.blocks.secret.other }}"}}})


def test_command_is_short_and_holds_nothing_of_the_run() -> None:
    assert len(child_command()) < 4_000
    assert "{{" not in child_command()


def test_job_without_an_entry_point_is_refused(world: PrefectWorld) -> None:
    plan: RunPlan = world.plan("exit 0", command=())
    with pytest.raises(SpecError, match="must have an entry point"):
        world.runner().check(plan)


TEMPLATES = json.loads(Path(__file__).with_name("templates.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", sorted(TEMPLATES))
def test_each_type_of_worker_takes_what_it_is_told(world: PrefectWorld, kind: str) -> None:
    """The templates are those of the workers that Prefect 3.8 has, read from their packages."""
    template = TEMPLATES[kind]
    names = {"properties": {name: {} for name in template["variables"]}, "required": template["required"]}
    pool = pool_of(kind, {"variables": names})
    labels = {Labels.ITEM: "an-item", Labels.ATTEMPT: "1"}
    image = {} if kind == "process" else {"image": "train:1"}
    owners = {name: "x" for name in template["required"] if name != "image"}
    made = variables(world, pool, {**image, "job-variables": owners}, labels=labels)
    assert made.keys() <= set(template["variables"])
    assert (made["command"], made.get("image")) == (child_command(), image.get("image"))
    assert made["labels"] == labels
    # Azure's worker would put a program of Prefect's own images before the command.
    assert made.get("entrypoint", "") is (None if kind == "azure-container-instance" else "")


def test_job_variable_that_a_worker_needs_and_nobody_sets_is_named(world: PrefectWorld) -> None:
    template = TEMPLATES["vertex-ai"]
    names = {"properties": {name: {} for name in template["variables"]}, "required": template["required"]}
    with pytest.raises(QueueError, match=r"needs the job variable 'region'.*Set job_variables"):
        variables(world, pool_of("vertex-ai", {"variables": names}), {"image": "train:1"})
    names["properties"]["region"] = {"default": "europe-west4"}
    with pytest.raises(QueueError, match=r"needs the job variable 'image'.*Set image"):
        variables(world, pool_of("vertex-ai", {"variables": names}), {})


async def test_queue_of_a_work_pool_or_work_queue_that_is_not_there_is_refused(world: PrefectWorld) -> None:
    for given, words in (
        ({"work-pool": "no-such"}, "There is no work pool 'no-such'"),
        ({"work-pool": POOL, "work-queue": "defalt"}, "default"),
    ):
        with pytest.raises(LaunchError, match=words):
            await PrefectRunner.check_on_server(given, world.server)
    await PrefectRunner.check_on_server({"work-pool": POOL}, world.server)
    await PrefectRunner.check_on_server({}, world.server)


async def test_what_a_template_variable_or_a_macro_will_name_is_not_looked_up(world: PrefectWorld) -> None:
    later: list[dict[str, Any]] = [
        {"work-pool": "{{ pool }}"},
        {"work-pool": POOL, "work-queue": "${author}", "job-variables": "{{ variables }}"},
    ]
    for given in later:
        await PrefectRunner.check_on_server(given, world.server)


def test_job_variable_that_the_pool_does_not_have_is_refused_where_its_queue_is_made_and_where_its_item_is_queued() -> (
    None
):
    api = InMemoryApi()
    api.server.add_pool(POOL, "kubernetes", CONTAINERS)
    wrong = r"Unknown job variable 'cpu_limt' in the template of the work pool 'elsewhere'\. Did you mean 'cpu_limit'"
    owners = {"work_pool": POOL, "job_variables": {"cpu_limt": "{{ cpus }}"}}
    cpus = {"cpus": {"type": "string", "default": "1"}}
    with pytest.raises(NotFoundError, match=wrong):
        api.create_run_queue("q", "prefect", config=owners, template_variables=cpus)

    config = {"work_pool": POOL, "job_variables": {"cpu_limit": "{{ cpus }}"}}
    api.create_run_queue("q", "prefect", config=config, template_variables=cpus)
    api.create_run_queue("mine", "prefect", config={"work_pool": POOL}, submitter_options=["job_variables"])
    with use_api(api):
        asked = {"prefect": {"job_variables": {"cpu_limt": "2"}}}
        for queue_it in (launch_add, explain_launch):
            with pytest.raises(NotFoundError, match=wrong):
                queue_it(docker_image="train:1", queue_name="mine", resource_args=asked)
        asked["prefect"] = {"job_variables": {"cpu_limit": "2"}}
        assert launch_add(docker_image="train:1", queue_name="mine", resource_args=asked).queue_name == "mine"


async def test_diagnosis_names_a_job_variable_that_the_pool_has_no_more(world: PrefectWorld) -> None:
    world.server.add_pool(POOL, "kubernetes", CONTAINERS)
    found = (await world.runner().diagnose({"work-pool": POOL, "job-variables": {"cpu_limt": "1"}}))[-1]
    assert (found.is_ok, "Did you mean 'cpu_limit'" in found.detail) == (False, True)
