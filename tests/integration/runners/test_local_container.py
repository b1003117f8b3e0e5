"""What only containers do: images, users, limits, archives, an engine that goes away."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest

from prefect_launch.errors import InfrastructureError, JobCodeError, QueueError, SpecError
from prefect_launch.runners.base import Labels, RunPlan
from prefect_launch.runners.docker.client import DockerEngine
from prefect_launch.runners.docker.files import INPUTS_PATH
from prefect_launch.runners.docker.runner import LocalContainerRunner
from prefect_launch.spec.item_outputs import ItemOutput
from prefect_launch.testing.runner_contract import run

pytestmark = pytest.mark.engine

MARK = "prefect-launch.test"
#: Lets a container live until a test puts this file into it.
UNTIL_TOLD = "until [ -e /told ]; do sleep 0.05; done"


class Bench:
    """A runner, the plans for it, and a plain client to look with."""

    def __init__(self, folder: Path, image: str) -> None:
        self.folder = folder
        self.image = image
        self.mark = uuid4().hex
        self.client = docker.APIClient(version="auto", **docker.utils.kwargs_from_env())
        self.runner = LocalContainerRunner(folder / "home", DockerEngine(event_labels=(Labels.ITEM,)))

    def plan(self, script: str | None, **more: Any) -> RunPlan:
        item = str(uuid4())
        run_dir = self.folder / item
        run_dir.mkdir()
        values: dict[str, Any] = {
            "item_id": item,
            "run_id": item[:8],
            "run_dir": run_dir,
            "image": self.image,
            "command": () if script is None else ("sh", "-c", script, "sh"),
            "labels": {Labels.ITEM: item, MARK: self.mark},
        }
        return RunPlan.model_validate({**values, **more})

    async def started(self, plan: RunPlan) -> str:
        await self.runner.prepare(plan)
        handle = await self.runner.create(plan)
        await self.runner.start(handle)
        return handle

    def image_with(self, files: dict[str, bytes], changes: Sequence[str] = ()) -> str:
        """Make an image of the shell image and some files; returns its id."""
        made = self.client.create_container_from_config(
            {"Image": self.image, "Cmd": ["true"], "Labels": {MARK: self.mark}}
        )
        self.put(made["Id"], files)
        image: str = self.client.commit(made["Id"], changes=list(changes))["Id"]
        self.client.remove_container(made["Id"])
        return image

    def put(self, container: str, files: dict[str, bytes]) -> None:
        """Write files into a container, by their paths from its root."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        self.client.put_archive(container, "/", packed.getvalue())

    async def clear(self) -> None:
        for found in self.client.containers(all=True, filters={"label": f"{MARK}={self.mark}"}):
            self.client.remove_container(found["Id"], force=True, v=True)
        await self.runner.aclose()
        self.client.close()


@pytest.fixture
async def bench(tmp_path: Path, shell_image: str) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path, shell_image)
    yield bench
    await bench.clear()


async def test_files_beside_the_code_are_kept_by_a_pattern_or_told(bench: Bench, tmp_path: Path) -> None:
    code = tmp_path / "code"
    code.mkdir()
    for name, text in {"notes.txt": "", "code.py": "pass", "config.yaml": "a: 1", ".launchignore": "/data/"}.items():
        (code / name).write_text(text)
    script = (
        "mkdir -p ckpt/deep data .cache empty; echo one > ckpt/deep/1.pt; echo 1 > loss.csv; echo more >> notes.txt;"
        " echo x > data/set; echo x > .cache/x; ln -s loss.csv link; chmod 600 code.py; echo 2 > /elsewhere"
    )
    more = {"keep": ["ckpt/**"], "file_overrides": {"config.yaml": {"a": 2}}}
    plan = bench.plan(script, code_dir=code, **more)

    end = await run(bench.runner, plan)

    assert end.warnings == ()
    assert (plan.output_dir / "ckpt" / "deep" / "1.pt").read_text() == "one\n"
    assert end.code_changes.named == ("loss.csv", "notes.txt")


