"""The documentation site: it builds strictly, its reference is complete, and it quotes messages that there are."""

from __future__ import annotations

import ast
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from prefect_launch.cli.main import COMMANDS, load_command
from prefect_launch.settings.agent_config import VARIABLES, AgentConfig
from prefect_launch.spec.launch_spec import LaunchSpec
from prefect_launch.spec.option import fields_of

PROJECT = Path(__file__).resolve().parents[2]
DOCS = PROJECT / "docs"
OPEN = "…"
#: Variables that have a meaning of their own here, as the code writes their names.
VARIABLE = re.compile(r"(PREFECT_LAUNCH|LAUNCH|WANDB|RAY|SLURM|XDG|KUBECONFIG|DOCKER_(HOST|CONFIG))(_[A-Z]+)*")
#: Names that the code gives to programs that it starts itself, and reads from no one.
INNER = {"LAUNCH_FAILED", "LAUNCH_GIT_TOKEN", "LAUNCH_GIT_USERNAME", "RAY_JOB_STOP_SIGNAL", "RAY_JOB_STOP_WAIT_TIME_S"}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it: a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(PROJECT / "mkdocs.yml"), site_dir=str(folder)))
    return folder


def _text(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text()))


def test_reference_has_each_command_with_its_options(site: Path) -> None:
    shown = _text(site / "reference" / "commands.html")
    missing = []
    for path, command in _commands():
        section = shown.partition(f"$ prefect-launch {path} [")[2].partition("$ prefect-launch ")[0]
        missing += [
            (path, name)
            for each in command.params
            for name in each.opts[-1:]
            if each.param_type_name == "option" and not each.hidden and name not in section
        ]

    assert len(list(_commands())) > 30
    assert not missing
    assert "[cyan]" not in shown


def test_reference_has_each_setting_of_an_agent_with_its_meaning_and_variable(site: Path) -> None:
    shown = _text(site / "reference" / "agent-settings.html")
    settings = list(fields_of(AgentConfig))

    assert not [each.path for each in settings if each.path not in shown or not each.text]
    assert not [name for names in VARIABLES.values() for name in names if name not in shown]


def test_reference_has_each_field_of_a_launch_config(site: Path) -> None:
    shown = _text(site / "reference" / "launch-config.html")

    assert not [each.path for each in fields_of(LaunchSpec) if each.path not in shown or not each.text]


def test_reference_has_the_variables_of_the_code_and_no_others() -> None:
    about_jobs = (DOCS / "operations.md").read_text().partition("## What a job finds in its environment")[2]
    page = (DOCS / "reference" / "variables.md").read_text()
    named = set(re.findall(r"\b[A-Z_]+\b", page + about_jobs.partition("\n## ")[0]))
    of_code = {name for _, text in _texts() if VARIABLE.fullmatch(name := text)} - INNER

    assert not of_code - named
    assert not {name for name in re.findall(r"`([A-Z_]+)`", page) if VARIABLE.fullmatch(name)} - of_code


def test_messages_that_troubleshooting_quotes_are_those_of_the_code() -> None:
    rows = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    texts = "\n".join(text.replace("\n", " ") for _, text in _texts())

    gone = [row for row in rows if not re.search(".*".join(map(re.escape, row.split(OPEN))), texts)]

    assert len(rows) > 50
    assert not gone


def test_files_and_pictures_that_pages_link_are_in_the_repository_that_the_package_names() -> None:
    source = re.findall(r'^Source = "(.+)"$', (PROJECT / "pyproject.toml").read_text(), re.MULTILINE)[0]
    pages = [PROJECT / "README.md", PROJECT / "SECURITY.md", *DOCS.rglob("*.md")]
    linked = [
        (page.name, path)
        for page in pages
        for path in re.findall(rf"{re.escape(source)}/(?:blob|raw|tree)/main/([^)#\"]+)", page.read_text())
    ]

    assert ("README.md", "docs/images/agent.png") in linked
    assert not [(page, path) for page, path in linked if not (PROJECT / path).exists()]


def test_each_picture_is_shown_on_a_page() -> None:
    pages = "".join(page.read_text() for page in [PROJECT / "README.md", *DOCS.rglob("*.md")])

    assert not [one.name for one in (DOCS / "images").iterdir() if f"images/{one.name})" not in pages]


def _commands(prefix: str = "", within: Any = None) -> Iterator[tuple[str, Any]]:
    """Yield the commands, each with its words."""
    found = {name: load_command(name) for name in COMMANDS} if within is None else within.commands
    for name, command in found.items():
        if hasattr(command, "commands"):
            yield from _commands(f"{prefix}{name} ", command)
        else:
            yield f"{prefix}{name}", command


def _texts() -> Iterator[tuple[str, str]]:
    """Yield the texts of the code, with the sign for what is filled in, each with its module."""
    for path in sorted((PROJECT / "prefect_launch").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield (
                    path.name,
                    "".join(
                        getattr(part, "value", OPEN) if isinstance(part, ast.Constant) else OPEN for part in node.values
                    ),
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield path.name, node.value
