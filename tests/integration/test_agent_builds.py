"""Jobs of code that run in images: built once, from the queue to the end, on a real server and a real engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefect_launch import create_job
from tests.support.images import PYTHON_IMAGE
from tests.support.live import Site

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine
    from tests.support.prefect_server import PrefectServerProcess

pytestmark = pytest.mark.engine


class BuildSite(Site):
    """A queue of containers, and agents that build on the tests' Python image."""

    base_image = PYTHON_IMAGE

    def code_job(self, files: dict[str, str], **more: Any) -> str:
        """Make a code job of some files; return its name."""
        folder = self.folder / "code" / self.name
        for name, text in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        create_job(str(folder), "code", name=self.name, api=self.api, **{"entrypoint": "python main.py", **more})
        return self.name

    def agent(self, name: str = "box", **config: Any) -> Any:
        builder = {"base_image": self.base_image, **config.pop("builder", {})}
        return super().agent(name, builder=builder, **config)


@pytest.fixture
def site(
    prefect_server: PrefectServerProcess, engine: DockerEngine, python_image: str, tmp_path: Path, unique: str
) -> BuildSite:
    return BuildSite(prefect_server.api_url, tmp_path, unique, resource="local-container")


MAIN = """
import json, os, six
import prefect_launch.inputs
print("six", six.__version__, "as", os.getuid(), "in", os.getcwd())
open("scratch.txt", "w").write("the folder of the code can be written to")
with open(os.path.join(os.environ["LAUNCH_OUTPUT_DIR"], "outputs.json"), "w") as file:
    json.dump({"six": six.__version__}, file)
"""


def test_code_with_requirements_runs_in_an_image_that_is_built_once(site: BuildSite) -> None:
    site.code_job({"main.py": MAIN, "requirements.txt": "six==1.17.0\n"})
    (first,) = site.add()
    site.work_off()
    assert site.states(first) == ["Queued", "Pending", "Building", "Running", "Completed"], first.message
    assert "six 1.17.0 as 1000 in /workspace" in site.log(first)
    assert "Built prefect-launch/built:" in site.log(first)
    assert any("1.17.0" in str(artifact.data) for artifact in site.artifacts(first))
    (second,) = site.add()
    site.work_off()
    assert site.states(second) == ["Queued", "Pending", "Running", "Completed"], second.message
