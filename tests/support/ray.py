"""A real Ray head of the tests' own: Ray in a virtual environment of its own, in a network that nobody else is in.

Ray keeps to no address that it is told (its store listens on all of them), so its head gets a network with nothing but
a loopback, and a socket in its folder leads into that. The head has its own process ids too: when the first of its
processes is killed, the kernel ends them all.

Called as a program (`python -m tests.support.ray`) it installs Ray, once a machine; where it cannot, the tests that
need it are skipped.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.processes import ChildProcess
from tests.support.relay import Relay

VERSION = "2.60.0"
#: A busy machine takes a minute and more to start it.
START_SECONDS = 280.0
#: The limits of Ray's own parts for each other's start, which are too narrow for a busy machine.
PATIENCE = {
    "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "240",
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_agent_register_timeout_ms": "180000",
    "RAY_worker_register_timeout_seconds": "180",
    "RAY_health_check_timeout_ms": "120000",
    "RAY_health_check_failure_threshold": "20",
}
#: The resource that `fill` takes away.
GATE = "gate"
_INSIDE = """
ip link set lo up
"$1" "$2" "$3/api.sock" &
shift 3
"$@"
"""
_FORWARD = Path(__file__).with_name("ray_socket.py")


class RayMissingError(RuntimeError):
    """Ray cannot be installed, or not be kept apart, on this machine."""


def ensure_ray() -> Path:
    """Install Ray if it is not there yet; safe when several processes do it at once.

    Returns:
        The folder of its programs.

    Raises:
        RayMissingError: It cannot be installed.
    """
    recipe = hashlib.sha256(f"ray[default]=={VERSION} {sys.version}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefect-launch-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"ray-{recipe}"
    with (cache / f"ray-{recipe}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / ".ready").exists():
            _install(folder)
            (folder / ".ready").touch()
    return folder / "bin"


def _install(folder: Path) -> None:
    import uv

    program = uv.find_uv_bin()
    python = str(folder / "bin" / "python")
    for command in (
        [program, "venv", "--clear", "--python", sys.executable, str(folder)],
        # Compiled now: a head that compiles while it starts is too slow for its own limits.
        [program, "pip", "install", "--python", python, "--compile-bytecode", f"ray[default]=={VERSION}"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RayMissingError(f"Ray cannot be installed: {done.stderr[-2_000:]}")


#: Ray gives its own node 30 s to start, whatever it is told: a machine that is too busy for that starts it again.
_TOO_BUSY = "timed out during startup"
_STARTS = 4


class RayHead:
    """A head, started on construction.

    Attributes:
        address: Of its dashboard and Jobs API.
        relay: The way to it.

    Raises:
        RayMissingError: Ray cannot be installed, or this machine lets nobody have a network of their own.
    """

    def __init__(self) -> None:
        if os.geteuid() or not shutil.which("unshare") or not shutil.which("ip"):
            raise RayMissingError("a Ray head of the tests' own needs root, unshare (util-linux) and ip (iproute2)")
        self._programs = ensure_ray()
        # Ray makes sockets in it, whose paths must be short.
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
        self.relay = Relay(str(self._folder / "api.sock"))
        self._thread = threading.Thread(target=self.relay.run, name="relay", daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self.relay.port}"
        self._process = self._start()

    def restart(self) -> None:
        """Kill the head with all that runs on it, and start another one at its address: it knows no job."""
        self._process.kill()
        self._process = self._start()

    def stop(self) -> None:
        """End it, and remove what it has left."""
        self._process.kill()
        self.relay.stop()
        self._thread.join()
        shutil.rmtree(self._folder, ignore_errors=True)

    def client(self) -> httpx.Client:
        """Make a client of its API; the caller closes it."""
        return httpx.Client(base_url=self.address, timeout=60.0, trust_env=False)

    @contextmanager
    def full(self) -> Iterator[None]:
        """Hold the gate for as long as the block lasts: no job that asks for a part of it starts."""
        with self.client() as client:
            name = f"blocker-{time.monotonic_ns()}"
            client.post(
                "/api/jobs/",
                json={"submission_id": name, "entrypoint": "exec sleep 600", "entrypoint_resources": {GATE: 1}},
            ).raise_for_status()
            self._until(client, name, "RUNNING")
            try:
                yield
            finally:
                client.post(f"/api/jobs/{name}/stop")
                self._until(client, name, "STOPPED")
                client.delete(f"/api/jobs/{name}")

    def _until(self, client: httpx.Client, name: str, status: str) -> None:
        due = time.monotonic() + 120.0
        while client.get(f"/api/jobs/{name}").json()["status"] != status:
            assert time.monotonic() < due, f"the job {name} is not {status}"
            time.sleep(0.2)

    def _start(self) -> ChildProcess:
        for _ in range(_STARTS - 1):
            try:
                return self._start_once()
            except RuntimeError as error:  # with the head's last words
                if _TOO_BUSY not in str(error):
                    raise
        return self._start_once()

    def _start_once(self) -> ChildProcess:
        (self._folder / "api.sock").unlink(missing_ok=True)
        environment = {
            **os.environ,
            **PATIENCE,
            "PATH": f"{self._programs}{os.pathsep}{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",
        }
        head = [
            *("ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--port=6379"),
            *("--dashboard-host=127.0.0.1", "--dashboard-port=8265", "--num-cpus=2", "--disable-usage-stats"),
            *("--object-store-memory=80000000", f'--resources={{"{GATE}": 1}}', f"--temp-dir={self._folder}"),
        ]
        apart = ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        process = ChildProcess(
            [*apart, "bash", "-c", _INSIDE, "ray-head", sys.executable, str(_FORWARD), str(self._folder), *head],
            self._folder / "head.log",
            environment=environment,
            stop_signal=signal.SIGKILL,
        )
        process.wait_until(self._is_ready, START_SECONDS)
        return process

    def _is_ready(self) -> bool:
        try:
            with self.client() as client:
                answer = client.get("/api/v0/nodes")
                return answer.status_code == 200 and '"ALIVE"' in answer.text
        except httpx.TransportError:
            return False


if __name__ == "__main__":
    try:
        ensure_ray()
    except RayMissingError as missing:
        sys.stderr.write(f"{missing}\n")
        is_required = os.environ.get("CI") == "true" or os.environ.get("LAUNCH_TEST_REQUIRE_ENGINE") == "1"
        sys.exit(1 if is_required else 0)
