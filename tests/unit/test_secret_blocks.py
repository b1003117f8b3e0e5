"""Secrets that a queue or a submitter names: which are filled in where, and which are refused before one is read."""

from __future__ import annotations

import json
import re
from typing import Any
from uuid import UUID

import pytest

from prefect_launch import launch_add, launch_add_many
from prefect_launch.errors import LaunchError, QueueError, SpecError, UnsafeSpecError
from prefect_launch.planning.plan import Request, make_plan
from prefect_launch.policy.submitter_options import check_submitter_secrets, secrets_pattern
from prefect_launch.policy.template import QueueConfig
from prefect_launch.queues.deployment import deploy_job
from prefect_launch.queues.session import Session
from prefect_launch.runners.base import RunPlan
from prefect_launch.server.secrets import fill_secrets, reference_to, secret_names
from prefect_launch.server.values import ItemDraft
from prefect_launch.settings.agent_config import MachineSettings
from prefect_launch.spec.launch_spec import parse_spec
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import inputs, items

OURS, OTHERS = reference_to("team-token"), reference_to("git-token")


def env(value: Any) -> dict[str, Any]:
    return {"local-process": {"env": value}}


@pytest.fixture
def api(job_api: InMemoryApi) -> InMemoryApi:
    job_api.upsert_run_queue("cpu", "local-process", submitter_secrets=["team-token"])
    job_api.secrets.update({"team-token": "of the team", "git-token": "of the operator"})
    return job_api


# --- naming and filling ---


def test_secrets_are_named_in_texts_at_any_depth_each_once() -> None:
    assert secret_names({"a": ["x {{prefect.blocks.secret.one}}", OURS], "b": (OURS, 3)}) == ["one", "team-token"]
    assert secret_names({OURS: "a name is no value"}) == []


def test_what_a_secret_brings_in_is_not_filled_again() -> None:
    assert fill_secrets([OURS, {"x": OTHERS}], {"team-token": OTHERS}) == [OTHERS, {"x": OTHERS}]
    queue = QueueConfig(
        resource="local-process",
        resource_args={"env": {"A": OURS, "B": "{{ who }}"}},
        template_variables={"who": {"type": "string"}},
    )
    filled = queue.fill({"who": OURS}, {"team-token": "{{ who }}"})
    assert filled == {"env": {"A": "{{ who }}", "B": OURS}}


@pytest.mark.parametrize("allowed", [[], ["team-token"], ["team-token", "x"]])
def test_schemas_pattern_lets_through_what_names_no_other_secret(allowed: list[str]) -> None:
    found = re.compile(secrets_pattern(allowed))
    assert found.search("plain {{ text }}\nof two lines")
    assert not found.search(f"a\n{OTHERS}")
    assert bool(found.search(f"a {OURS}")) is bool(allowed)
    assert not found.search(f"{OURS} {OTHERS}")


# --- at the queue ---


@pytest.mark.parametrize("value", [{"T": OTHERS}, [f"T={OTHERS}"], f"T={OTHERS}", {"A": OURS, "T": f"a {OTHERS} b"}])
@pytest.mark.parametrize("name", ["env", "e", "--Env"])
def test_submitter_cannot_name_a_secret_that_the_queue_does_not_allow(api: InMemoryApi, name: str, value: Any) -> None:
    refused: dict[str, Any] = {"job": "train", "queue_name": "cpu", "config": inputs(lr=0.1)}
    with pytest.raises(UnsafeSpecError, match=r"names the secret 'git-token'.*lets them name team-token.*--allow-secr"):
        launch_add(**refused, resource_args={"local-process": {name: value}})
    with pytest.raises(UnsafeSpecError, match="git-token"):
        launch_add_many([{"job": "train", **inputs(lr=0.1), "resource_args": env(value)}], "cpu", api=api)
    assert items(api) == []


def test_secret_that_the_queue_allows_is_named_and_not_read_at_the_queue(api: InMemoryApi) -> None:
    api.secrets.clear()
    launch_add(job="train", queue_name="cpu", config=inputs(lr=0.1), resource_args=env({"T": OURS}))
    assert items(api)[0].parameters["resource_args"] == env({"T": OURS})


def test_submitters_secret_stands_in_env_alone() -> None:
    with pytest.raises(UnsafeSpecError, match=r"option 'volume' names the secret 'team-token'.*in env alone"):
        check_submitter_secrets({"volume": [OURS]}, resource="local-container", allowed=["team-token"])


def test_value_of_a_template_variable_names_no_secret(api: InMemoryApi) -> None:
    who = {"who": {"type": "string", "default": "all"}}
    api.create_run_queue("vars", "local-process", config={"env": {"WHO": "{{ who }}"}}, template_variables=who)
    with pytest.raises(UnsafeSpecError, match="Template variable 'who' names the secret 'git-token'"):
        launch_add(job="train", queue_name="vars", config=inputs(lr=0.1), template_variables={"who": OTHERS})


@pytest.mark.parametrize("schema", [{"default": OTHERS}, {"enum": ["a", OTHERS]}])
def test_queues_variables_name_no_secret(api: InMemoryApi, schema: dict[str, Any]) -> None:
    with pytest.raises(QueueError, match=r"names the secret 'git-token'.*in the queue's config"):
        api.create_run_queue("vars", "local-process", config={}, template_variables={"who": schema})


def test_queue_that_an_older_version_made_with_a_secret_as_a_default_says_so() -> None:
    variables = {"token": {"type": "string", "default": OTHERS}}
    old = QueueConfig(resource="local-process", resource_args={"env": {"T": "{{token}}"}}, template_variables=variables)
    assert old.fill({"token": "x"}) == {"env": {"T": "x"}}
    with pytest.raises(QueueError, match=r"variable 'token' names the secret 'git-token'.*in the queue's config"):
        old.fill({})


