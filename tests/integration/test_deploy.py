"""A job as a deployment: people start it from the UI, by a schedule or by `prefect deployment run`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_launch.errors import InputError, NotFoundError, QueueError, SpecError
from prefect_launch.queues.deployment import deploy_job
from tests.support.live import Site, run_deployment
from tests.support.prefect_server import warm_prefect

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

    from tests.support.prefect_server import PrefectServerProcess

SCHEMA = {
    "type": "object",
    "properties": {
        "lr": {"type": "number", "minimum": 0, "maximum": 1},
        "epochs": {"type": "integer", "default": 3},
    },
    "required": ["lr"],
}
SHOW = 'echo "$LAUNCH_CONFIG"; echo "args: $@"'


@pytest.fixture
def site(prefect_server: PrefectServerProcess, tmp_path: Path, unique: str) -> Site:
    """A queue with a job that shows its inputs."""
    site = Site(prefect_server.api_url, tmp_path, unique)
    site.job(SHOW, schema=SCHEMA)
    return site


def deploy(site: Site, job: str | None = None, **options: Any) -> str:
    _, _, name = site.api.call(lambda session: deploy_job(session, job or site.name, site.name, **options))
    return f"launch/{name}"


def start(name: str, **parameters: Any) -> FlowRun:
    return run_deployment(name, parameters=parameters)


def test_run_of_the_deployment_is_an_item_with_the_forms_inputs(site: Site) -> None:
    flow_run = start(deploy(site), lr=0.5, launch={"name": "mine", "args": ["--fast"]})
    site.work_off()
    run = site.api.queued_run(flow_run.id)
    assert run.state == "completed", run.message
    log = site.log(run)
    assert '"lr": 0.5' in log or '"lr":0.5' in log
    assert '"epochs": 3' in log or '"epochs":3' in log
    assert "args: --fast" in log


def test_retries_of_the_form_are_the_items_rule(site: Site) -> None:
    site.job('echo "try $LAUNCH_ATTEMPT"; [ "$LAUNCH_ATTEMPT" = 2 ]', schema=SCHEMA)
    flow_run = start(deploy(site), lr=0.5, launch={"retries": {"max": 1, "on": ["failed"], "delay": 0}})
    site.work_off()
    run = site.api.queued_run(flow_run.id)
    assert run.state == "completed", run.message
    assert "try 2" in site.log(run)


def test_command_line_of_prefect_starts_it(site: Site) -> None:
    name = deploy(site)
    command = ["deployment", "run", name, "-p", "lr=0.25", "-p", "epochs=2"]
    done = warm_prefect().run(command, cwd=site.folder, environment=os.environ, seconds=120)
    assert done.returncode == 0, done.stderr
    site.work_off()
    (run,) = site.queue.items
    assert run.state == "completed", run.message
    assert "0.25" in site.log(run)


@pytest.mark.parametrize(
    "parameters", [{}, {"lr": "high"}, {"lr": 2}, {"lr": 0.1, "epochs": 1.5}, {"lr": 0.1, "launch": {"nam": "x"}}]
)
def test_wrong_inputs_are_refused_by_the_server_and_nothing_is_queued(site: Site, parameters: dict[str, Any]) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    name = deploy(site)
    with pytest.raises(PrefectHTTPStatusError, match=r"409|422"):
        start(name, **parameters)
    assert site.queue.items == []


def test_deployment_starts_the_version_that_it_was_made_of_until_it_is_deployed_again(site: Site) -> None:
    name = deploy(site)
    site.job("echo second", schema=SCHEMA)
    first = start(name, lr=0.1)
    assert deploy(site) == name
    second = start(name, lr=0.1)
    site.work_off()
    assert "args:" in site.log(site.api.queued_run(first.id))
    assert site.log(site.api.queued_run(second.id)) == "second"


def test_unknown_job_or_queue_is_refused(site: Site) -> None:
    with pytest.raises(NotFoundError):
        deploy(site, job="nobody")
    with pytest.raises(NotFoundError):
        site.api.call(lambda session: deploy_job(session, site.name, "no-such-queue"))


def test_name_of_a_queues_own_deployment_is_refused(site: Site) -> None:
    with pytest.raises(QueueError, match="is a queue's own"):
        deploy(site, name=f"queue-{site.name}")


def test_deployment_of_the_name_on_another_queue_is_refused(site: Site) -> None:
    deploy(site)
    site.api.create_run_queue(f"{site.name}-2", "local-process")
    with pytest.raises(QueueError, match="is on the queue"):
        site.api.call(lambda session: deploy_job(session, site.name, f"{site.name}-2"))


def test_job_with_an_input_called_launch_cannot_be_deployed(site: Site) -> None:
    site.job("true", schema={"type": "object", "properties": {"launch": {"type": "string"}}})
    with pytest.raises(InputError, match="Rename the input"):
        deploy(site)


def test_image_job_is_not_deployed_on_processes(site: Site) -> None:
    from prefect_launch import create_job

    create_job("busybox:1", "image", name=f"{site.name}-image", api=site.api)
    with pytest.raises(SpecError, match="cannot run on the resource"):
        deploy(site, job=f"{site.name}-image")
