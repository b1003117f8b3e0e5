"""Vertex AI from the queue to the end: a real server, agents as processes, Google's own client for the identity, and a
fake of Google Cloud on the loopback that runs the jobs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.live import REPORT_LOSS, Site, until
from tests.support.vertex import BUCKET, PROJECT, REGION, VertexCloud, throttled

if TYPE_CHECKING:
    from tests.support.prefect_server import PrefectServerProcess
    from tests.support.processes import ChildProcess

SPEC = {
    "workerPoolSpecs": [
        {"machineSpec": {"machineType": "n1-standard-4"}, "containerSpec": {"imageUri": "${image_uri}"}},
    ],
    "stagingBucket": f"gs://{BUCKET}",
}


@pytest.fixture
def cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VertexCloud]:
    """Google Cloud, and this machine's login there: the key of a service account."""
    cloud = VertexCloud(tmp_path / "google", list_lag=1.0, log_lag=1.0)
    with cloud.served() as address:
        for service in ("AIPLATFORM", "LOGGING", "STORAGE"):
            monkeypatch.setenv(f"CLOUDSDK_API_ENDPOINT_OVERRIDES_{service}", address)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        login = {"type": "service_account", "client_email": "agent@tests", "private_key": key.decode()}
        file = tmp_path / "key.json"
        file.write_text(json.dumps({**login, "project_id": PROJECT, "token_uri": f"{address}/token"}))
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
        yield cloud
        cloud.close()


@pytest.fixture
def site(prefect_server: PrefectServerProcess, cloud: VertexCloud, tmp_path: Path, unique: str) -> Site:
    """A queue of custom jobs of the test's own."""
    (tmp_path / "agent.yaml").write_text(f"clouds: {{gcp: {{region: {REGION}}}}}\n")
    config = {"spec": SPEC, "env": {"FOLDER": str(tmp_path)}}
    return Site(prefect_server.api_url, tmp_path, unique, resource="gcp-vertex", config=config)


def program(script: str) -> dict[str, Any]:
    """Return the spec of an item that runs a script of the shell."""
    image = {"docker_image": "127.0.0.1:9/train:1", "pin": False}
    return {"docker": image, "overrides": {"entry_point": ["sh", "-c", script]}}


@pytest.mark.timeout(300)
def test_items_are_run_stopped_and_adopted_after_their_agent_was_killed(
    site: Site, cloud: VertexCloud, agents: list[ChildProcess]
) -> None:
    """Each job runs once, and its log has no gap and no repeat, though calls are throttled, and an answer is lost."""
    config = ("-c", str(site.folder / "agent.yaml"))
    outputs = """printf '{"accuracy": 0.9}' > "$LAUNCH_OUTPUT_DIR/outputs.json"; echo "$WANDB_NAME" """
    wait = 'echo first; while [ ! -e "$FOLDER/go" ]; do sleep 0.1; done; echo second'
    short, waiting, stopped, failing = site.add(
        {**program(REPORT_LOSS + outputs), "name": "one"},
        program(wait),
        program("echo up; sleep 600"),
        {**program("echo no; exit 7"), "retries": 0},
    )
    cloud.faults += [lambda request: throttled() if "customJobs" in request.url.path else None for _ in range(3)]
    cloud.lose_next_create()
    agents.append(site.agent_process("box", *config, jobs=4))
    until(lambda: "first" in site.log(waiting) and "up" in site.log(stopped))
    agents[0].kill()
    agents.append(site.agent_process("box", *config, jobs=4))
    (site.folder / "go").touch()
    stopped.cancel()
    for run in (short, waiting, stopped, failing):
        until(lambda run=run: run.item.is_terminal)  # type: ignore[misc]

    ends = [site.states(run)[-1] for run in (short, waiting, stopped, failing)]
    assert ends == ["Completed", "Completed", "Cancelled", "Failed"], agents[1].tail()
    assert [site.log(run).splitlines() for run in (short, waiting, failing)] == [["one"], ["first", "second"], ["no"]]
    assert (short.outputs(), short.metrics().value("loss")) == ({"accuracy": 0.9}, 0.5)
    assert "exited with a non-zero status of 7" in failing.message
    assert len(cloud.made) == len(set(cloud.made)) == 4
    until(lambda: not cloud.jobs)  # What has ended is removed there.


def test_check_of_an_agent_says_who_it_is_and_what_it_may(site: Site) -> None:
    done = site.run("agent", "check", "-q", site.name, "-c", str(site.folder / "agent.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"project {PROJECT}, region {REGION}, as agent@tests" in done.stdout
    assert "staging bucket" in done.stdout
