"""What pip is told on a machine reaches the installing step of a build, and nothing else."""

from __future__ import annotations

import base64
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import docker
import pytest

from prefect_launch.builds.image_builder import ImageBuilder
from prefect_launch.builds.settings import BuilderSettings
from prefect_launch.errors import BuildError
from prefect_launch.runners.base import RunPlan
from prefect_launch.spec.code_options import BuildRequest

if TYPE_CHECKING:
    from tests.support.docker_engine import DockerEngine

pytestmark = pytest.mark.engine


@pytest.fixture
def client(engine: DockerEngine) -> Iterator[docker.APIClient]:
    client = docker.APIClient(base_url=engine.host, version="auto", timeout=120)
    yield client
    client.close()


class Index:
    """A package index on the loopback with one wheel in it, for those who know the password."""

    def __init__(self, name: str, password: str) -> None:
        self.served = 0
        wheel, file = make_wheel(name), f"{name}-1-py3-none-any.whl"
        pages = {f"/{name.replace('_', '-')}/": f'<a href="/{file}">{file}</a>'.encode(), f"/{file}": wheel}
        secret = "Basic " + base64.b64encode(f"me:{password}".encode()).decode()
        index = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                known = self.headers.get("Authorization") == secret
                page = pages.get(self.path) if known else None
                self.send_response(200 if page else 404 if known else 401)
                if not known:
                    self.send_header("WWW-Authenticate", "Basic")
                self.send_header("Content-Type", "text/html" if self.path.endswith("/") else "application/zip")
                self.send_header("Content-Length", str(len(page or b"")))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(page or b"")
                    index.served += self.path.endswith(".whl") and known

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def make_wheel(name: str) -> bytes:
    """Return a wheel with one module and nothing in it."""
    about, packed = f"{name}-1.dist-info", io.BytesIO()
    with zipfile.ZipFile(packed, "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{about}/RECORD", "")
    return packed.getvalue()


@pytest.mark.parametrize("backend", ["engine", "buildkit"])
async def test_no_layer_history_label_or_log_holds_what_pip_was_told(
    backend: str, tmp_path: Path, python_image: str, client: docker.APIClient
) -> None:
    password, name = uuid4().hex, f"mine_{uuid4().hex[:8]}"
    index = Index(name, password)
    plan = plan_of({"requirements.txt": f"{name}\n"}, tmp_path)
    settings = told(f"http://me:{password}@{index.address}", tmp_path, base_image=python_image, backend=backend)
    log: list[str] = []
    builder = ImageBuilder(settings, tmp_path / "home", "the test")
    try:
        image = str((await builder.ensure_image(plan, log.append)).image)
    finally:
        await builder.aclose()
        index.close()
    assert index.served >= 1
    assert password not in "".join(log)
    assert password not in json.dumps(client.history(image)) + json.dumps(client.inspect_image(image))
    assert not holds(client, image, password)
    assert holds(client, image, f"{name}-1.dist-info")
    left = [Path(volume["Mountpoint"], "index.env") for volume in client.volumes()["Volumes"] or ()]
    assert not [file for file in left if file.is_file() and password in file.read_text()]


@pytest.mark.parametrize("backend", ["engine", "buildkit"])
async def test_package_that_prints_what_pip_was_told_gets_it_neither_into_the_log_nor_into_the_message(
    backend: str, tmp_path: Path, python_image: str
) -> None:
    password, log = uuid4().hex, list[str]()
    files = {
        "requirements.txt": "./leaky\n",
        "leaky/pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "leak"\nbackend-path = ["."]\n',
        "leaky/leak.py": "import os, sys; sys.exit('was told: ' + os.environ['PIP_INDEX_URL'])\n",
    }
    settings = told(f"http://me:{password}@127.0.0.1:9", tmp_path, base_image=python_image, backend=backend)
    builder = ImageBuilder(settings, tmp_path / "home", "the test")
    with pytest.raises(BuildError, match=r"was told: http://me:\*{8}@") as caught:
        await builder.ensure_image(plan_of(files, tmp_path), log.append)
    await builder.aclose()
    assert password not in str(caught.value)
    assert password not in "".join(log)


def plan_of(files: dict[str, str], folder: Path) -> RunPlan:
    """Lay code out, and return the plan of a run whose image is to be built of it."""
    for name, text in files.items():
        path = folder / "code" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    request = BuildRequest(entry_point=("python", "main.py"), python_version="3.11")
    return RunPlan(
        item_id=str(uuid4()), run_id="secrets", run_dir=folder, code_dir=folder / "code", build_request=request
    )


def told(index: str, folder: Path, **settings: str) -> BuilderSettings:
    """Return settings of a builder whose pip is told an index."""
    file = folder / "pip.conf"
    file.write_text(f"[global]\nindex-url = {index}\n")
    return BuilderSettings.model_validate({**settings, "network": "host", "pip_config": str(file)})


def holds(client: docker.APIClient, image: str, text: str) -> bool:
    """Whether a text is anywhere in an image: in its layers, as they are, or in what is said about them."""
    wanted, before = text.encode(), b""
    for chunk in client.get_image(image):
        if wanted in before + chunk:
            return True
        before = chunk[-len(wanted) :]
    return False
