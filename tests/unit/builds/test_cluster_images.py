"""Images that a Kubernetes cluster builds, on a scripted one: what its Jobs say, and what becomes of them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import tarfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.builds.image_builder import ImageBuilder
from prefect_launch.errors import LaunchError
from prefect_launch.registries.base import Credentials
from prefect_launch.runners.base import RunPlan
from prefect_launch.settings.agent_config import parse_agent_config
from prefect_launch.spec.code_options import BuildRequest
from prefect_launch.testing.api import InMemoryRegistry
from tests.support.kubernetes_api import KubernetesApi, scripted_api
from tests.support.kubernetes_pods import JOBS, JobPods
from tests.support.kubernetes_store import Object

LIMIT_SECONDS = 60.0
DESTINATION = "registry.example.com/team/built"
BASE = "registry.example.com/base:1"
BASE_DIGEST = f"sha256:{'b' * 64}"
DIGEST = f"sha256:{'d' * 64}"
PASSWORD = "push-s3cret"
CONFIG_MAPS, SECRETS = ("api/v1", "configmaps"), ("api/v1", "secrets")


class Registry(InMemoryRegistry):
    """A registry that asks for a password."""

    async def credentials_for(self, reference: str) -> Credentials | None:
        return Credentials("pusher", PASSWORD)


class Bench:
    """A cluster, a registry, and agents that build there."""

    def __init__(self, api: KubernetesApi, folder: Path) -> None:
        self.api, self.folder = api, folder
        self.registry = Registry({BASE: BASE_DIGEST})
        self.api.write_kubeconfig(folder / "kubeconfig")
        self.made: list[ImageBuilder] = []

    def builder(self, holder: str = "agent one", **settings: Any) -> ImageBuilder:
        given = {"type": "kubernetes", "destination": DESTINATION, "pip_config": "none", **settings}
        config = parse_agent_config({"name": "box", "builder": given})
        self.made.append(ImageBuilder(config.builder, self.folder / holder, holder, self.registry))
        return self.made[-1]

    def plan(self, **files: str) -> RunPlan:
        item = str(uuid4())
        code = self.folder / item / "code"
        code.mkdir(parents=True)
        for name, text in {
            "Dockerfile": f"FROM {BASE}\nCOPY . .\nRUN make\n",
            "main.py": "print(1)\n",
            **files,
        }.items():
            (code / name).write_text(text)
        return RunPlan(
            item_id=item,
            run_id="r",
            run_dir=self.folder / item,
            code_dir=code,
            build_request=BuildRequest(dockerfile="Dockerfile", entry_point=("python", "main.py")),
        )

    @property
    def jobs(self) -> list[Object]:
        return self.api.store.list(JOBS, "default")

    async def job(self, *, but: str = "") -> JobPods:
        """Return the one Job of a build once it has been released; not that with a uid."""

        def released() -> JobPods | None:
            found = [JobPods(self.api, "default", one["metadata"]["name"]) for one in self.jobs]
            return next((one for one in found if not one.is_held() and one.job["metadata"]["uid"] != but), None)

        found: JobPods = await until(released)
        return found

    async def running(self, *lines: str, but: str = "") -> JobPods:
        """Let the pod of the Job run, and say something."""
        pods = await self.job(but=but)
        pod = pods.create()
        pods.run()
        self.api.log("default", pod, "build", *lines)
        return pods

    def end(self, pods: JobPods, code: int = 0, message: str = DIGEST, **more: Any) -> None:
        """Let the build end; one that succeeds has pushed its image."""
        if code == 0:
            (destination,) = [one for one in args_of(pods) if one.startswith("--destination=")]
            self.registry.digests[destination.partition("=")[2]] = DIGEST
        for pod in pods.pods:
            self.api.end_log("default", pod["metadata"]["name"], "build")
        pods.finish(code, message="" if code else message, **more)

    def waiters(self) -> list[str]:
        found = [one["metadata"].get("annotations", {}) for one in self.jobs]
        return sorted(who for one in found for key, who in one.items() if key.startswith("builds.prefect-launch/"))


def args_of(pods: JobPods) -> list[str]:
    args: list[str] = pods.job["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


async def until(look: Callable[[], Any]) -> Any:
    due = time.monotonic() + LIMIT_SECONDS
    while not (found := look()):
        assert time.monotonic() < due
        await asyncio.sleep(0.02)
    return found


@pytest.fixture
def api() -> Iterator[KubernetesApi]:
    """A scripted server."""
    with scripted_api() as api:
        yield api


@pytest.fixture
async def bench(api: KubernetesApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """Agents whose kubeconfig leads to the server, with no Docker Engine to ask."""
    bench = Bench(api, tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nobody.sock")
    yield bench
    for one in bench.made:
        await one.aclose()


async def test_image_is_built_by_a_job_and_pushed_and_nothing_is_left_of_it(bench: Bench) -> None:
    builder, plan, log = bench.builder(), bench.plan(), list[str]()
    assert await builder.find(plan) is None
    building = asyncio.create_task(builder.ensure_image(plan, log.append))
    pods = await bench.running("INFO[0001] RUN make", "made")
    assert pods.job["spec"]["template"]["spec"]["containers"][0]["image"].startswith(
        "ghcr.io/osscontainertools/kaniko:"
    )
    bench.end(pods)
    built = await asyncio.wait_for(building, LIMIT_SECONDS)
    assert built.image == f"{DESTINATION}@{DIGEST}"
    assert built.command == ("python", "main.py")
    assert "INFO[0001] RUN make\nmade\n" in "".join(log)
    assert f"Pushed {DESTINATION}@{DIGEST}." in "".join(log)
    await until(lambda: not bench.jobs)
    found = await builder.find(bench.plan())
    assert found is not None
    assert found.image == built.image
    assert bench.api.asked("POST .*/jobs") == 1


async def test_context_reaches_the_pod_in_a_config_map_that_goes_with_the_job(bench: Bench) -> None:
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running()
    (carried,) = bench.api.store.list(CONFIG_MAPS, "default")
    assert carried["metadata"]["ownerReferences"][0]["uid"] == pods.job["metadata"]["uid"]
    packed = base64.b64decode(carried["binaryData"]["context.tar.gz"])
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert archive.getnames() == ["Dockerfile", "main.py"]
    (volume,) = [one for one in pods.job["spec"]["template"]["spec"]["volumes"] if one["name"] == "launch-context"]
    assert volume["configMap"]["name"] == carried["metadata"]["name"]
    assert "--dockerfile=Dockerfile" in args_of(pods)
    bench.end(pods)
    await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_credentials_are_in_a_secret_and_in_no_manifest_log_or_message(bench: Bench) -> None:
    log: list[str] = []
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), log.append))
    pods = await bench.running()
    (secret,) = bench.api.store.list(SECRETS, "default")
    config = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))
    assert config["auths"]["registry.example.com"]["password"] == PASSWORD
    assert secret["metadata"]["ownerReferences"][0]["uid"] == pods.job["metadata"]["uid"]
    assert PASSWORD not in json.dumps(bench.jobs)
    bench.end(pods, 1)
    with pytest.raises(LaunchError) as raised:
        await asyncio.wait_for(building, LIMIT_SECONDS)
    assert PASSWORD not in "".join([str(raised.value), *log])
