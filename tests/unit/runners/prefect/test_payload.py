"""What a child flow run is handed and hands back: code, environment, secrets, outputs."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path

import pytest

from prefect_launch.core.masking import Mask
from prefect_launch.core.output_limits import OutputLimits
from prefect_launch.errors import SpecError
from prefect_launch.runners.base import ExitStatus, RunPlan
from prefect_launch.runners.remote.jobs import RunHandle
from prefect_launch.runners.remote.prefect import payload, wrapper
from prefect_launch.runners.remote.prefect.runner import PrefectRunner
from tests.unit.runners.prefect.test_wrapper import LIMIT_SECONDS, child_of
from tests.unit.runners.prefect.world import POOL, PrefectWorld


async def run(runner: PrefectRunner, plan: RunPlan) -> tuple[str, ExitStatus]:
    handle = await runner.create(plan)
    await runner.start(handle)
    return handle, await asyncio.wait_for(runner.watch(handle, plan), LIMIT_SECONDS)


def code_in(folder: Path) -> Path:
    code = folder / "code"
    (code / "sub" / "deep").mkdir(parents=True)
    (code / "sub" / "main.py").write_text(
        "import json, os, prefect_launch.inputs\n"
        "print(os.path.basename(os.getcwd()), json.load(open('c.json'))['lr'])\n"
    )
    (code / "sub" / "c.json").write_text('{"lr": 0.1, "epochs": 3}')
    (code / "sub" / "deep" / "run.sh").write_text("echo ran")
    (code / "sub" / "deep" / "run.sh").chmod(0o755)
    (code / "link").symlink_to("sub/main.py")
    (code / ".git").mkdir()
    (code / ".git" / "config").write_text("x" * 100)
    return code


async def test_code_runs_in_its_folder_with_the_values_of_its_run(world: PrefectWorld, tmp_path: Path) -> None:
    plan = world.plan(
        "python3 main.py; ls -a ..; sh deep/run.sh",
        code_dir=code_in(tmp_path),
        build_context="sub",
        file_overrides={"c.json": {"lr": 0.5}},
    )
    handle, end = await run(world.runner(), plan)
    log = plan.log_path.read_text()
    assert end.succeeded, log
    assert log.splitlines()[0] == "sub 0.5", log
    assert "ran" in log
    assert ".git" not in log
    left = world.server._store.items[child_of(handle)].inputs
    assert not [key for key in left if key.startswith(wrapper.CODE_KEY)]  # The database has it no longer than needed.


async def test_nothing_of_a_run_that_never_started_is_left_on_the_server(world: PrefectWorld, tmp_path: Path) -> None:
    world.fill()
    runner, plan = world.runner(), world.plan("exit 0", code_dir=code_in(tmp_path))
    handle = await runner.create(plan)
    await runner.create(plan)  # Handed over again, it is the same.
    inputs = world.server._store.items[child_of(handle)].inputs
    assert len([key for key in inputs if key.startswith(wrapper.CODE_KEY)]) == 1
    await runner.start(handle)
    await runner.stop(handle, 1.0)
    await runner.remove(handle)
    assert set(inputs) <= {wrapper.START_KEY}  # Which keeps a late wrapper from starting it.


def test_code_that_is_too_large_is_refused(
    world: PrefectWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payload, "MAX_CODE_BYTES", 100)
    with pytest.raises(SpecError, match="Put the code into an image"):
        payload.pack_code(world.plan("exit 0", code_dir=code_in(tmp_path)))


def test_same_code_is_packed_to_the_same_bytes(world: PrefectWorld, tmp_path: Path) -> None:
    plan = world.plan("exit 0", code_dir=code_in(tmp_path))
    assert payload.pack_code(plan) == payload.pack_code(plan)


async def test_value_of_a_secret_reaches_the_job_and_is_nowhere_on_the_server(world: PrefectWorld) -> None:
    world.api.secrets["token"] = "s3cret-value"
    options = {"work-pool": POOL, "env": {"AUTH": "Bearer a-mark!", "PLAIN": "p"}}
    plan = world.plan(
        'printf "%s" "$AUTH" | cksum; echo "$PLAIN"',
        options=options,
        secret_marks={"a-mark": "token"},
        secrets=("token",),
    )
    handle, end = await run(world.runner(), plan)
    assert end.succeeded
    # The checksum of "Bearer s3cret-value!".
    assert plan.log_path.read_text() == f"{_cksum(b'Bearer s3cret-value!')} 20\np\n"
    stored = world.server._store.items[child_of(handle)]
    assert "s3cret-value" not in repr(stored)
    assert "token" in stored.inputs["launch-plan"]


async def test_value_of_a_secret_that_the_job_writes_is_masked_before_it_comes_to_the_server(
    world: PrefectWorld,
) -> None:
    world.api.secrets["token"] = "s3cret-value"
    options = {"work-pool": POOL, "env": {"AUTH": "Bearer a-mark!"}}
    script = 'echo "$AUTH"; echo "failed: $AUTH" >&2; printf "%s" "$AUTH" | base64'
    plan = world.plan(script, options=options, secret_marks={"a-mark": "token"}, secrets=("token",))
    handle, end = await run(world.runner(), plan)
    assert end.succeeded
    seen = "\n".join(record.message for record in world.server._store.logs[child_of(handle)])
    assert "s3cret" not in seen
    assert "value" not in seen
    assert seen.count("********") == 3
    assert base64.b64encode(b"Bearer s3cret-value!").decode()[14:20] not in seen


def _cksum(data: bytes) -> int:
    """The checksum that POSIX's `cksum` prints."""
    crc, length = 0, len(data)
    tail = length.to_bytes((length.bit_length() + 7) // 8, "little")
    for byte in data + tail:
        crc ^= byte << 24
        for _ in range(8):
            crc = ((crc << 1) ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc ^ 0xFFFFFFFF


async def test_secret_that_is_gone_fails_the_run_with_its_name(world: PrefectWorld) -> None:
    options = {"work-pool": POOL, "env": {"AUTH": "a-mark"}}
    plan = world.plan("echo never", options=options, secret_marks={"a-mark": "token"}, secrets=("token",))
    _, end = await run(world.runner(), plan)
    assert not end.succeeded
    assert "no Secret block 'token'" in end.describe()
    assert plan.log_path.read_bytes() == b""


def test_secret_of_the_agent_s_own_is_refused_unless_the_queue_names_it(world: PrefectWorld) -> None:
    env, mask = {"WANDB_API_KEY": "the-agents-key"}, Mask(["the-agents-key"])
    with pytest.raises(SpecError, match="WANDB_API_KEY holds a secret of the agent's"):
        payload.wrapper_plan(world.plan("exit 0", env=env, mask=mask), 1.0)
    options = {"work-pool": POOL, "env": {"WANDB_API_KEY": "a-mark"}}
    plan = world.plan("exit 0", env=env, mask=mask, options=options, secret_marks={"a-mark": "wandb"})
    made = payload.wrapper_plan(plan, 1.0)
    assert made["secret_env"] == {"WANDB_API_KEY": [{"secret": "wandb"}]}
    assert "the-agents-key" not in json.dumps(made)


def test_text_is_cut_at_its_secrets() -> None:
    marks = {"m1": "one", "m2": "two"}
    assert payload.secret_parts("a m1:m2", marks) == [
        {"text": "a "},
        {"secret": "one"},
        {"text": ":"},
        {"secret": "two"},
    ]
    assert payload.secret_parts("", marks) == [{"text": ""}]
    assert payload.secret_parts("{{ prefect.blocks.secret.one }}", marks) == [
        {"text": "{{ prefect.blocks.secret.one }}"}
    ]


async def test_outputs_beyond_their_limit_are_left_out_by_name_and_the_results_kept(world: PrefectWorld) -> None:
    script = (
        'cd "$LAUNCH_OUTPUT_DIR"; head -c 3000 /dev/urandom > a-large; head -c 500 /dev/urandom > small;'
        " echo '{\"x\": 1}' > outputs.json; ln -s small link"
    )
    plan = world.plan(script, output_limits=OutputLimits(max_bytes=2000))
    runner = world.runner()
    handle, end = await run(runner, plan)
    assert sorted(path.name for path in plan.output_dir.iterdir()) == ["outputs.json", "small"]
    assert end.left_out.count == 2
    assert {one.partition(":")[0] for one in end.left_out.named} == {"a-large", "link"}
    await runner.remove(handle)
    assert world.server._store.items[child_of(handle)].inputs.keys() == {wrapper.START_KEY}


async def test_large_outputs_come_back_in_chunks(world: PrefectWorld) -> None:
    plan = world.plan('head -c 1500000 /dev/urandom > "$LAUNCH_OUTPUT_DIR/data"; cksum < "$LAUNCH_OUTPUT_DIR/data"')
    _, end = await run(world.runner(), plan)
    assert end.succeeded
    assert plan.log_path.read_text().split()[0] == str(_cksum((plan.output_dir / "data").read_bytes()))


async def test_child_without_its_plan_is_not_whole(world: PrefectWorld) -> None:
    runner, plan = world.runner(), world.plan("echo never")
    handle = await runner.create(plan)
    [found] = await runner.find({})
    assert found.is_complete
    del world.server._store.items[child_of(handle)].inputs["launch-plan"]
    [found] = await runner.find({})
    assert not found.is_complete
    await runner.stop(handle, 1.0)
    await runner.remove(handle)
    assert await runner.find({}) == []
    child = await world.server.read_item(child_of(str(RunHandle.parse(handle))))
    assert child is not None
    assert child.state_name == "Cancelled"
