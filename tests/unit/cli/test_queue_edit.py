"""`queue edit`: what is given is changed, all else stays; what is refused changes nothing."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.errors import LaunchError, NotFoundError
from prefect_launch.policy.template import QueueConfig
from prefect_launch.testing import InMemoryApi
from tests.support.sagemaker import QUEUE

Command = Callable[..., Result]
CREATED = (
    *(
        "-r",
        "local-container",
        "-c",
        '{"shm-size": "{{shm}}", "memory": "4g"}',
        "--concurrency",
        "2",
        "--no-priorities",
    ),
    *("--variables", '{"shm": {"type": "string", "default": "2g"}}', "--limit", "memory=16g", "--limit", "gpus=2"),
    *("--allow", "gpus", "--allow-secret", "token", "--pin", "--fail-impossible-after", "1h", "-e", "ann"),
    *("--per-author", "4", "--per-author-waiting", "20"),
)


@pytest.fixture
def command() -> Iterator[Command]:
    with use_api(InMemoryApi()):
        yield lambda *arguments: CliRunner().invoke(app, ["queue", *arguments], env={"COLUMNS": "80"})


def shown(command: Command) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(command("show", "box", "--json").output)
    return fields


@pytest.mark.parametrize(
    ("arguments", "changes"),
    [
        (("--concurrency", "5"), {"concurrency_limit": 5}),
        (("--concurrency", "none"), {"concurrency_limit": None}),
        (("--limit", "memory=32g", "--limit", "cpus=4"), {"limits": {"memory": "32g", "gpus": "2", "cpus": "4"}}),
        (("--limit", "memory=none"), {"limits": {"gpus": "2"}}),
        (("--allow", "memory"), {"submitter_options": ["gpus", "memory"]}),
        (("--allow", "none", "--allow", "memory"), {"submitter_options": ["memory"]}),
        (("--allow", "none"), {"submitter_options": []}),
        (("--allow-secret", "other"), {"submitter_secrets": ["token", "other"]}),
        (("--priorities",), {"prioritization_mode": "V0"}),
        (("--no-pin",), {"pin": False}),
        (("--fail-impossible-after", "none"), {"fail_impossible_after": None}),
        (("--per-author", "3"), {"per_author": 3}),
        (("--per-author", "none"), {"per_author": None}),
        (("--per-author-waiting", "50"), {"per_author_waiting": 50}),
        (("--per-author-waiting", "none"), {"per_author_waiting": None}),
        (("--priorities", "--preempt"), {"prioritization_mode": "V0", "preempt": True}),
        (("-e", "team"), {"entity": "team"}),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_only_what_is_given_is_changed(command: Command, arguments: tuple[str, ...], changes: dict[str, Any]) -> None:
    assert command("create", "box", *CREATED).exit_code == 0
    was = shown(command)

    edited = command("edit", "box", *arguments, "--json")

    assert edited.exit_code == 0, edited.exception
    now = shown(command)
    assert json.loads(edited.output) == now
    assert {name: now[name] for name in now if name != "config" and now[name] != was[name]} == changes
    assert now["config"]["resource_args"] == was["config"]["resource_args"]


def test_other_config_keeps_the_limits_and_the_pin_of_the_queue(command: Command) -> None:
    command("create", "box", *CREATED)

    command("edit", "box", "-c", '{"shm-size": "{{shm}}", "network": "host"}')

    now = shown(command)
    assert now["config"]["resource_args"] == {"local-container": {"shm-size": "{{shm}}", "network": "host"}}
    assert (now["limits"], now["pin"]) == ({"memory": "16g", "gpus": "2"}, True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((), LaunchError),
        (("--concurrency", "0"), LaunchError),
        (("--concurrency", "many"), LaunchError),
        (("--per-author", "0"), LaunchError),
        (("--per-author-waiting", "many"), LaunchError),
        (("--limit", "memory"), LaunchError),
        (("--allow", "memroy"), NotFoundError),
        (("-r", "local-process"), LaunchError),
        (("--variables", "{}"), LaunchError),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_edit_that_is_refused_changes_nothing(
    command: Command, arguments: tuple[str, ...], error: type[Exception]
) -> None:
    command("create", "box", *CREATED)
    was = shown(command)

    assert isinstance(command("edit", "box", *arguments).exception, error)

    assert shown(command) == was


def test_queue_that_is_not_there_is_not_edited_and_the_nearest_is_named(command: Command) -> None:
    command("create", "box", *CREATED)

    assert "Did you mean 'box'?" in str(command("edit", "bx", "--pin").exception)


def test_queue_that_allows_what_may_not_be_allowed_any_more_is_edited_by_the_command_that_the_refusal_names() -> None:
    api = InMemoryApi()
    api.create_run_queue("aws", "sagemaker", config=QUEUE)
    allowed = ("region", "tags", "env.SEED")
    of_old = QueueConfig(resource="sagemaker", resource_args=QUEUE, submitter_options=allowed).to_template()
    api.call(lambda session: session.server.update_pool("aws", base_job_template=of_old))
    with use_api(api):
        run = CliRunner().invoke
        refused = run(app, ["queue", "edit", "aws", "--concurrency", "4"])
        named = re.search(r"'prefect-launch (queue edit aws [^']*)'", str(refused.exception))
        assert named, refused.exception
        assert "'region' of sagemaker is not read" in str(refused.exception)

        assert run(app, shlex.split(named[1])).exit_code == 0
        assert run(app, ["queue", "edit", "aws", "--concurrency", "4"]).exit_code == 0

    queue = api.run_queue("aws")
    assert (queue.submitter_options, queue.concurrency_limit) == (("tags", "env.SEED"), 4)
