"""Reference pages of the documentation site, made from the code when the site is built: a hook of MkDocs.

Each page has a template in `docs/reference/`, whose line `<!-- generated -->` is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Final

import typer
from typer.cli import get_docs_for_click

from prefect_launch.cli.main import COMMANDS, PROGRAM, app, load_command
from prefect_launch.cli.options import CONTEXT
from prefect_launch.core.units import format_size
from prefect_launch.settings.agent_config import VARIABLES, AgentConfig
from prefect_launch.sources.remote import GitSettings
from prefect_launch.spec.launch_spec import LaunchSpec
from prefect_launch.spec.option import SpecField, fields_of

_MARK: Final = "<!-- generated -->"
_EXAMPLES: Final = re.compile(r"^\[bold\]Examples\[/bold\]\n((?: .*\n)+)", re.MULTILINE)
#: A line of an argument or an option: its names are code, what follows is text.
_TEXT: Final = re.compile(r"^(\* `[^`]+`)(.*)$", re.MULTILINE)
#: Typer's list of a group's commands, with a cut help of each; their sections follow.
_LIST: Final = re.compile(r"^\*\*Commands\*\*:\n\n(\* .*\n)+\n", re.MULTILINE)
_SIZE: Final = 1024**2


def commands() -> str:
    """Return the help of every command."""
    root: Any = typer.main.get_command(app)
    context = root.context_class(root, **CONTEXT)
    text = "".join(
        get_docs_for_click(obj=load_command(name), ctx=context, name=name, call_prefix=PROGRAM, indent=1)
        for name in COMMANDS
    )
    text = _TEXT.sub(lambda found: found[1] + _plain(found[2]), _LIST.sub("", text))
    return _EXAMPLES.sub(lambda found: f"**Examples**:\n\n```console\n{_as_lines(found[1])}```\n", text)


def agent_settings() -> str:
    """Return the table of an agent's settings."""
    defaults = AgentConfig(git=GitSettings())
    rows = ((f"`{each.path}`", _meaning(each), _default(each, defaults)) for each in fields_of(AgentConfig))
    return _table(("Setting", "Meaning", "Default"), rows)


def launch_config() -> str:
    """Return the table of the fields of a launch config."""
    rows = (
        (
            f"`{each.path}`",
            each.text,
            ", ".join(f"`{flag}`" for flag in each.option.flags),
            "yes" if each.option.form else "",
            "yes" if each.option.in_secure_mode else "",
        )
        for each in fields_of(LaunchSpec)
    )
    return _table(("Field", "Meaning", "Options of `add` and `run`", "In forms", "In secure mode"), rows)


PAGES: Final[dict[str, Callable[[], str]]] = {
    "reference/commands.md": commands,
    "reference/agent-settings.md": agent_settings,
    "reference/launch-config.md": launch_config,
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Put what is generated into a page, when MkDocs has read it."""
    make = PAGES.get(page.file.src_uri)
    return markdown if make is None else markdown.replace(_MARK, make())


def _as_lines(examples: str) -> str:
    return "".join(f"$ {re.sub(r'^  .cyan.|./cyan.$', '', line)}\n" for line in examples.splitlines())


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = tuple(head)
    lines = [head, ["---"] * len(head), *([_plain(cell).replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Return a text in which Markdown and HTML see no signs of their own, but for code."""
    parts = text.split("`")
    parts[::2] = [part.replace("*", "\\*").replace("<", "&lt;").replace("_", "\\_") for part in parts[::2]]
    return "`".join(parts)


def _meaning(each: SpecField) -> str:
    names = " or ".join(f"`{name}`" for name in VARIABLES.get(each.path, ()))
    return f"{each.text} Variable: {names}." if names else each.text


def _default(each: SpecField, defaults: AgentConfig) -> str:
    """Return a setting's default; nothing where the machine decides it, or there is none."""
    value = attrgetter(each.path)(defaults)
    if each.info.default_factory is not None or value is None or value in ((), {}):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, int | float):
        return f"`{format_size(int(value)) if value >= _SIZE else f'{value:g}'}`"
    return f"`{value}`"
