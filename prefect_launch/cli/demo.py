"""`prefect-launch demo`: a Prefect server of its own, three training runs or a sweep on a queue, an agent, and a table.

It needs only this package with its examples, and writes nothing outside its folder: the server, its database and the
environment of the runs stay there, so that a second demo starts in seconds. Prefect is imported only after the
settings that lead it to the demo's server are made.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple
from uuid import UUID

import typer

from prefect_launch.cli.options import single
from prefect_launch.core.file_lock import locked_if_free
from prefect_launch.core.subprocesses import ending_with_us
from prefect_launch.core.terminal import unguarded_stdout
from prefect_launch.errors import ExecutionError, InfrastructureError, InternalError, NotFoundError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from prefect_launch.client.api import Api
    from prefect_launch.client.queued_run import QueuedRun
    from prefect_launch.queues.session import Session
    from prefect_launch.server.values import Item

QUEUE: Final = "demo"
AGENT: Final[Mapping[str, Any]] = {"name": "demo", "queues": [QUEUE], "max_jobs": 2}
#: Three networks, from one that is too small to one that is large enough.
RUNS: Final[Mapping[str, Mapping[str, Any]]] = {
    "digits-small": {"hidden_units": 4, "epochs": 40},
    "digits-medium": {"hidden_units": 32, "activation": "tanh"},
    "digits-large": {"hidden_units": 256, "epochs": 40},
}


class Example(NamedTuple):
    """An example that comes with the package.

    Attributes:
        job: the job that is made of it.
        folder: its folder, in a checkout.
        schema: the class of its inputs, if it has one.
        description: of the job.
    """

    job: str
    folder: str
    schema: str | None
    description: str


TRAINING: Final = Example(
    "digits", "examples/digits", "inputs:Inputs", "Train a small neural network on hand-written digits."
)
SWEEP: Final = Example("digits-sweep", "examples/sweep", None, "Train a small network with a sweep's parameters.")
#: The UI's port unless another program listens there, so that its address can be bookmarked.
_PORT: Final = 4280
#: The first start makes the database, which takes half a minute on a slow machine.
_START_SECONDS: Final = 180.0
_STOP_SECONDS: Final = 20.0
_REFRESH_SECONDS: Final = 0.5
_CHECKOUT: Final = Path(__file__).resolve().parents[2]


app = single()


@app.command()
def demo(
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the server up until Ctrl-C, to look around in the UI.")
    ] = False,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Search for good parameters with a sweep of eight trials instead.")
    ] = False,
) -> None:
    """Run a demo: an embedded server, a real training job, three runs on a queue or a sweep, one agent."""
    from rich.console import Console

    if "prefect" in sys.modules:
        raise InternalError("The demo must be the first to import Prefect. Run it as 'prefect-launch demo'.")
    console = Console(highlight=False, file=unguarded_stdout())  # it draws its table over itself
    example = SWEEP if sweep else TRAINING
    folder, home = example_folder(example), demo_home()
    again = f"{sys.argv[0]} demo{' --sweep' if sweep else ''} --keep"
    with _only_one(home):
        first = "" if (home / "prefect.db").exists() else " (the first time: a minute)"
        console.print(f"Starting a Prefect server in {home} …{first}", soft_wrap=True)
        with _server(home) as wait_for_server:
            from prefect_launch.client.api import default_api  # Imports take as long as the server does to start.

            wait_for_server()
            api = default_api()
            job = _make_queue_and_job(console, api, example, folder)
            _write_agent_log(home / "agent.log")
            if sweep:
                pages = _sweep(api, folder / "sweep.yaml", job)
            else:
                pages = _deploy(api)
                asyncio.run(_train(console, api, home / "agent.log"))
            if keep:
                _stay(console, api, example, pages, home)
    if not keep:
        console.print(f"The server is stopped. To look around in its UI: [bold]{again}[/]", soft_wrap=True)


def demo_home() -> Path:
    """Return the demo's folder: `LAUNCH_DEMO_HOME`, else `.cache/demo` of a checkout, else one in the user's cache."""
    if named := os.environ.get("LAUNCH_DEMO_HOME"):
        return Path(named).absolute()
    if (_CHECKOUT / "pyproject.toml").is_file():
        return _CHECKOUT / ".cache" / "demo"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "prefect-launch" / "demo"


def example_folder(example: Example) -> Path:
    """Return the code of an example, in a checkout or where an installation has put it.

    Raises:
        NotFoundError: when it is in neither place.
    """
    files = metadata.files("prefect-launch") or ()
    installed = (Path(str(file.locate())) for file in files if example.folder in str(file))
    for main in (_CHECKOUT / example.folder / "train.py", *installed):
        if main.name == "train.py" and main.is_file():
            return main.resolve().parent
    raise NotFoundError(
        f"The example {example.folder} is missing. It comes with the package: install prefect-launch again."
    )


# --- the server ---


@contextmanager
def _only_one(home: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            is_ours = stack.enter_context(locked_if_free(home / "demo.lock"))
        except OSError as error:
            raise InfrastructureError(f"The demo's folder {home} cannot be used: {error.strerror}.") from None
        if not is_ours:
            raise InfrastructureError(f"A demo is running in {home} already. Stop it with Ctrl-C, or use its UI.")
        yield


@contextmanager
def _server(home: Path) -> Iterator[Callable[[], None]]:
    """Run a Prefect server on SQLite, which ends with this process; yield a function that waits until it answers."""
    url = f"http://127.0.0.1:{_free_port()}"
    own = {"PREFECT_HOME": str(home), "PREFECT_API_URL": f"{url}/api"}
    server = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")},
        **own,
        "PREFECT_UI_URL": url,
        "PREFECT_SERVER_UI_API_URL": f"{url}/api",  # Otherwise the UI asks port 4200.
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }
    os.environ.update(
        own, PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="false", PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL="CRITICAL"
    )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", url.split(":")[-1]]
    log = home / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ending_with_us(command, "TERM"),
            env=server,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the demo, which then stops the server in order.
        )
    try:
        yield lambda: _wait(f"{url}/api/health", process, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _PORT))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import httpx

    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if httpx.get(address, timeout=5, trust_env=False).status_code == 200:
                return
        time.sleep(0.1)
    last = " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
    raise InfrastructureError(f"The Prefect server does not answer. Its log is {log}; it ends with: {last}")


# --- what a user does ---


def _make_queue_and_job(console: Console, api: Api, example: Example, folder: Path) -> str:
    """Make the queue and the job; return the job's reference."""
    from prefect_launch.client.create_job import create_job
    from prefect_launch.core.states import StateType

    # One thread a run: two at a time do not fight over the cores.
    queue = api.upsert_run_queue(QUEUE, "local-process", config={"env": {"OMP_NUM_THREADS": "1"}})
    for left in api.items(queue=QUEUE, states=[StateType.SCHEDULED]):
        left.cancel()  # of a demo that was interrupted
    job = create_job(
        folder, "code", name=example.job, entrypoint="python train.py", schema=example.schema,
        description=example.description, api=api,
    )  # fmt: skip
    console.print(f"Server  {api.ui_url}\nQueue   {queue.name} (local-process)\nJob     {job.reference}")
    return job.reference


