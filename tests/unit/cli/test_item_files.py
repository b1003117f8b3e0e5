"""Files of an item, as the command line and `QueuedRun` list and fetch them."""

from __future__ import annotations

import json
import webbrowser
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from typer.testing import CliRunner, Result

from prefect_launch.cli.main import app
from prefect_launch.client.api import use_api
from prefect_launch.client.launch_add import launch_add_many
from prefect_launch.client.queued_run import QueuedRun
from prefect_launch.core.states import ItemState
from prefect_launch.errors import LaunchError, NotFoundError, SpecError
from prefect_launch.queues.session import Session
from prefect_launch.server.values import State
from prefect_launch.testing import InMemoryApi

FILES = {
    "checkpoints/best.pt": "best",
    "checkpoints/old/1.pt": "one",
    "job.log": "line\n",
    "model.pt": "model",
    "outputs.json": '{"accuracy": 0.9}',
}
Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def api() -> Iterator[InMemoryApi]:
    api = InMemoryApi()
    api.create_run_queue("gpu", "local-container")
    with use_api(api):
        yield api


@pytest.fixture
def command(api: InMemoryApi) -> Command:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})

    return run


@pytest.fixture
def waiting(api: InMemoryApi) -> QueuedRun:
    (run,) = launch_add_many([{"docker": {"docker_image": "busybox:1"}, "name": "My run"}], "gpu", api=api)
    return run


@pytest.fixture
def run(api: InMemoryApi, waiting: QueuedRun, tmp_path: Path) -> QueuedRun:
    """An item that has ended, with its files in the job store."""
    for name, text in FILES.items():
        (tmp_path / "outputs" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "outputs" / name).write_text(text)

    async def end(session: Session) -> None:
        for state in (ItemState.CLAIMED, ItemState.RUNNING, ItemState.COMPLETED):
            assert (await session.server.propose(UUID(waiting.id), State.of(state))).accepted
        await session.jobs.put_outputs(waiting.id, 1, tmp_path / "outputs")

    api.call(end)
    return waiting


def found(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_files_are_listed_with_their_sizes_and_the_results_apart(run: QueuedRun, command: Command) -> None:
    shown, values = command("item", "outputs", "My run").stdout.split("\n\n")
    assert [line.split() for line in shown.splitlines()] == [
        ["FILE", "SIZE"],
        *([name, str(len(text)), "B"] for name, text in FILES.items()),
    ]
    assert values.splitlines() == ["5 files, 34 B.", "outputs  accuracy: 0.9"]
    listed = json.loads(command("item", "outputs", run.id, "--json").stdout)
    assert listed["outputs"] == {"accuracy": 0.9}
    assert listed["files"] == [{"path": name, "size": len(text)} for name, text in FILES.items()]
    assert run.files() == {name: len(text) for name, text in FILES.items()}


def test_all_files_come_into_a_folder_of_the_item_s_name(run: QueuedRun, command: Command, here: Path) -> None:
    assert command("item", "download", "My run").stdout == "5 files, 34 B in the folder My-run.\n"
    assert found(here / "My-run") == FILES
    assert command("item", "download", "My run").stdout == "5 files, 34 B in the folder My-run.\n", "they are the same"


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("*.pt", ["checkpoints/best.pt", "checkpoints/old/1.pt", "model.pt"]),
        ("/*.pt", ["model.pt"]),
        ("checkpoints/**", ["checkpoints/best.pt", "checkpoints/old/1.pt"]),
        ("checkpoints/*.pt", ["checkpoints/best.pt"]),
        ("checkpoints", ["checkpoints/best.pt", "checkpoints/old/1.pt"]),
        ("**/1.pt", ["checkpoints/old/1.pt"]),
        ("model.pt", ["model.pt"]),
    ],
)
def test_pattern_chooses_files_as_gitignore_has_it(
    run: QueuedRun, command: Command, here: Path, pattern: str, meant: list[str]
) -> None:
    told = json.loads(command("item", "download", run.id, pattern, "-o", "a/b", "--json").stdout)

    assert told["files"] == [f"a/b/{name}" for name in meant]
    assert told["bytes"] == sum(len(FILES[name]) for name in meant)
    assert found(here / "a" / "b") == {name: FILES[name] for name in meant}
    assert run.download(pattern, "c") == [Path("c", name) for name in meant]


