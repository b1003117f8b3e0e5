"""`item exec` and `item shell`: what they refuse, and in which words."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from uuid import UUID

import pytest

from prefect_launch.cli.main import run as run_program
from prefect_launch.client.api import use_api
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.names import short_id
from prefect_launch.core.states import ItemState
from prefect_launch.queues.presence import Holder
from prefect_launch.queues.session import Session
from prefect_launch.server.values import State
from prefect_launch.testing import InMemoryApi

Refusal = Callable[..., str]


@pytest.fixture
def api() -> Iterator[InMemoryApi]:
    api = InMemoryApi()
    with use_api(api):
        yield api


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Refusal:
    """Run a command that is refused; return why."""

    def run(*arguments: str) -> str:
        assert run_program(["item", *arguments]) == 1
        return " ".join(capsys.readouterr().err.split())

    return run


def add(api: InMemoryApi, resource: str = "local-container") -> QueuedRun:
    api.create_run_queue("gpu", resource)
    (run,) = launch_add_many([{"docker": {"docker_image": "busybox:1"}, "name": "mine"}], "gpu", api=api)
    return run


def move(api: InMemoryApi, run: QueuedRun, *states: State, handle: str | None = None) -> None:
    async def call(session: Session) -> None:
        for state in states:
            assert (await session.server.propose(UUID(run.id), state)).accepted
        await session.server.record_infrastructure(UUID(run.id), handle)

    api.call(call)


def let_run(api: InMemoryApi, run: QueuedRun, host: str) -> None:
    claim = Holder(agent="box", instance="1", host=host).claimed_state()
    move(api, run, claim, State.of(ItemState.RUNNING), handle="job-1@claim")


def test_item_that_waits_is_refused_by_its_state(api: InMemoryApi, refusal: Refusal) -> None:
    run = add(api)

    said = refusal("exec", "mine", "--", "ls")

    assert f"Item mine ({short_id(run.id)}) is queued: no command can be run inside it before it runs." in said
    assert f"'prefect-launch item show {short_id(run.id)}' says what it waits for." in said


def test_item_that_runs_and_is_not_recorded_is_refused_by_that(api: InMemoryApi, refusal: Refusal) -> None:
    run = add(api)
    move(api, run, State.of(ItemState.CLAIMED), State.of(ItemState.RUNNING))

    assert "no command can be run inside it: what it runs in is not on record yet" in refusal("shell", "mine")


def test_item_that_has_ended_is_refused_by_its_state(api: InMemoryApi, refusal: Refusal) -> None:
    run = add(api)
    move(api, run, State.of(ItemState.CLAIMED), State.of(ItemState.RUNNING), State.of(ItemState.COMPLETED))

    assert "is completed: no command can be run inside it any more." in refusal("shell", "mine")


def test_item_on_another_machine_names_it_its_agent_and_what_to_type_there(api: InMemoryApi, refusal: Refusal) -> None:
    let_run(api, add(api), "gpu-box")

    said = refusal("exec", "mine", "--", "sh", "-c", "ls | wc")

    assert f"runs on gpu-box, under the agent box, and this is {socket.gethostname()}." in said
    assert said.endswith("(ssh gpu-box), and type: prefect-launch item exec mine -- sh -c 'ls | wc'")
    assert refusal("shell", "mine").endswith("type: prefect-launch item shell mine")


def test_item_in_a_cluster_is_not_refused_for_the_host_of_its_agent(api: InMemoryApi, refusal: Refusal) -> None:
    let_run(api, add(api, "ray"), "gpu-box")

    assert "inside a run on the resource ray: Ray's Jobs API" in refusal("exec", "mine", "--", "ls")


def test_item_that_no_agent_of_ours_has_claimed_is_refused(api: InMemoryApi, refusal: Refusal) -> None:
    run = add(api)
    move(api, run, State.of(ItemState.CLAIMED), State.of(ItemState.RUNNING), handle="somewhere")

    assert "is run by no agent" in refusal("exec", "mine", "--", "ls")


def test_command_that_is_left_out_or_stands_before_the_dashes_is_asked_for(api: InMemoryApi, refusal: Refusal) -> None:
    assert "Write it after '--': 'prefect-launch item exec mine -- nvidia-smi'" in refusal("exec", "mine")
    assert "Got unexpected extra argument (ls)" in refusal("exec", "mine", "ls")