def _deploy(api: Api) -> Mapping[str, str]:
    """Give the job a form; return the pages that there are to see, each with what it is."""
    from prefect_launch.queues.deployment import deploy_job

    _, deployment, _ = api.call(lambda session: deploy_job(session, TRAINING.job, QUEUE))
    return {f"{api.ui_url}/deployments/deployment/{deployment}/run": "the job's form"}


def _write_agent_log(file: Path) -> None:
    handler = logging.FileHandler(file, mode="w")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s", "%Y-%m-%d %H:%M:%S%z"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("prefect_launch").setLevel(logging.INFO)


async def _train(console: Console, api: Api, log: Path) -> None:
    """Queue the runs, and show them while an agent works them off."""
    from prefect.logging.handlers import APILogHandler
    from rich.live import Live

    from prefect_launch.agent.entry.flow import launch_agent
    from prefect_launch.client.launch_add import alaunch_add
    from prefect_launch.core.states import StateType

    runs = [
        await alaunch_add(
            job=TRAINING.job, queue_name=QUEUE, name=name, config={"overrides": {"run_config": dict(inputs)}}
        )
        for name, inputs in RUNS.items()
    ]
    agent = asyncio.create_task(launch_agent(dict(AGENT), until_empty=True))
    try:
        with Live(console=console) as live:
            while True:
                await asyncio.wait({agent}, timeout=_REFRESH_SECONDS)
                ended = agent.done()
                rows = await api.acall(lambda session: _read_rows(session, runs))
                live.update(_table(rows))
                if ended:
                    break
        await agent
    finally:
        agent.cancel()
        await asyncio.wait({agent})
        # What Prefect still has to send goes now: at the exit its server is gone, and it would try for a minute.
        await APILogHandler.aflush()
    if not console.is_terminal:
        console.print()  # Elsewhere the table is printed once, without its line end.
    for item, _ in rows:
        if item.state_type is not StateType.COMPLETED:
            raise ExecutionError(f"{item.name} is {item.state_name}: {item.message} The agent's log is {log}.")
    best, accuracy = max(rows, key=lambda row: row[1])
    console.print(f"Best: [bold]{best.name}[/], with {accuracy:.2%} of the test images right.")


