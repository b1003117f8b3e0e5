"""What the tests of builds share: a queue of containers, and agents that build on the tests' Python image."""

from __future__ import annotations

from typing import Any

from prefect_launch import LaunchAgent, create_job
from prefect_launch.client.queued_run import QueuedRun
from tests.support.images import PYTHON_IMAGE
from tests.support.live import Site


class BuildSite(Site):
    """A queue of containers of a test's own, and jobs of code that no other test has."""

    def code_job(self, files: dict[str, str], **more: Any) -> str:
        """Make a code job of some files; return its name. No image of it is there yet."""
        folder = self.folder / "code" / self.name
        for name, text in {**files, "unique.txt": self.name}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        create_job(str(folder), "code", name=self.name, api=self.api, **{"entrypoint": "python main.py", **more})
        return self.name

    def agent(self, name: str = "box", **config: Any) -> LaunchAgent:
        """Make an agent that builds on the tests' Python image."""
        builder = {"base_image": PYTHON_IMAGE, **config.pop("builder", {})}
        return super().agent(name, builder=builder, **config)

    def built_here(self, runs: list[QueuedRun]) -> int:
        """How many of these items had the image built for themselves, and did not wait for another's build."""
        logs = [self.notes(run) for run in runs]
        return sum("Building prefect-launch/built:" in log and "builds this image already" not in log for log in logs)