def test_config_of_a_queue_comes_back_with_the_secrets_that_it_names(api: InMemoryApi) -> None:
    config = {"env": {"A": f"x {OTHERS}", "B": "{{prefect.blocks.secret.b}}"}}
    queue = api.create_run_queue("own", "local-process", config=config)
    assert queue.default_resource_config["resource_args"]["local-process"] == {
        "env": {"A": f"x {OTHERS}", "B": reference_to("b")}
    }


def test_queue_tells_which_secrets_it_allows(api: InMemoryApi) -> None:
    assert api.run_queue("cpu").submitter_secrets == ("team-token",)
    api.upsert_run_queue("cpu", "local-process", submitter_secrets=["a", "a", "b"])
    assert api.run_queue("cpu").submitter_secrets == ("a", "b")
    with pytest.raises(QueueError, match="Invalid name 'A b' of a Secret block"):
        api.upsert_run_queue("cpu", "local-process", submitter_secrets=["A b"])


def test_servers_form_refuses_a_secret_that_the_queue_does_not_allow(api: InMemoryApi) -> None:
    _, deployment, _ = api.call(lambda session: deploy_job(session, "train", "cpu"))

    def run(resource_args: Any) -> None:
        parameters = {"lr": 0.1, "launch": {"resource_args": resource_args}}
        draft = ItemDraft(name="x", parameters=parameters, idempotency_key=json.dumps(parameters))
        api.call(lambda session: session.server.create_item(deployment, draft))

    for value in ({"T": OTHERS}, [f"T={OTHERS}"], f"T={OTHERS}", {"T": [{"x": OTHERS}]}):
        with pytest.raises(SpecError, match="The Prefect server refuses this"):
            run(env(value))
    run(env({"T": OURS}))
    run({"local-process": {"nice": 5, "env": ["A=1"]}})
    # The owner's change reaches the forms that are there.
    api.upsert_run_queue("cpu", "local-process", submitter_secrets=["git-token"])
    run(env({"T": OTHERS}))
    with pytest.raises(SpecError):
        run(env({"A": OURS}))


# --- on the agent ---


def planned(api: InMemoryApi, tmp_path: Any, config: QueueConfig, *, queue: str | None = "q", **spec: Any) -> RunPlan:
    """The plan of an item that came straight from the server."""
    request = Request(spec=parse_spec({"job": "train", **spec}), item_id=str(UUID(int=7)), queue=queue, config=config)

    async def plan(session: Session) -> RunPlan:
        return await make_plan(request, MachineSettings(home=tmp_path), session.jobs, session.read_secret)

    return api.call(plan)


def test_queues_config_names_any_secret_and_a_submitter_those_it_allows(api: InMemoryApi, tmp_path: Any) -> None:
    config = QueueConfig(
        resource="local-process", resource_args={"env": {"GIT": OTHERS}}, submitter_secrets=("team-token",)
    )
    plan = planned(api, tmp_path, config, resource_args=env({"T": f"<{OURS}>"}), **inputs(lr=0.1))
    assert plan.options["env"] == {"GIT": "of the operator", "T": "<of the team>"}


@pytest.mark.parametrize(
    "spec",
    [
        {"resource_args": env({"T": OTHERS})},
        {"resource_args": env([f"T={OURS}{OTHERS}"])},
        {"template_variables": {"who": OTHERS}},
    ],
)
def test_agent_refuses_a_submitters_secret_before_any_is_read(
    api: InMemoryApi, tmp_path: Any, spec: dict[str, Any]
) -> None:
    api.secrets.clear()  # to read one would be another error
    config = QueueConfig(
        resource="local-process",
        resource_args={"env": {"WHO": "{{ who }}", "GIT": OTHERS}},
        template_variables={"who": {"type": "string", "default": "all"}},
        submitter_secrets=("team-token",),
    )
    with pytest.raises(UnsafeSpecError, match="names the secret 'git-token'"):
        planned(api, tmp_path, config, **spec, **inputs(lr=0.1))


@pytest.mark.parametrize(
    "spec",
    [{"name": OTHERS}, {"overrides": {"run_config": {"lr": 0.1}, "args": [OTHERS]}}, {"author": "ann", "name": OTHERS}],
)
def test_nothing_else_that_a_submitter_writes_becomes_a_secret(
    api: InMemoryApi, tmp_path: Any, spec: dict[str, Any]
) -> None:
    config = QueueConfig(resource="local-process", resource_args={"env": {"NAME": "${run_name}-${author}"}})
    plan = planned(api, tmp_path, config, **{**inputs(lr=0.1), **spec})
    assert "of the operator" not in repr((plan.options, plan.env, plan.args))


def test_who_runs_something_here_and_now_names_any_secret_of_theirs(api: InMemoryApi, tmp_path: Any) -> None:
    config = QueueConfig(resource="local-process")
    plan = planned(api, tmp_path, config, queue=None, resource_args=env({"T": OTHERS}), **inputs(lr=0.1))
    assert plan.options["env"] == {"T": "of the operator"}


def test_secret_that_is_not_there_is_told_by_its_name(api: InMemoryApi, tmp_path: Any) -> None:
    config = QueueConfig(resource="local-process", resource_args={"env": {"A": reference_to("none")}})
    with pytest.raises(LaunchError, match="There is no Secret block 'none'"):
        planned(api, tmp_path, config, **inputs(lr=0.1))