async def test_container_killed_out_of_memory_is_reported_as_such(bench: Bench) -> None:
    # With cgroups v1 the engine may never hear of what ends the whole container at once, nor of what comes before it
    # listens: the container begins when it is told to, and lives on until the engine knows.
    plan = bench.plan(
        "until [ -e /begin ]; do sleep 0.05; done; dd if=/dev/zero of=/dev/null bs=200M count=1; code=$?;"
        f" {UNTIL_TOLD}; exit $code",
        options={"memory": "16m", "memory-swap": "16m"},
    )
    handle = await bench.started(plan)
    watching = asyncio.create_task(bench.runner.watch(handle, plan))

    bench.put(handle, {"begin": b""})
    oom = bench.client.events(filters={"container": handle, "event": "oom"}, decode=True, since=0)
    assert (await asyncio.to_thread(next, oom))["Action"] == "oom"
    oom.close()
    bench.put(handle, {"told": b""})
    end = await asyncio.wait_for(watching, 60)
    assert (end.exit_code, end.oom_killed, end.succeeded) == (137, True, False)
    assert "out of memory" in end.describe()


async def test_container_that_somebody_removes_is_reported_as_such(bench: Bench) -> None:
    plan = bench.plan("sleep 600")
    handle = await bench.started(plan)
    watching = asyncio.create_task(bench.runner.watch(handle, plan))
    await asyncio.sleep(0.3)
    await asyncio.to_thread(bench.client.remove_container, handle, force=True)
    end = await asyncio.wait_for(watching, 60)
    assert end.exit_code is None
    assert "removed" in end.describe()


async def test_long_lines_and_many_lines_arrive_whole(bench: Bench) -> None:
    script = "head -c 300000 /dev/zero | tr '\\0' x; echo; i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done"
    plan = bench.plan(script)
    assert (await run(bench.runner, plan)).succeeded
    expected = "x" * 300_000 + "\n" + "".join(f"{number}\n" for number in range(20_000))
    assert plan.log_path.read_text() == expected


async def test_log_goes_on_with_no_gap_and_no_repeat_through_many_agents(bench: Bench) -> None:
    count = "i=0; while [ $i -lt 3000 ]; do echo $i; [ $((i % 100)) = 0 ] && sleep 0.1; i=$((i+1)); done"
    plan = bench.plan(f"{count}; {UNTIL_TOLD}")
    handle = await bench.started(plan)
    for _ in range(5):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(bench.runner.watch(handle, plan), 0.4)
        with plan.log_path.open("ab") as log:
            log.write(b"written by an agent that was killed before it noted it")
    bench.put(handle, {"told": b""})
    await bench.runner.watch(handle, plan)
    assert plan.log_path.read_text() == "".join(f"{number}\n" for number in range(3000))


async def test_log_is_live_while_the_job_runs(bench: Bench) -> None:
    plan = bench.plan("echo first; sleep 60")
    handle = await bench.started(plan)
    watching = asyncio.create_task(bench.runner.watch(handle, plan))
    begun = time.monotonic()
    while not (plan.log_path.exists() and plan.log_path.read_text() == "first\n"):
        await asyncio.sleep(0.02)
        assert time.monotonic() - begun < 50
    watching.cancel()


@pytest.mark.parametrize("options", [{"user": "1000:1000"}, {"user": "1000", "read-only": True}, {"read-only": True}])
async def test_outputs_can_be_written_by_any_user_and_on_a_read_only_container(
    bench: Bench, options: dict[str, Any]
) -> None:
    plan = bench.plan('echo \'{"x": 1}\' > "$LAUNCH_OUTPUT_DIR/outputs.json"', options=options)
    end = await run(bench.runner, plan)
    assert end.succeeded, plan.log_path.read_text()
    assert json.loads((plan.output_dir / "outputs.json").read_text()) == {"x": 1}


@pytest.mark.parametrize("options", [{"user": "1000:1000"}, {"user": "1000", "read-only": True}, {"read-only": True}])
async def test_output_of_another_item_is_read_by_any_user_and_in_a_read_only_container(
    bench: Bench, options: dict[str, Any]
) -> None:
    wanted = ItemOutput(item="other", path="model.pt")
    script = f'cat {INPUTS_PATH}/{wanted.place}; echo new > "$LAUNCH_OUTPUT_DIR/new"'
    plan = bench.plan(script, options=options, input_files=[wanted])
    (plan.input_dir / "other").mkdir(parents=True)
    (plan.input_dir / wanted.place).write_text("weights\n")
    (plan.input_dir / wanted.place).chmod(0o600)

    end = await run(bench.runner, plan)

    assert (end.exit_code, plan.log_path.read_text()) == (0, "weights\n")
    assert (plan.output_dir / "new").read_text() == "new\n"


