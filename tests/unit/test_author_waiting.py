"""Queues that limit what one author has waiting: what is too much is refused, and nothing of it is queued."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner

from prefect_launch import explain_launch, launch_add, launch_add_many
from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.core.states import ItemState
from prefect_launch.errors import QueueError
from prefect_launch.server.values import State
from prefect_launch.spec.item_parameters import author_of, options_of
from prefect_launch.testing import InMemoryApi
from tests.support.enqueueing import IMAGE, items, nobody

REFUSED = (
    r"ann has 2 items waiting on the queue 'gpu', and of one author at most 2 may wait there: nothing was queued\."
    r" Queue 1 item when others have started, cancel some that wait, or have the queue's owner raise the limit:"
    r" 'prefect-launch queue edit gpu --per-author-waiting N'\."
)


@pytest.fixture
def api() -> Iterator[InMemoryApi]:
    made = InMemoryApi(entity="acme", project="digits")
    made.create_run_queue("gpu", "local-container", per_author_waiting=2)
    made.create_run_queue("other", "local-container")
    with use_api(made):
        yield made


def add(queue: str = "gpu", **arguments: Any) -> Any:
    return launch_add(docker_image="busybox:1", queue_name=queue, **arguments)


def test_author_with_as_many_waiting_as_allowed_gets_no_further_one(api: InMemoryApi) -> None:
    first = add(author="ann")
    add(author="ann")
    for refused in (add, lambda **given: explain_launch(docker_image="busybox:1", queue_name="gpu", **given)):
        with pytest.raises(QueueError, match=REFUSED):
            refused(author="ann")
    add(author="bob")
    add("other", author="ann").move("other", priority="high")
    with pytest.raises(QueueError, match="ann has 2 items waiting"):
        add("other", author="ann").move("gpu")
    assert len([item for item in items(api) if item.work_pool_name == "gpu"]) == 3

    claimed = UUID(first.id)
    api.call(lambda session: session.server.propose(claimed, State.of(ItemState.CLAIMED)))
    add(author="ann")


def test_item_without_an_author_is_not_named_after_whoever_moves_it(
    api: InMemoryApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "bob")
    add()
    add()
    of_nobody = add("other")
    of_nobody.move("gpu")

    moved = of_nobody.item

    assert (author_of(moved), options_of(moved).get("author")) == ("", None)
    assert not [name for name in (*moved.tags, *moved.labels.values()) if "bob" in str(name)]


def test_batch_that_is_too_large_is_refused_whole(api: InMemoryApi) -> None:
    with pytest.raises(QueueError, match=r"ann has 0 items waiting .* Queue 3 items when others"):
        launch_add_many([{**IMAGE, "author": author} for author in ("bob", "ann", "ann", "ann")], "gpu", api=api)
    assert items(api) == []
    launch_add_many([{**IMAGE, "author": author} for author in ("bob", "ann", "ann")], "gpu", api=api)
    assert len(items(api)) == 3


def test_item_that_is_there_under_its_run_id_is_returned(api: InMemoryApi) -> None:
    first = add(author="ann", run_id="one")
    add(author="ann", run_id="two")
    assert add(author="ann", run_id="one").id == first.id
    many = [{**IMAGE, "author": "bob", "run_id": name} for name in ("three", "four")]
    assert [run.id for run in launch_add_many(many, "gpu", api=api)] == [
        run.id for run in launch_add_many(many, "gpu", api=api)
    ]


def test_item_without_an_author_is_that_of_whoever_calls(api: InMemoryApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ann")
    add()
    add()
    with pytest.raises(QueueError, match="ann has 2 items waiting"):
        add()
    monkeypatch.setenv("WANDB_USERNAME", "bob")
    add()
    add("other")
    assert [options_of(item).get("author") for item in items(api)] == [None, "bob", "ann", "ann"]


def test_items_without_an_author_have_one_share(api: InMemoryApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", nobody)
    add()
    add()
    with pytest.raises(QueueError, match="Items without an author have 2 items waiting"):
        add()
    add(author="ann")


def test_image_that_would_be_built_first_is_not_built(api: InMemoryApi, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print('hello')\n")
    from prefect_launch import create_job

    create_job(str(tmp_path), "code", name="train", entrypoint="python main.py", api=api)
    add(author="ann")
    add(author="ann")
    with pytest.raises(QueueError, match=REFUSED):
        launch_add(job="train", queue_name="gpu", author="ann", build=True, repository="registry:5000/team/train")


def test_add_names_the_author_and_is_refused_with_the_reason(api: InMemoryApi) -> None:
    arguments = ["add", "-d", "busybox:1", "-q", "gpu", "--author", "ann"]
    assert [CliRunner().invoke(app, arguments).exit_code for _ in range(2)] == [0, 0]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, QueueError)
    assert str(refused.exception).startswith("ann has 2 items waiting on the queue 'gpu'")
