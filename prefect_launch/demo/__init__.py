"""The demo: a Prefect server of its own, three runs of a real job through a queue and an agent, one table.

It needs nothing but this package, and touches nothing outside its folder: the server, its database and what it has
learnt stay there, so that a second demo starts in seconds. No Prefect is imported before its settings are made.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from prefect_launch.core.terminal import unguarded_stdout
from prefect_launch.demo.embedded import EmbeddedServer, only_one
from prefect_launch.demo.example import example_folder
from prefect_launch.errors import InternalError

if TYPE_CHECKING:
    from rich.console import Console

CHECKOUT: Final = Path(__file__).resolve().parents[2]


def run_demo(*, server: str | None = None, keep: bool = False, console: Console | None = None) -> None:
    """Train three networks on hand-written digits through a queue and an agent, and show what came of it.

    Args:
        server: address of a Prefect server's API to use, such as `http://127.0.0.1:4200/api`; by default one is
            started, on SQLite, and stopped at the end.
        keep: stay until Ctrl-C, with the server and the agent, so that one can look around in the UI.
        console: where it is shown; by default standard output.

    Raises:
        InfrastructureError: when the server does not start; names its log.
        ExecutionError: when a run did not complete.
        LaunchError: for all else that can go wrong; see the subclasses.
    """
    from rich.console import Console

    out = console or Console(highlight=False, file=unguarded_stdout())  # it draws its table over itself
    folder = example_folder()
    if server is not None:
        with _settings({"PREFECT_API_URL": server}):
            _show_runs(out, folder, keep=keep, home=None)
        return
    home = demo_home()
    with only_one(home), EmbeddedServer(home) as own:
        out.print(
            f"Starting a Prefect server in {_short(home)} …" + ("" if own.known else " (the first time: a minute)")
        )
        with _settings(own.client_settings()):
            _show_runs(out, folder, keep=keep, home=home, server=own)


def demo_home() -> Path:
    """Return the demo's folder: `LAUNCH_DEMO_HOME`, else `.cache/demo` of a checkout, else one in the user's cache."""
    if os.environ.get("LAUNCH_DEMO_HOME"):
        return Path(os.environ["LAUNCH_DEMO_HOME"]).absolute()
    if (CHECKOUT / "pyproject.toml").is_file():
        return CHECKOUT / ".cache" / "demo"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "prefect-launch" / "demo"


def _show_runs(
    console: Console, folder: Path, *, keep: bool, home: Path | None, server: EmbeddedServer | None = None
) -> None:
    # The imports take as long as the server does to start: both go on at once.
    from prefect_launch.demo.show import Show

    if server is not None:
        server.wait()
    Show(console, folder, home=home).run(keep=keep)


@contextmanager
def _settings(settings: Mapping[str, str]) -> Iterator[None]:
    """Lead Prefect to the demo's server.

    Raises:
        InternalError: when Prefect was imported before, and has read other settings.
    """
    if "prefect" in sys.modules and any(os.environ.get(name) != value for name, value in settings.items()):
        raise InternalError("The demo must be the first to import Prefect. Run it as 'prefect-launch demo'.")
    before = dict(os.environ)
    os.environ.update(settings)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _short(path: Path) -> str:
    """Return a path as people in this folder write it."""
    return os.path.relpath(path) if Path.cwd() in path.parents else str(path)