async def test_output_that_is_no_file_is_left_behind_and_told_and_holes_are_kept(bench: Bench) -> None:
    script = "cd $LAUNCH_OUTPUT_DIR; ln -s /etc/passwd link; mkfifo pipe; echo ok > good.txt; truncate -s 300M sparse"
    plan = bench.plan(script)
    end = await run(bench.runner, plan)
    assert sorted(path.name for path in plan.output_dir.iterdir()) == ["good.txt", "sparse"]
    assert end.left_out.named == ("pipe: it is a pipe", "link: it is a link that leads out of the outputs folder")
    sparse = (plan.output_dir / "sparse").stat()
    assert (sparse.st_size, sparse.st_blocks) == (300 * 1024**2, 0)


async def test_values_are_merged_into_a_config_file_of_the_image(bench: Bench) -> None:
    image = bench.image_with({"app/conf/c.json": b'{"lr": 1, "net": {"depth": 2}}'}, ["WORKDIR /app"])
    plan = bench.plan("cat conf/c.json", image=image, file_overrides={"conf/c.json": {"net": {"width": 7}}})
    await run(bench.runner, plan)
    assert json.loads(plan.log_path.read_text()) == {"lr": 1, "net": {"depth": 2, "width": 7}}


async def test_values_for_a_config_file_that_the_image_lacks_are_refused(bench: Bench) -> None:
    with pytest.raises(JobCodeError, match=r"conf\.json"):
        await bench.runner.create(bench.plan("true", file_overrides={"conf.json": {"a": 1}}))


async def test_image_runs_its_own_command_when_the_job_names_none(bench: Bench) -> None:
    changes = ['ENTRYPOINT ["echo", "from", "entry"]', 'CMD ["and", "command"]']
    image = bench.image_with({"x": b""}, changes)
    own, with_args = bench.plan(None, image=image), bench.plan(None, image=image, args=("and 1",))
    await run(bench.runner, own)
    await run(bench.runner, with_args)
    assert own.log_path.read_text() == "from entry and command\n"
    assert with_args.log_path.read_text() == "from entry and 1\n"


async def test_working_directory_is_below_the_images_own(bench: Bench) -> None:
    image = bench.image_with({"app/deep/x": b""}, ["WORKDIR /app"])
    plan = bench.plan("pwd", image=image, working_dir="deep")
    await run(bench.runner, plan)
    assert plan.log_path.read_text() == "/app/deep\n"


async def test_run_starts_whose_queues_limit_is_more_cpus_than_its_machine_has(bench: Bench) -> None:
    limits = {"cpus": 4000}
    with pytest.raises(SpecError, match="CPUs"):
        await bench.started(bench.plan("true", options=limits))
    plan = bench.plan("true", options=limits, from_limits=limits)
    assert (await bench.runner.watch(await bench.started(plan), plan)).exit_code == 0


async def test_options_reach_the_container(bench: Bench) -> None:
    options = bench.runner.check_options(
        {
            "cpus": 0.5,
            "m": "64m",
            "shm_size": "1m",
            "ulimit": ["nofile=99:100"],
            "e": {"A": 1},
            "w": "/tmp",
            "name": "mine",
        }
    )
    plan = bench.plan("ulimit -n; echo $A; pwd", options=options)
    handle = await bench.started(plan)
    await bench.runner.watch(handle, plan)
    about = bench.client.inspect_container(handle)
    assert plan.log_path.read_text() == "99\n1\n/tmp\n"
    host = about["HostConfig"]
    assert (host["NanoCpus"], host["Memory"], host["ShmSize"]) == (500_000_000, 64 * 1024**2, 1024**2)
    assert about["Name"] == f"/{plan.name}"
    assert about["Config"]["Labels"]["prefect-launch.wanted-name"] == "mine"