async def test_files_are_fetched_from_async_code_too(run: QueuedRun, tmp_path: Path) -> None:
    assert await run.adownload("model.pt", tmp_path) == [tmp_path / "model.pt"]


@pytest.mark.parametrize(("pattern", "near"), [("model.pth", "model.pt"), ("bets.pt", "checkpoints/best.pt")])
def test_pattern_that_no_file_matches_is_refused_with_the_nearest_name(
    run: QueuedRun, here: Path, pattern: str, near: str
) -> None:
    with pytest.raises(NotFoundError, match=rf"'{pattern}' of the item My run .* Did you mean '{near}'\? Known: check"):
        run.download(pattern)
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("pattern", ["", "# comment", "!model.pt"])
def test_pattern_that_can_match_nothing_is_refused(run: QueuedRun, pattern: str) -> None:
    with pytest.raises(SpecError, match="matches no file"):
        run.download(pattern)


@pytest.mark.parametrize("other", ["other", "MODEL"], ids=["of another size", "of the same size"])
def test_other_file_of_the_same_name_is_replaced_only_when_that_is_asked_for(
    run: QueuedRun, command: Command, here: Path, other: str
) -> None:
    (here / "model.pt").write_text(other)

    refused = command("item", "download", run.id, "*.pt", "-o", ".")
    assert isinstance(refused.exception, LaunchError)
    assert "The folder '.' has 1 other file of the same name already: model.pt." in str(refused.exception)
    assert found(here) == {"model.pt": other}

    assert command("item", "download", run.id, "*.pt", "-o", ".", "--overwrite").exit_code == 0
    assert found(here) == {name: text for name, text in FILES.items() if name.endswith(".pt")}


def test_no_file_is_written_outside_of_the_folder_through_a_link_in_it(
    run: QueuedRun, here: Path, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (here / "checkpoints").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine").write_text("mine")
    (here / "model.pt").symlink_to(tmp_path / "mine")

    with pytest.raises(LaunchError, match="leads out of the folder"):
        run.download("checkpoints", here, overwrite=True)
    run.download("model.pt", here, overwrite=True)

    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "mine").read_text() == "mine"
    assert (here / "model.pt").read_text() == "model"


def test_folder_that_cannot_be_made_is_told(run: QueuedRun, here: Path) -> None:
    (here / "taken").write_text("a file")

    with pytest.raises(LaunchError, match="'taken/deep' cannot be written to"):
        run.download(to="taken/deep")


def test_item_that_has_not_ended_has_no_files_yet(waiting: QueuedRun) -> None:
    with pytest.raises(NotFoundError, match="is Queued: its files are stored when it has ended"):
        waiting.files()
    with pytest.raises(NotFoundError, match="is Queued: its files are stored when it has ended"):
        waiting.download()


class Browser(webbrowser.GenericBrowser):
    """A browser of somebody's own."""

    def __init__(self, is_there: bool) -> None:
        super().__init__("mine")
        self.is_there = is_there
        self.opened: list[str] = []

    def open(self, url: str, new: int = 0, autoraise: bool = True) -> bool:
        self.opened.append(url)
        return self.is_there


@pytest.mark.parametrize("has_browser", [True, False])
def test_page_of_an_item_opens_in_a_browser_and_its_address_is_printed_where_there_is_none(
    waiting: QueuedRun, command: Command, monkeypatch: pytest.MonkeyPatch, has_browser: bool
) -> None:
    browser = Browser(has_browser)
    monkeypatch.setattr(webbrowser, "_tryorder", ["mine"])
    monkeypatch.setattr(webbrowser, "_browsers", {"mine": [None, browser]})

    done = command("item", "open", "My run")

    assert browser.opened == [waiting.url]
    assert done.stdout == ("" if has_browser else f"{waiting.url}\n")
    assert (done.exit_code, done.stderr) == (0, "" if has_browser else "There is no browser here. The page is:\n")
