"""Images that a Kubernetes cluster builds, on a scripted one: what its Jobs say, and what becomes of them."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import random
import tarfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from prefect_launch.agent.check import check_agent
from prefect_launch.builds import cluster_images
from prefect_launch.builds.build_engine import PushRefusedError
from prefect_launch.builds.build_job import WAITERS, cut_context
from prefect_launch.builds.builder import ImageBuild
from prefect_launch.builds.context import BuildContext, Entry
from prefect_launch.builds.image_builder import ImageBuilder
from prefect_launch.errors import (
    AgentConfigError,
    BuildError,
    ImagePullError,
    InfrastructureError,
    LaunchError,
    RegistryError,
    SourceError,
)
from prefect_launch.registries.base import Credentials
from prefect_launch.runners.base import Finding, RunPlan
from prefect_launch.runners.remote.kubernetes.submission import INCOMPLETE
from prefect_launch.settings.agent_config import parse_agent_config
from prefect_launch.spec.code_options import BuildRequest
from prefect_launch.testing.api import InMemoryApi, InMemoryRegistry
from tests.support.kubernetes_api import KubernetesApi, scripted_api
from tests.support.kubernetes_pods import JOBS, PODS, JobPods
from tests.support.kubernetes_store import Object
from tests.support.waiting import until

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
        self.api.store.create(("api/v1", "namespaces"), "", {"kind": "Namespace", "metadata": {"name": "default"}})
        self.made: list[ImageBuilder] = []
        self.seen: list[Object] = []

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
        found = self.api.store.list(JOBS, "default")
        self.seen += found
        return found

    async def job(self, *, but: str = "") -> JobPods:
        """Return the one Job of a build once all is there that it needs; not that with a uid."""

        def whole() -> JobPods | None:
            found = [one["metadata"] for one in self.jobs if INCOMPLETE not in one["metadata"]["annotations"]]
            return next((JobPods(self.api, "default", one["name"]) for one in found if one["uid"] != but), None)

        found: JobPods = await until(whole)
        return found

    async def running(self, *lines: str, but: str = "") -> JobPods:
        """Let the pod of the Job run, and say something."""
        pods = await self.job(but=but)
        pod = pods.create()
        pods.run()
        self.say(pod, {"running": {}}, {"waiting": {"reason": "PodInitializing"}}, phase="Pending")
        self.api.log("default", pod, "build", *lines)
        return pods

    def say(self, pod: str, build: Object, push: Object, **more: Any) -> None:
        """Say how the container that builds is, and the one that pushes."""
        of = {"restartCount": 0, "image": "", "imageID": "", "ready": False}
        status = {
            "initContainerStatuses": [{**of, "name": "build", "state": build}],
            "containerStatuses": [{**of, "name": "push", "state": push}],
        }
        self.api.store.patch(PODS, "default", pod, {"status": {**status, **more}})

    def end(
        self, pods: JobPods, code: int = 0, message: str = DIGEST, *, reason: str = "", is_built: bool = False
    ) -> None:
        """Let the build end, or its push; one that succeeds has pushed its image."""
        failed = {"terminated": {"exitCode": code, "reason": reason or "Error"}}
        built = {"terminated": {"exitCode": 0, "reason": "Completed", "message": message}}
        done = {"terminated": {"exitCode": 0, "reason": "Completed"}}
        waits = {"waiting": {"reason": "PodInitializing"}}
        if code == 0:
            (destination,) = [one for one in args_of(pods) if one.startswith("--destination=")]
            self.push(destination.partition("=")[2], message.strip())
        for pod in pods.pods:
            name = pod["metadata"]["name"]
            self.api.end_log("default", name, "build")
            self.api.end_log("default", name, "push")
            build, push = (built, done) if not code else (built, failed) if is_built else (failed, waits)
            self.say(name, build, push, phase="Failed" if code else "Succeeded")
        if code:
            pods.fail("BackoffLimitExceeded", "Job has reached the specified backoff limit")
        else:
            pods.complete()

    def push(self, name: str, digest: str) -> None:
        """Have an image under its tag, and by its digest for ever."""
        self.registry.digests |= {name: digest, f"{DESTINATION}@{digest}": digest}

    def mark(self, pods: JobPods, waiter: str, holder: str | None) -> None:
        """Let somebody else wait for a build, or leave it."""
        change = {"metadata": {"annotations": {f"{WAITERS}{waiter}": holder}}}
        self.api.store.patch(JOBS, "default", pods.job["metadata"]["name"], change)

    def waiters(self) -> list[str]:
        found = [one["metadata"].get("annotations", {}) for one in self.jobs]
        return sorted(who for one in found for key, who in one.items() if key.startswith(WAITERS))


async def kill(building: asyncio.Task[Any], bench: Bench) -> None:
    """End a build as `kill -9` of its agent does: nothing that it still says reaches the cluster."""
    bench.api.answer("(PATCH|DELETE) .*/jobs/", 401, "Unauthorized", "Unauthorized", times=100)
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(building, LIMIT_SECONDS)
    bench.api.heal()


def args_of(pods: JobPods) -> list[str]:
    """Return what the container that pushes is told."""
    args: list[str] = pods.job["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


def building_of(pods: JobPods) -> Object:
    """Return the container that builds."""
    found: Object = pods.job["spec"]["template"]["spec"]["initContainers"][-1]
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
    assert "--dockerfile=Dockerfile" in building_of(pods)["args"]
    bench.end(pods)
    await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_credentials_are_in_a_secret_and_in_no_manifest_log_or_message(bench: Bench) -> None:
    log: list[str] = []
    auth = base64.b64encode(f"pusher:{PASSWORD}".encode()).decode()
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), log.append))
    pods = await bench.running("RUN cat config.json", f"password: {PASSWORD}", f"auth: {auth}")
    (secret,) = bench.api.store.list(SECRETS, "default")
    config = json.loads(base64.b64decode(secret["data"][".dockerconfigjson"]))
    assert config["auths"]["registry.example.com"]["password"] == PASSWORD
    assert secret["metadata"]["ownerReferences"][0]["uid"] == pods.job["metadata"]["uid"]
    assert PASSWORD not in json.dumps(bench.jobs)
    bench.end(pods, 1)
    with pytest.raises(LaunchError) as raised:
        await asyncio.wait_for(building, LIMIT_SECONDS)
    told = "".join([str(raised.value), *log])
    assert "auth: ********" in told
    assert PASSWORD not in told
    assert auth not in told


async def test_build_that_fails_at_once_is_told_and_not_made_again(bench: Bench) -> None:
    bench.api.hang("GET .*/pods")
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    bench.end(await bench.running("error building image: no such stage"), 1)
    bench.api.wake()
    with pytest.raises(BuildError, match="error building image: no such stage"):
        await asyncio.wait_for(building, LIMIT_SECONDS)
    assert len({one["metadata"]["uid"] for one in bench.seen}) == 1


async def test_image_that_two_agents_want_is_built_by_one_job_and_both_show_its_log(bench: Bench) -> None:
    logs: list[list[str]] = [[], []]
    first = asyncio.create_task(bench.builder("agent one").ensure_image(bench.plan(), logs[0].append))
    pods = await bench.running("INFO[0001] RUN make", "half")
    second = asyncio.create_task(bench.builder("agent two").ensure_image(bench.plan(), logs[1].append))
    await until(lambda: bench.waiters() == ["agent one", "agent two"])
    await until(lambda: "half" in "".join(logs[1]))
    bench.end(pods)
    images = {(await asyncio.wait_for(one, LIMIT_SECONDS)).image for one in (first, second)}
    assert images == {f"{DESTINATION}@{DIGEST}"}
    assert "agent one builds this image already; its log follows." in "".join(logs[1])
    assert len({one["metadata"]["uid"] for one in bench.seen}) == 1
    await until(lambda: not bench.jobs)


async def test_agent_that_was_killed_finds_its_build_again_and_shows_its_whole_log(bench: Bench) -> None:
    plan = bench.plan()
    killed = asyncio.create_task(bench.builder("agent one").ensure_image(plan, lambda text: None))
    pods = await bench.running("first")
    await until(lambda: bench.waiters() == ["agent one"])
    await kill(killed, bench)
    log: list[str] = []
    again = asyncio.create_task(bench.builder("agent one").ensure_image(plan, log.append))
    await until(lambda: "first" in "".join(log))
    bench.api.log("default", pods.pods[0]["metadata"]["name"], "build", "second")
    bench.end(pods)
    assert (await asyncio.wait_for(again, LIMIT_SECONDS)).image == f"{DESTINATION}@{DIGEST}"
    assert "first\nsecond\n" in "".join(log)
    assert len({one["metadata"]["uid"] for one in bench.seen}) == 1
    await until(lambda: not bench.jobs)


async def test_build_whose_agent_was_killed_while_it_was_made_is_completed_by_the_next(bench: Bench) -> None:
    plan = bench.plan()
    bench.api.hang("PATCH .*/jobs/")
    killed = asyncio.create_task(bench.builder().ensure_image(plan, lambda text: None))
    await until(lambda: bench.api.asked("PATCH .*/jobs/"))
    bench.api.answer("DELETE .*/jobs/", 401, "Unauthorized", "Unauthorized")
    killed.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(killed, LIMIT_SECONDS)
    bench.api.wake()
    assert INCOMPLETE in bench.jobs[0]["metadata"]["annotations"]
    again = asyncio.create_task(bench.builder().ensure_image(plan, lambda text: None))
    bench.end(await bench.running())
    assert (await asyncio.wait_for(again, LIMIT_SECONDS)).image == f"{DESTINATION}@{DIGEST}"
    await until(lambda: not bench.jobs)


async def test_build_whose_agent_dies_as_soon_as_it_is_made_has_its_deadline_and_goes_after_it(bench: Bench) -> None:
    bench.api.hang("PATCH .*/jobs/")
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    await until(lambda: bench.api.asked("PATCH .*/jobs/"))
    spec = bench.jobs[0]["spec"]
    assert not JobPods(bench.api, "default", bench.jobs[0]["metadata"]["name"]).is_held()  # Its deadline would not run.
    assert (spec["activeDeadlineSeconds"], spec["ttlSecondsAfterFinished"]) == (3600, 300)
    bench.api.wake()
    bench.end(await bench.running())
    await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_build_that_is_just_made_is_left_alone_by_an_agent_that_cannot_make_it(bench: Bench) -> None:
    bench.api.hang("PATCH .*/jobs/")
    first = asyncio.create_task(bench.builder("agent one").ensure_image(bench.plan(), lambda text: None))
    await until(lambda: bench.api.asked("PATCH .*/jobs/"))
    bench.api.answer("POST .*/jobs", 500, "InternalError", "etcdserver: no leader", times=3)
    with pytest.raises(InfrastructureError, match="no leader"):
        await bench.builder("agent two").ensure_image(bench.plan(), lambda text: None)
    bench.api.wake()
    bench.end(await bench.running())
    assert (await asyncio.wait_for(first, LIMIT_SECONDS)).image == f"{DESTINATION}@{DIGEST}"
    assert len({one["metadata"]["uid"] for one in bench.seen}) == 1


async def test_build_that_is_cancelled_while_its_job_is_made_leaves_nothing(bench: Bench) -> None:
    bench.api.hang("PATCH .*/jobs/")
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    await until(lambda: bench.api.asked("PATCH .*/jobs/"))
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(building, LIMIT_SECONDS)
    assert bench.jobs == []
    bench.api.wake()


async def test_build_that_runs_is_left_alone_by_an_agent_that_cannot_join_it(bench: Bench) -> None:
    first = asyncio.create_task(bench.builder("agent one").ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running()
    bench.api.answer("POST .*/jobs", 500, "InternalError", "etcdserver: no leader", times=3)
    with pytest.raises(InfrastructureError, match="no leader"):
        await bench.builder("agent two").ensure_image(bench.plan(), lambda text: None)
    bench.end(pods)
    assert (await asyncio.wait_for(first, LIMIT_SECONDS)).image == f"{DESTINATION}@{DIGEST}"
    assert len({one["metadata"]["uid"] for one in bench.seen}) == 1


async def test_build_that_is_cancelled_is_stopped_and_nothing_is_left_of_it(bench: Bench) -> None:
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    await bench.running("working")
    await until(lambda: bench.waiters() == ["agent one"])
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(building, LIMIT_SECONDS)
    assert bench.jobs == []


@pytest.mark.parametrize("step", ["POST .*/configmaps", "PATCH .*/jobs/"])
async def test_build_that_is_cancelled_as_its_job_is_made_leaves_nothing(bench: Bench, step: str) -> None:
    bench.api.hang(step)
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    await until(lambda: bench.api.asked(step) > 0)
    assert bench.jobs
    building.cancel()
    await asyncio.sleep(0)
    bench.api.wake()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(building, LIMIT_SECONDS)
    assert bench.jobs == []


async def test_build_that_somebody_else_waits_for_goes_on_when_one_item_is_cancelled(bench: Bench) -> None:
    first = asyncio.create_task(bench.builder("agent one").ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running()
    second = asyncio.create_task(bench.builder("agent two").ensure_image(bench.plan(), lambda text: None))
    await until(lambda: bench.waiters() == ["agent one", "agent two"])
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(first, LIMIT_SECONDS)
    assert bench.waiters() == ["agent two"]
    bench.end(pods)
    assert (await asyncio.wait_for(second, LIMIT_SECONDS)).image == f"{DESTINATION}@{DIGEST}"


async def test_build_that_ends_well_as_somebody_joins_it_is_not_made_again(bench: Bench) -> None:
    first = asyncio.create_task(bench.builder("agent one").ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running()
    await until(lambda: bench.waiters() == ["agent one"])
    await kill(first, bench)
    bench.api.hang("PATCH .*/jobs/")
    second = asyncio.create_task(bench.builder("agent two").ensure_image(bench.plan(), lambda text: None))
    patches = bench.api.asked("PATCH .*/jobs/")
    await until(lambda: bench.api.asked("PATCH .*/jobs/") > patches)
    bench.end(pods)
    bench.api.wake()
    assert (await asyncio.wait_for(second, LIMIT_SECONDS)).image == f"{DESTINATION}@{DIGEST}"
    assert bench.jobs == []
    assert len({one["metadata"]["uid"] for one in bench.seen}) == 1


async def test_build_whose_node_was_taken_away_begins_again(bench: Bench) -> None:
    log: list[str] = []
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), log.append))
    pods = await bench.running()
    gone = pods.job["metadata"]["uid"]
    pods.evict()
    pods.fail("BackoffLimitExceeded", "Job has reached the specified backoff limit")
    bench.end(await bench.running(but=gone))
    assert (await asyncio.wait_for(building, LIMIT_SECONDS)).image == f"{DESTINATION}@{DIGEST}"
    assert "The build was lost: Evicted: The node was low on resource: memory. It begins again." in "".join(log)


async def test_build_that_was_removed_by_hand_begins_again_and_not_for_ever(bench: Bench) -> None:
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    gone = ""
    for _ in range(3):
        pods = await bench.running(but=gone)
        gone = pods.job["metadata"]["uid"]
        bench.api.store.delete(JOBS, "default", pods.job["metadata"]["name"])
    with pytest.raises(InfrastructureError, match=r"was lost 3 times, last since (its Job is gone|somebody else)"):
        await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_build_that_fails_says_its_step_and_its_last_lines(bench: Bench) -> None:
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running(
        "\x1b[36mINFO\x1b[0m[0001] COPY . .",
        "\x1b[36mINFO\x1b[0m[0002] RUN make",
        "no rule to make target",
        "error building image: error building stage: failed to execute command: exit status 2",
    )
    bench.end(pods, 1)
    with pytest.raises(BuildError) as raised:
        await asyncio.wait_for(building, LIMIT_SECONDS)
    assert "the step 'RUN make' failed: error building image" in str(raised.value)
    assert "\n  no rule to make target" in str(raised.value)
    assert "Correct the Dockerfile" in str(raised.value)
    assert bench.jobs == []


async def test_build_whose_log_may_not_be_read_ends_as_its_job_does(bench: Bench) -> None:
    bench.api.answer("GET .*/log", 403, "Forbidden", "may not get pods/log", times=10_000)
    log: list[str] = []
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), log.append))
    pods = await bench.running("INFO[0001] RUN make")
    await until(lambda: building.done() or any("cannot be read" in line for line in log))
    bench.end(pods)
    assert (await asyncio.wait_for(building, LIMIT_SECONDS)).image == f"{DESTINATION}@{DIGEST}"
    assert len([line for line in log if "cannot be read" in line and "may not get pods/log" in line]) == 1
    assert bench.jobs == []


async def test_build_that_may_not_be_seen_for_a_while_ends_as_its_job_does(bench: Bench) -> None:
    log: list[str] = []
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), log.append))
    pods = await bench.running("INFO[0001] RUN make")
    await until(lambda: "RUN make" in "".join(log))
    bench.api.answer("GET .*/pods", 403, "Forbidden", "may not list pods", times=10_000)
    bench.api.cut()
    await until(lambda: building.done() or "cannot be seen now" in "".join(log))
    bench.api.heal()
    bench.end(pods)
    assert (await asyncio.wait_for(building, LIMIT_SECONDS)).image == f"{DESTINATION}@{DIGEST}"
    assert "may not list pods" in "".join(log)
    assert "".join(log).count("cannot be seen now") == 1


async def test_build_that_may_not_be_seen_for_long_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_images, "_REFUSED_SECONDS", 0.1)
    log: list[str] = []
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), log.append))
    await bench.running("INFO[0001] RUN make")
    await until(lambda: "RUN make" in "".join(log))
    bench.api.answer("GET .*/pods", 403, "Forbidden", "may not list pods", times=10_000)
    bench.api.cut()
    with pytest.raises(LaunchError, match="may not list pods"):
        await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_build_that_has_ended_is_removed_once_those_who_waited_for_it_have_left(bench: Bench) -> None:
    first = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running()
    gone = pods.job["metadata"]["uid"]
    await kill(first, bench)
    bench.end(pods, 1)
    (dead,) = [key for key in pods.job["metadata"]["annotations"] if key.startswith(WAITERS)]
    patches = bench.api.asked("PATCH .*/jobs/")
    again = asyncio.create_task(bench.builder("agent two").ensure_image(bench.plan(), lambda text: None))
    await until(lambda: bench.api.asked("PATCH .*/jobs/") > patches + 3)
    assert [one["metadata"]["uid"] for one in bench.jobs] == [gone]
    bench.mark(pods, dead.removeprefix(WAITERS), None)
    bench.end(await bench.running(but=gone))
    assert (await asyncio.wait_for(again, LIMIT_SECONDS)).image == f"{DESTINATION}@{DIGEST}"


async def test_build_that_failed_before_is_tried_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_images, "_SEEN_SECONDS", 0.5)  # The one who was killed never leaves.
    first = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running()
    await until(lambda: bench.waiters() == ["agent one"])
    gone = pods.job["metadata"]["uid"]
    await kill(first, bench)
    bench.end(pods, 1)
    again = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    bench.end(await bench.running(but=gone))
    assert (await asyncio.wait_for(again, LIMIT_SECONDS)).image == f"{DESTINATION}@{DIGEST}"


async def test_push_that_the_registry_denies_is_told_with_who_asked(bench: Bench) -> None:
    building = asyncio.create_task(
        bench.builder(kubernetes={"push_secret": "wrong"}).ensure_image(bench.plan(), lambda text: None)
    )
    said = (
        "error checking push permissions -- make sure you entered the correct tag name, and that you are authenticated"
        ' correctly: checking push permission for "registry.example.com/team/built": UNAUTHORIZED: authentication'
    )
    pods = await bench.running(said)
    bench.end(pods, 1, is_built=True)
    with pytest.raises(PushRefusedError, match=r"does not let the build push .*as the Secret 'wrong' says"):
        await asyncio.wait_for(building, LIMIT_SECONDS)


@pytest.mark.parametrize("settings", [{}, {"push_secret": "registry-push"}])
async def test_login_that_pushes_is_not_in_the_container_that_runs_the_steps(
    bench: Bench, settings: dict[str, str]
) -> None:
    building = asyncio.create_task(bench.builder(kubernetes=settings).ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running()
    (push,) = pods.job["spec"]["template"]["spec"]["containers"]
    build = building_of(pods)
    assert "launch-push" in [one["name"] for one in push["volumeMounts"]]
    assert {"launch-push", "launch-bases"}.isdisjoint(one["name"] for one in build["volumeMounts"])
    assert "DOCKER_CONFIG" not in [one["name"] for one in build["env"]]
    assert "--no-push" in build["args"]
    bench.end(pods)
    await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_base_image_is_pulled_with_the_login_that_the_owner_names_for_it(bench: Bench) -> None:
    settings = {"pull_secret": "registry-pull"}
    building = asyncio.create_task(bench.builder(kubernetes=settings).ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running("error building image: unable to complete operation: UNAUTHORIZED: access denied")
    (volume,) = [one for one in pods.job["spec"]["template"]["spec"]["volumes"] if one["name"] == "launch-bases"]
    assert volume["secret"]["secretName"] == "registry-pull"
    assert "launch-bases" in [one["name"] for one in building_of(pods)["volumeMounts"]]
    bench.end(pods, 1)
    with pytest.raises(AgentConfigError, match=r"does not let the build pull .* builder\.kubernetes\.pull_secret"):
        await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_secret_of_the_owner_is_mounted_and_none_is_made(bench: Bench) -> None:
    settings = {"push_secret": "registry-push", "service_account": "builder"}
    building = asyncio.create_task(bench.builder(kubernetes=settings).ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running()
    pod = pods.job["spec"]["template"]["spec"]
    assert "registry-push" in [one.get("secret", {}).get("secretName") for one in pod["volumes"]]
    assert pod["serviceAccountName"] == "builder"
    assert bench.api.store.list(SECRETS, "default") == []
    bench.end(pods)
    await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_build_runs_where_and_with_what_the_operator_says(bench: Bench) -> None:
    settings = {
        **{"cpus": 2, "memory": "4g", "node_selector": {"pool": "builds"}, "tolerations": ["gpu=yes:NoSchedule"]},
        **{"timeout": "10min", "image": "registry.example.com/kaniko:9", "args": ["--cache=true"]},
        "env": {"HTTP_PROXY": "http://proxy.example.com"},
        "spec": {"template": {"spec": {"hostNetwork": True, "containers": [{"name": "build"}]}}},
    }
    building = asyncio.create_task(bench.builder(kubernetes=settings).ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running()
    spec = pods.job["spec"]
    pod = spec["template"]["spec"]
    container = building_of(pods)
    assert spec["activeDeadlineSeconds"] == 600
    assert (pod["nodeSelector"], pod["hostNetwork"]) == ({"pool": "builds"}, True)
    assert pod["automountServiceAccountToken"] is False
    assert container["resources"]["limits"] == {"cpu": "2", "memory": "4Gi"}
    assert container["image"] == "registry.example.com/kaniko:9"
    assert container["args"][-1] == "--cache=true"
    assert {"name": "HTTP_PROXY", "value": "http://proxy.example.com"} in container["env"]
    bench.end(pods)
    await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_build_that_takes_too_long_says_which_limit_it_met(bench: Bench) -> None:
    settings = {"timeout": "10min"}
    log: list[str] = []
    building = asyncio.create_task(bench.builder(kubernetes=settings).ensure_image(bench.plan(), log.append))
    pods = await bench.running("INFO[0001] RUN sleep 1000")
    await until(lambda: "sleep" in "".join(log))
    pods.fail("DeadlineExceeded", "Job was active longer than specified deadline")
    with pytest.raises(
        BuildError, match=r"'RUN sleep 1000' failed: it took longer than builder.kubernetes.timeout, 10"
    ):
        await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_build_that_runs_out_of_memory_says_what_to_raise(bench: Bench) -> None:
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running("INFO[0001] RUN make")
    bench.end(pods, 137, reason="OOMKilled")
    with pytest.raises(InfrastructureError, match=r"out of memory in the step 'RUN make'.*builder.kubernetes.memory"):
        await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_large_context_is_cut_and_put_together_again_in_the_pod(bench: Bench) -> None:
    noise = base64.b64encode(random.Random(1).randbytes(2_500_000)).decode()
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(noise=noise), lambda text: None))
    pods = await bench.job()
    maps = bench.api.store.list(CONFIG_MAPS, "default")
    parts = {key: base64.b64decode(value) for one in maps for key, value in one["binaryData"].items()}
    assert len(parts) == 3
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts[key] for key in sorted(parts)))) as archive:
        assert archive.getnames() == ["Dockerfile", "main.py", "noise"]
    joiner, _ = pods.job["spec"]["template"]["spec"]["initContainers"]
    assert joiner["image"] == "busybox:1.37"
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_generated_dockerfile_names_its_base_by_the_digest_that_the_tag_was_made_of(bench: Bench) -> None:
    builder = bench.builder(base_image=BASE)
    plan = bench.plan().model_copy(update={"build_request": BuildRequest(entry_point=("python", "main.py"))})
    building = asyncio.create_task(builder.ensure_image(plan, lambda text: None))
    pods = await bench.running()
    (carried,) = bench.api.store.list(CONFIG_MAPS, "default")
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(carried["binaryData"]["context.tar.gz"]))) as archive:
        file = archive.extractfile("Dockerfile.launch")
        assert file is not None
        text = file.read().decode()
    assert text.startswith(f"FROM registry.example.com/base@{BASE_DIGEST}\n")
    assert "--mount" not in text
    bench.end(pods)
    await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_base_image_that_its_registry_does_not_have_is_told_before_anything_is_made(bench: Bench) -> None:
    bench.registry.digests.clear()
    with pytest.raises(ImagePullError, match=r"base image 'registry.example.com/base:1' is not in its registry"):
        await bench.builder().ensure_image(bench.plan(), lambda text: None)
    assert bench.api.requests == []


async def test_right_that_is_missing_is_named_and_nothing_is_left(bench: Bench) -> None:
    said = 'jobs.batch is forbidden: User "agent" cannot create resource "jobs" in API group "batch"'
    bench.api.answer("POST .*/jobs", 403, "Forbidden", said)
    with pytest.raises(AgentConfigError, match=r"Role with the verb 'create' on 'jobs'"):
        await bench.builder().ensure_image(bench.plan(), lambda text: None)
    assert bench.jobs == []


async def test_build_image_that_cannot_be_pulled_is_the_operators_matter(bench: Bench) -> None:
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    pods = await bench.job()
    pods.create()
    pods.wait("InvalidImageName", "couldn't parse image reference")
    with pytest.raises(AgentConfigError, match=r"cannot start: .*InvalidImageName.* Correct builder.kubernetes"):
        await asyncio.wait_for(building, LIMIT_SECONDS)
    assert bench.jobs == []


async def test_wait_of_a_build_for_room_in_the_cluster_is_in_its_log(bench: Bench) -> None:
    log: list[str] = []
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), log.append))
    pods = await bench.job()
    pods.create()
    pods.cannot_be_scheduled("0/3 nodes are available: 3 Insufficient cpu.")
    await until(lambda: "The build waits in the cluster: Unschedulable: 0/3 nodes are available" in "".join(log))
    building.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(building, LIMIT_SECONDS)


async def test_digest_of_a_build_counts_and_not_what_another_cluster_has_pushed_under_the_tag(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = f"sha256:{'e' * 64}"
    here = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    mine = await bench.running()
    with scripted_api() as api:
        (tmp_path / "there").mkdir()
        other = Bench(api, tmp_path / "there")
        other.registry = bench.registry
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "there" / "kubeconfig"))
        there = asyncio.create_task(other.builder("agent two").ensure_image(other.plan(), lambda text: None))
        theirs = await other.running()
        assert theirs.job["metadata"]["name"] == mine.job["metadata"]["name"]
        other.end(theirs, message=others)
        bench.end(mine, message=f"{DIGEST}\n")
        (tag,) = [one.partition("=")[2] for one in args_of(mine) if one.startswith("--destination=")]
        bench.push(tag, others)
        images = [(await asyncio.wait_for(one, LIMIT_SECONDS)).image for one in (here, there)]
        await other.made[0].aclose()
    assert images == [f"{DESTINATION}@{DIGEST}", f"{DESTINATION}@{others}"]


async def test_builds_of_an_agent_share_one_watch_of_the_cluster(bench: Bench) -> None:
    builder = bench.builder()
    for number in range(2):
        building = asyncio.create_task(builder.ensure_image(bench.plan(number=f"{number}"), lambda text: None))
        bench.end(await bench.running())
        await asyncio.wait_for(building, LIMIT_SECONDS)
    assert bench.api.asked("GET .*/jobs.*watch=true") == 1


def test_context_that_is_too_large_is_refused_before_all_of_it_is_packed(tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    noise.write_bytes(random.Random(1).randbytes(34 * 1024**2))
    entries = (Entry("noise", source=noise, size=noise.stat().st_size), Entry("rest", source=tmp_path / "not read"))
    with pytest.raises(SourceError, match=r"context has more than .* when it is packed"):
        cut_context(ImageBuild(BuildContext(entries), dockerfile="Dockerfile"))


async def test_image_that_the_registry_does_not_have_after_its_build_is_told(bench: Bench) -> None:
    building = asyncio.create_task(bench.builder().ensure_image(bench.plan(), lambda text: None))
    pods = await bench.running()
    bench.end(pods)
    bench.registry.digests.clear()
    with pytest.raises(RegistryError, match=rf"was pushed as {DIGEST}, but its registry has nothing under the name"):
        await asyncio.wait_for(building, LIMIT_SECONDS)


async def checks(bench: Bench, **settings: Any) -> dict[tuple[str, str], Finding]:
    given = {"type": "kubernetes", "destination": DESTINATION, "kubernetes": settings}
    config = parse_agent_config({"name": "box", "home": bench.folder / "home", "builder": given})
    found = await check_agent(InMemoryApi(), config, registry=bench.registry)
    return {(one.where, one.finding.name): one.finding for one in found}


async def test_check_of_an_agent_tells_of_the_cluster_that_builds_and_of_its_registry(bench: Bench) -> None:
    found = await checks(bench)
    assert found["builder", "Kubernetes"].is_ok
    assert found["builder", "rights"].is_ok
    assert found["registry", "login"].is_ok


async def test_check_of_an_agent_names_the_secret_of_its_builds_that_is_not_there(bench: Bench) -> None:
    found = await checks(bench, push_secret="registry-push")
    assert "has no Secret 'registry-push'" in found["builder", "Secret registry-push"].detail
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "registry-push"}}
    bench.api.store.create(SECRETS, "default", secret)
    assert (await checks(bench, push_secret="registry-push"))["builder", "Secret registry-push"].is_ok


async def test_check_of_an_agent_tells_that_no_cluster_is_known_to_build_in(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(bench.folder / "none"))
    assert "knows no Kubernetes cluster" in (await checks(bench))["builder", "Kubernetes"].detail