async def test_options_that_the_engine_refuses_are_the_submitters_fault(bench: Bench) -> None:
    with pytest.raises(SpecError, match="memory"):
        await bench.runner.create(bench.plan("true", options={"memory": "1k"}))


async def test_folder_of_the_host_is_mounted_and_one_that_is_not_there_is_reported_and_not_made(bench: Bench) -> None:
    there, missing = bench.folder / "there", bench.folder / "missing"
    there.mkdir()
    (there / "x").write_text("hello\n")
    plan = bench.plan("cat /data/x; touch /data/y 2>&1 || echo kept", options={"volume": f"{there}:/data:ro"})
    await run(bench.runner, plan)
    assert plan.log_path.read_text().splitlines()[0::2] == ["hello", "kept"]
    for options in ({"volume": f"{missing}:/data"}, {"mount": f"type=bind,src={missing},dst=/data"}):
        with pytest.raises(QueueError, match=f"mounts '{missing}', which is not on the machine of the Docker Engine"):
            await bench.runner.create(bench.plan("true", options=options))
    assert not missing.exists()


async def test_image_that_cannot_be_pulled_is_reported_with_the_reason(bench: Bench) -> None:
    plan = bench.plan("true", image="127.0.0.1:9/nothing/here:v1")
    with pytest.raises(InfrastructureError, match=r"(?s)127\.0\.0\.1:9/nothing/here:v1.*cannot be pulled: .*refused"):
        await bench.runner.prepare(plan)


async def test_name_that_a_stranger_has_taken_is_refused(bench: Bench) -> None:
    plan = bench.plan("true")
    bench.client.create_container_from_config(
        {"Image": bench.image, "Cmd": ["true"], "Labels": {MARK: bench.mark}}, plan.name
    )
    with pytest.raises(InfrastructureError, match="exists already"):
        await bench.runner.create(plan)


async def test_secrets_in_the_plan_are_not_shown_by_it(bench: Bench) -> None:
    assert "hush" not in repr(bench.plan("true", env={"TOKEN": "hush"}))


async def test_engine_that_is_not_there_is_named_with_the_next_step(tmp_path: Path, bench: Bench) -> None:
    runner = LocalContainerRunner(tmp_path, DockerEngine(f"unix://{tmp_path}/nowhere.sock"))
    with pytest.raises(InfrastructureError, match=r"nowhere\.sock.*DOCKER_HOST"):
        await runner.prepare(bench.plan("true"))


@asynccontextmanager
async def cut_off_at_exit(path: Path, engine_socket: str) -> AsyncIterator[None]:
    """A socket that leads to the engine as long as the context lasts; then all its connections are cut."""
    writers: list[asyncio.StreamWriter] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(engine_socket)
        writers.extend((writer, inner_writer))
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(connect, path)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        path.unlink(missing_ok=True)


async def test_engine_that_goes_away_and_comes_back_loses_no_line_and_no_exit(tmp_path: Path, bench: Bench) -> None:
    engine_socket = bench.runner._engine.address.removeprefix("unix://")  # type: ignore[attr-defined]
    socket = Path(f"/tmp/engine-{uuid4().hex[:8]}.sock")
    runner = LocalContainerRunner(tmp_path, DockerEngine(f"unix://{socket}", event_labels=(Labels.ITEM,)))
    plan = bench.plan(f"i=0; while [ $i -lt 30 ]; do echo $i; i=$((i+1)); sleep 0.1; done; {UNTIL_TOLD}; exit 8")
    async with cut_off_at_exit(socket, engine_socket):
        handle = await runner.create(plan)
        await runner.start(handle)
        watching = asyncio.create_task(runner.watch(handle, plan))
        await asyncio.sleep(0.8)
    await asyncio.sleep(1)
    with pytest.raises(InfrastructureError):
        await runner.find({})
    assert not watching.done()
    bench.put(handle, {"told": b""})
    async with cut_off_at_exit(socket, engine_socket):
        end = await asyncio.wait_for(watching, 20)
        assert (end.exit_code, end.warnings) == (8, ())
        assert plan.log_path.read_text() == "".join(f"{number}\n" for number in range(30))
        await runner.aclose()
