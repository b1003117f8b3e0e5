"""Options of `ray`, code packages and credentials: what is understood, what is refused, and with which words."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from prefect_launch.errors import (
    AgentConfigError,
    LaunchError,
    NotFoundError,
    SpecError,
    UnreachableError,
    UnsafeSpecError,
)
from prefect_launch.runners.remote.ray import packages
from prefect_launch.runners.remote.ray.client import RayClient, ray_headers
from prefect_launch.runners.remote.ray.options import describe
from prefect_launch.runners.remote.ray.runner import RayRunner
from tests.unit.runners.ray.api import RayApi, plan_in, submitted


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cpus": "many"}, "'cpus': 'many': it must be a number from 0"),
        ({"gpus": -1}, "it must be a number from 0"),
        ({"entrypoint_num_gpus": True}, "'entrypoint-num-gpus': True: it must be a number"),
        ({"memory": "much"}, "it must be a number of bytes"),
        ({"resources": ["tpu"]}, "it must be a mapping"),
        ({"resources": {"GPU": 8}}, "'GPU' has an option of its own, 'gpus'"),
        ({"runtime_env": "torch"}, "it must be a mapping"),
        ({"runtime_env": {"env_vars": {"A": "1"}}}, "its key 'env_vars' is made by prefect-launch: use env"),
        ({"runtime_env": {"working_dir": "s3://x"}}, "its key 'working_dir' is made by prefect-launch"),
        ({"runtime_env": {"pips": []}}, "its key 'pips' is none of"),
        ({"output_dir": "shared"}, "must be an absolute path"),
        ({"secrets": "maybe"}, "it must be true or false"),
    ],
)
def test_bad_value_is_refused_with_its_rule(options: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as raised:
        RayRunner.check_options(options)
    assert said in str(raised.value)


def test_unknown_option_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(NotFoundError, match="Did you mean 'gpus'"):
        RayRunner.check_options({"gpu": 1})


def test_option_under_both_its_names_is_refused() -> None:
    with pytest.raises(SpecError, match="'cpus' of ray says the same as 'entrypoint-num-cpus'"):
        RayRunner.check_together(RayRunner.check_options({"cpus": 1, "entrypoint_num_cpus": 2}))


@pytest.mark.parametrize("key", ["container", "image_uri", "py_executable", "worker_process_setup_hook"])
def test_program_or_container_of_the_cluster_is_for_the_queues_owner(key: str) -> None:
    options = RayRunner.check_options({"runtime_env": {key: "x"}})
    with pytest.raises(UnsafeSpecError, match=f"runtime_env.{key} may be set by the queue's owner only"):
        RayRunner.check_submitter_options(options)
    RayRunner.check_submitter_options(RayRunner.check_options({"runtime_env": {"pip": ["torch"]}}))
    assert {"output-dir", "secrets"}.isdisjoint(RayRunner.submitter_options)


@pytest.mark.parametrize("name", ["cpus", "gpus", "memory"])
def test_limit_of_a_quantity_binds_it_under_both_its_names(name: str) -> None:
    long = {"cpus": "entrypoint-num-cpus", "gpus": "entrypoint-num-gpus", "memory": "entrypoint-memory"}[name]
    assert name in RayRunner.quantities[long].bounds_with
    assert RayRunner.quantities[name].has_maximum


def test_resources_are_said_in_words() -> None:
    assert describe({"memory": 2.0 * 1024**3, "CPU": 4.0, "GPU": 0.5}) == "4 CPU, 0.5 GPU, 2.0 GiB memory"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"command": ()}, "must have an entry point"),
        ({"image": "a", "code_dir": Path("/code")}, "this one has both"),
        ({"image": "a", "options": {"runtime-env": {"pip": ["b"]}}}, "runtime_env.pip does not go with an image"),
        ({"args": ("x" * 140_000,)}, "a shell takes 131,071"),
    ],
)
def test_plan_that_ray_cannot_run_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as raised:
        RayApi().runner(tmp_path).check(plan_in(tmp_path, **changes))
    assert said in str(raised.value)


async def test_image_is_the_runtime_environments(tmp_path: Path) -> None:
    api = RayApi()
    await submitted(api.runner(tmp_path), plan_in(tmp_path, image="train:1", resolved_image="train@sha256:0"))
    [job] = api.jobs.values()
    assert job["runtime_env"]["image_uri"] == "train@sha256:0"


# --- code ---


def code_in(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in {"train.py": "print(1)\n", **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


async def test_code_is_sent_once_whatever_folder_it_comes_from(tmp_path: Path) -> None:
    api = RayApi()
    runner = api.runner(tmp_path)
    for name in ("a", "b"):
        code = code_in(tmp_path / name, **{"deep/run.sh": "echo", ".git/config": "x"})
        (code / "deep" / "run.sh").chmod(0o755)
        await submitted(runner, plan_in(tmp_path, code_dir=code))
    [(name, content)] = api.packages.items()
    assert {job["runtime_env"]["working_dir"] for job in api.jobs.values()} == {f"gcs://{name}"}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == ["train.py", "deep/run.sh"]
        assert archive.getinfo("deep/run.sh").external_attr >> 16 & 0o777 == 0o755


async def test_code_that_uses_our_inputs_brings_them_along(tmp_path: Path) -> None:
    api = RayApi()
    code = code_in(tmp_path / "a", **{"train.py": "from prefect_launch.inputs import load_config\n"})
    await submitted(api.runner(tmp_path), plan_in(tmp_path, code_dir=code))
    [content] = api.packages.values()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert ".prefect-launch-inputs/prefect_launch/inputs/__init__.py" in archive.namelist()


async def test_large_code_is_sent_in_pieces_and_whole_again_when_a_busy_head_asks_for_that(tmp_path: Path) -> None:
    api, sent = RayApi(), list[httpx.Request]()

    def busy(request: httpx.Request) -> httpx.Response | None:
        if request.method == "PUT":
            sent.append(request)
        is_first = request.method == "PUT" and len(sent) == 1
        return httpx.Response(429, headers={"retry-after": "0"}) if is_first else None

    api.proxy = busy
    code = code_in(tmp_path / "a")
    (code / "weights").write_bytes(os.urandom(3 * 1024**2))
    await submitted(api.runner(tmp_path), plan_in(tmp_path, code_dir=code))
    [content] = api.packages.values()
    assert [int(request.headers["content-length"]) for request in sent] == [len(content)] * 2
    assert not any("transfer-encoding" in request.headers for request in sent)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.read("weights") == (code / "weights").read_bytes()
    assert [one.name for one in (tmp_path / "runs").rglob("*") if one.is_file()] == []


async def test_code_larger_than_ray_takes_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "MAX_PACKAGE_BYTES", 100)
    api = RayApi()
    with pytest.raises(SpecError, match=r"Ray takes 100 B. Leave data out by a \.launchignore"):
        await submitted(api.runner(tmp_path), plan_in(tmp_path, code_dir=code_in(tmp_path / "a")))
    assert not api.jobs
    assert not api.packages


async def test_requirements_are_installed_by_rays_pip(tmp_path: Path) -> None:
    api = RayApi()
    text = "# all\n-r more.txt\ntorch==2.9  # the engine\n"
    code = code_in(tmp_path / "a", **{"requirements.txt": text, "more.txt": "--extra-index-url https://x/\nnumpy\n"})
    await submitted(api.runner(tmp_path), plan_in(tmp_path, code_dir=code))
    [job] = api.jobs.values()
    assert job["runtime_env"]["pip"]["packages"][:2] == ["--extra-index-url https://x/", "numpy"]
    assert job["runtime_env"]["pip"]["packages"][2].startswith("torch==2.9")


@pytest.mark.parametrize(
    ("text", "said"),
    [("-e ./own\n", "name its own files (own)"), ("-c limits.txt\nnumpy\n", "Ray's pip gets one file")],
)
async def test_requirements_that_rays_pip_cannot_see_are_refused(tmp_path: Path, text: str, said: str) -> None:
    files = {"requirements.txt": text, "own/setup.py": "from setuptools import setup\n", "limits.txt": "numpy<3\n"}
    plan = plan_in(tmp_path, code_dir=code_in(tmp_path / "a", **files))
    with pytest.raises(LaunchError) as raised:
        await submitted(RayApi().runner(tmp_path), plan)
    assert said in str(raised.value)


# --- address and credentials ---


@pytest.mark.parametrize("address", ["", "ray://head:10001", "head:8265"])
async def test_address_that_is_no_dashboards_is_told_with_what_to_set(tmp_path: Path, address: str) -> None:
    with pytest.raises(AgentConfigError, match="RAY_ADDRESS") as raised:
        await RayApi().runner(tmp_path, RAY_ADDRESS=address).ping()
    assert "http://ray-head:8265" in str(raised.value)


@pytest.mark.parametrize("address", ["ray://me:hunter2@head:10001", "me:hunter2@head:8265"])
async def test_address_that_is_no_dashboards_is_told_without_its_password(tmp_path: Path, address: str) -> None:
    with pytest.raises(AgentConfigError, match=r"\*\*\*@head") as raised:
        await RayApi().runner(tmp_path, RAY_ADDRESS=address).ping()
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("status", [None, 400, 401, 502])
async def test_cluster_that_gives_nothing_is_told_without_the_password_of_its_address(status: int | None) -> None:
    seen = list[str]()

    def refuse(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        if status is None:
            raise httpx.ReadError("away", request=request)
        return httpx.Response(status)

    client = RayClient(lambda: {"RAY_ADDRESS": "http://me:hunter2@head:8265"}, httpx.MockTransport(refuse))
    with pytest.raises(UnreachableError, match="at http://\\*\\*\\*@head:8265") as raised:
        await client.get("/api/version")
    with pytest.raises(UnreachableError, match="at http://\\*\\*\\*@head:8265") as streamed:
        _ = [piece async for piece in client.stream("/api/v0/logs/file")]
    assert "hunter2" not in str(raised.value) + str(streamed.value)
    assert seen == ["Basic bWU6aHVudGVyMg=="] * 2


async def test_cluster_is_described_without_the_password_of_its_address(tmp_path: Path) -> None:
    runner = RayApi().runner(tmp_path, RAY_ADDRESS="http://me:hunter2@head:8265")
    assert [one.detail for one in await runner.diagnose({})][-1].startswith("Ray 2.60.0 at http://***@head:8265, ")


def test_token_is_found_where_ray_finds_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("from-file\n")
    path = str(tmp_path / "token")
    assert ray_headers({"RAY_AUTH_TOKEN_PATH": path}) == {"Authorization": "Bearer from-file"}
    assert ray_headers({"RAY_AUTH_TOKEN_PATH": path, "RAY_AUTH_TOKEN": "given"}) == {"Authorization": "Bearer given"}
    own = {"RAY_AUTH_TOKEN": "given", "RAY_JOB_HEADERS": '{"Authorization": "Basic x"}'}
    assert ray_headers(own) == {"Authorization": "Basic x"}


@pytest.mark.parametrize("value", ["secret-token", '{"Authorization": 1}', "[]"])
def test_headers_that_are_no_object_of_texts_are_refused_and_not_shown(value: str) -> None:
    with pytest.raises(AgentConfigError, match="must be a JSON object") as raised:
        ray_headers({"RAY_JOB_HEADERS": value})
    assert "secret-token" not in str(raised.value)


async def test_token_that_was_written_anew_is_read_again(tmp_path: Path) -> None:
    token, seen = tmp_path / "token", list[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, json={})

    environment = {"RAY_ADDRESS": "http://ray:8265", "RAY_AUTH_TOKEN_PATH": str(token)}
    client = RayClient(lambda: environment, httpx.MockTransport(answer))
    for value in ("old", "new"):
        token.write_text(value)
        await client.get("/api/version")
    assert seen == ["Bearer old", "Bearer new"]


async def test_certificate_that_is_not_trusted_says_which_variable_names_its_authority() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate", request=request)

    client = RayClient(lambda: {"RAY_ADDRESS": "https://ray:8265"}, httpx.MockTransport(refuse))
    with pytest.raises(UnreachableError, match="SSL_CERT_FILE"):
        await client.get("/api/version")