async def _read_rows(session: Session, runs: Sequence[QueuedRun]) -> list[tuple[Item, float]]:
    """Return the items of the runs, each with its accuracy; 0 before its end."""
    from prefect_launch.core.output_limits import OUTPUTS_FILE

    items = {item.id: item for item in await session.server.list_items(ids=[UUID(run.id) for run in runs])}
    rows = []
    for item in (items[UUID(run.id)] for run in runs):
        done = item.end_time is not None
        content = await session.jobs.read_output(str(item.id), item.last_attempt, OUTPUTS_FILE) if done else None
        rows.append((item, float(json.loads(content or b"{}").get("accuracy", 0.0))))
    return rows


def _table(rows: Sequence[tuple[Item, float]]) -> Table:
    from rich.table import Table

    drawn = Table("run", "inputs", "state")
    drawn.add_column("duration", justify="right")
    drawn.add_column("accuracy", justify="right")
    for (item, accuracy), inputs in zip(rows, RUNS.values(), strict=True):
        since = item.start_time and ((item.end_time or datetime.now(timezone.utc)) - item.start_time).total_seconds()
        drawn.add_row(
            item.name,
            "\n".join(f"{key} {value}" for key, value in inputs.items()),
            item.state_name,
            "" if since is None else f"{since:.1f} s",
            f"{accuracy:.2%}" if accuracy else "",
        )
    return drawn


# --- the sweep ---


def _sweep(api: Api, file: Path, job: str) -> Mapping[str, str]:
    """Run the sweep, and show its trials; return the pages that there are to see, each with what it is."""
    from prefect_launch.cli import sweep

    sweep_id, code = asyncio.run(_run_sweep(api, file, job))
    typer.echo()
    sweep.show(str(sweep_id))
    typer.echo()
    if code:
        raise typer.Exit(code)
    return {f"{api.ui_url}/runs/flow-run/{sweep_id}": "the sweep"}


async def _run_sweep(api: Api, file: Path, job: str) -> tuple[UUID, int]:
    """Run the sweep here, with an agent that works off its trials; return its id, and the exit code."""
    from prefect.logging.handlers import APILogHandler

    from prefect_launch.agent.agent import LaunchAgent
    from prefect_launch.cli.sweep import run_to_end
    from prefect_launch.sweeps.flow import begin_sweep
    from prefect_launch.sweeps.sweep_file import read_sweep_file

    sweep_id = await begin_sweep(api, {"config": read_sweep_file(file), "queue": QUEUE, "job": job})
    agent = LaunchAgent(api, dict(AGENT))
    working = asyncio.create_task(agent.loop())
    running = asyncio.create_task(run_to_end(api, sweep_id))
    try:
        await asyncio.wait({working, running}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            await working  # raises the reason why it cannot continue
        return sweep_id, await running
    finally:
        agent.stop()
        running.cancel()
        await asyncio.wait({working, running})
        await APILogHandler.aflush()  # as above


def _stay(console: Console, api: Api, example: Example, pages: Mapping[str, str], home: Path) -> None:
    from prefect_launch.agent.agent import LaunchAgent

    console.print(
        f"\nLook around:\n  {api.ui_url}/runs  every run, with its log and its outputs"
        f"\n  {api.ui_url}/work-pools/work-pool/{QUEUE}  the queue and its agent"
        + "".join(f"\n  {page}  {what}" for page, what in pages.items())
        + "\n\nThe command line, in another terminal:"
        f"\n  export PREFECT_API_URL={api.ui_url}/api PREFECT_HOME={home}"
        f"\n  {sys.argv[0]} add -j {example.job} -q {QUEUE} --set hidden_units=128"
        "\n\nThe agent runs what you queue. Ctrl-C ends it and the server.",
        soft_wrap=True,
    )
    with suppress(KeyboardInterrupt):
        asyncio.run(LaunchAgent(api, dict(AGENT)).loop())
