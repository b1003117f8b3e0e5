"""What is imported, and when: libraries that few need are not in the way of all.

Each test asks a fresh interpreter, as this one has everything imported already.
"""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent

#: Docker's SDK with what it brings, and what builds images.
CONTAINERS = ("docker", "requests", "urllib3", "charset_normalizer", "prefect_launch.builds.image_builder")
#: The clients of the clouds.
CLOUDS = ("aiobotocore", "botocore", "boto3", "google.auth", "azure.identity")
#: The groups of the command line that `agent` is not.
OTHER_GROUPS = tuple(f"prefect_launch.cli.{name}" for name in ("queue", "job", "add", "item", "demo"))


def _imported(code: str, modules: tuple[str, ...]) -> list[str]:
    """Return which modules are imported once some code has run."""
    asked = f"\nimport sys\nprint(*[name for name in {modules!r} if name in sys.modules], file=sys.__stdout__)"
    done = subprocess.run([sys.executable, "-c", dedent(code) + asked], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()[-1].split()


def _program(*arguments: str) -> str:
    return f"""
        from prefect_launch.cli.main import run
        assert run({list(arguments)!r}) == 0
    """


def test_agent_of_a_process_queue_imports_neither_docker_nor_builds_nor_a_cloud() -> None:
    code = """
        import asyncio, tempfile
        from pathlib import Path

        from prefect_launch.agent import LaunchAgent
        from prefect_launch.agent.entry.start import Signals
        from prefect_launch.testing import InMemoryApi

        api = InMemoryApi()
        api.create_run_queue("box", "local-process")
        with tempfile.TemporaryDirectory() as home:
            agent = LaunchAgent(api, {"queues": ["box"], "home": Path(home)})
            asyncio.run(agent.loop(until_empty=True))
    """

    assert _imported(code, (*CONTAINERS, *CLOUDS)) == []


def test_agent_of_a_container_queue_imports_docker_and_no_builds() -> None:
    code = """
        from pathlib import Path

        from prefect_launch.runners.registry import make_runner

        make_runner("local-container", Path("/nowhere"))
    """

    imported = _imported(code, CONTAINERS)

    assert "docker" in imported
    assert "prefect_launch.builds.image_builder" not in imported


def test_help_of_the_program_imports_no_library_of_a_command() -> None:
    heavy = ("prefect", "pydantic", "httpx", "asyncio", *CONTAINERS)

    assert _imported(_program("--help"), heavy) == []


def test_command_imports_no_other_group_of_commands() -> None:
    assert _imported(_program("agent", "--help"), OTHER_GROUPS) == []
