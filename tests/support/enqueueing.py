"""What the tests of `launch_add` share: a server with two queues and two jobs, and short words."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from prefect_launch import create_job
from prefect_launch.server.values import Item
from prefect_launch.testing import InMemoryApi

SCHEMA = {
    "type": "object",
    "properties": {
        "lr": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "epochs": {"type": "integer", "minimum": 1, "default": 3},
        "optimiser": {"type": "string", "enum": ["sgd", "adam"], "default": "adam"},
    },
    "required": ["lr"],
    "additionalProperties": False,
}
GPUS = {"gpus": {"type": "integer", "minimum": 1, "maximum": 8, "default": 1}}
IMAGE = {"docker": {"docker_image": "registry:5000/team/busybox:1"}}


def make_api(folder: Path) -> InMemoryApi:
    """A server with a queue of containers, one of processes, and two jobs."""
    api = InMemoryApi(entity="acme", project="digits")
    options: dict[str, Any] = {
        "config": {"gpus": "{{ gpus }}"},
        "template_variables": GPUS,
        "submitter_secrets": ["my-token"],
    }
    api.create_run_queue("gpu", "local-container", **options)
    api.create_run_queue("cpu", "local-process")
    code = folder / "code"
    code.mkdir()
    (code / "main.py").write_text("print('hello')\n")
    (code / "other.py").write_text("print('other')\n")
    create_job(str(code), "code", name="train", entrypoint="python main.py", schema=SCHEMA, api=api)
    create_job("busybox:1", "image", name="box", api=api)
    return api


def items(api: InMemoryApi) -> list[Item]:
    """All items of the server."""
    return api.call(lambda session: session.server.list_items())


def inputs(**values: Any) -> dict[str, Any]:
    """A launch config with these inputs."""
    return {"overrides": {"run_config": values}}


def nobody() -> NoReturn:
    """In place of `getpass.getuser`: a machine that has no name for its user, as a container may."""
    raise KeyError("getpwuid(): uid not found")
