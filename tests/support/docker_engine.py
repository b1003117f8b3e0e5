"""The Docker Engine of the tests: one that answers already, or a private one started and removed by them.

A private engine has its own socket, data, bridge and subnet, so that it and others on the machine leave each other
alone. It needs root. The storage driver is the engine's own choice (overlay2, or vfs where overlays do not nest).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import docker
from docker.errors import DockerException

from tests.support.bridge import Bridge
from tests.support.processes import ChildProcess
from tests.support.small_disk import mount_small_disk

START_SECONDS = 60.0
PING_SECONDS = 5
_SBIN_TOO = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


class EngineMissingError(RuntimeError):
    """No Docker Engine answers, and none can be started here."""


class DockerEngine:
    """A Docker Engine and the way to it.

    Args:
        host: Its address, as in DOCKER_HOST.
        private: The engine behind it when the tests started it.
    """

    def __init__(self, host: str, private: PrivateEngine | None = None) -> None:
        self.host = host
        self._private = private

    @classmethod
    def find_or_start(cls) -> DockerEngine:
        """Take the machine's engine when one answers; start a private one otherwise.

        Returns:
            An engine that answers.

        Raises:
            EngineMissingError: There is none, and none can be started; the message says what to do.
        """
        host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
        if _answers(host):
            return cls(host)
        private = PrivateEngine()
        return cls(private.host, private)

    def client(self) -> docker.DockerClient:
        """Make a client of this engine.

        Returns:
            The client; the caller closes it.
        """
        return docker.DockerClient(base_url=self.host, timeout=120)

    def running_containers(self) -> list[str]:
        """Names of the containers that run on a private engine; nothing is known of others' engines.

        Returns:
            The names.
        """
        if self._private is None:
            return []
        client = self.client()
        try:
            return [container.name for container in client.containers.list()]
        finally:
            client.close()

    def stop(self) -> None:
        """Stop the engine and remove its data when the tests started it."""
        if self._private:
            self._private.stop()


class PrivateEngine:
    """A `dockerd` of the tests' own, started on construction.

    Args:
        disk_mebibytes: Keep its data on a disk of its own, of so many MiB, in memory.

    Attributes:
        data: The folder of its data.
        address: IP address of its bridge: of this machine, as its containers see it.
        subnet: That of its containers.

    Raises:
        EngineMissingError: Not root, or a program is missing here.
    """

    def __init__(self, *, disk_mebibytes: int | None = None) -> None:
        dockerd = shutil.which("dockerd", path=_SBIN_TOO)
        if os.geteuid() or not dockerd:
            raise EngineMissingError(
                "no Docker Engine answers, and a private one needs root and dockerd:"
                " start Docker, set DOCKER_HOST, or run scripts/setup-test-machine.sh as root"
            )
        try:
            self._bridge = Bridge(_SBIN_TOO)
        except FileNotFoundError as missing:
            raise EngineMissingError(str(missing)) from missing
        self.address, self.subnet = str(self._bridge.address.ip), str(self._bridge.address.network)
        self._folder = Path(tempfile.mkdtemp(prefix="launch-test-docker-"))
        self.host = f"unix://{self._folder}/docker.sock"
        self.data = self._folder / "data"
        if disk_mebibytes is not None:
            mount_small_disk(self.data, disk_mebibytes)
        try:
            self._process = self._start(dockerd)
        except RuntimeError:
            self._bridge.remove()
            raise

    def stop(self) -> None:
        """Stop the engine and remove its bridge, mounts and data."""
        self._process.stop()
        self._bridge.remove()
        for mount in mounts_below(self._folder):
            subprocess.run(["umount", "--lazy", mount], check=True)
        shutil.rmtree(self._folder)

    def _start(self, dockerd: str) -> ChildProcess:
        command = [
            dockerd,
            *("--host", self.host),
            *("--data-root", str(self.data)),
            *("--exec-root", str(self._folder / "exec")),
            *("--pidfile", str(self._folder / "docker.pid")),
            *("--bridge", self._bridge.name),
            # No file of the machine's own engine has a say here.
            *("--config-file", str(self._folder / "daemon.json")),
        ]
        (self._folder / "daemon.json").write_text("{}\n")
        environment = {**os.environ, "PATH": _SBIN_TOO}
        process = ChildProcess(command, self._folder / "dockerd.log", environment=environment)
        process.wait_until(lambda: _answers(self.host), START_SECONDS)
        return process


def _answers(host: str) -> bool:
    try:
        client = docker.DockerClient(base_url=host, timeout=PING_SECONDS)
    except DockerException:
        return False
    try:
        return bool(client.ping())
    except (DockerException, OSError):
        return False
    finally:
        client.close()


def mounts_below(folder: Path) -> list[str]:
    """Mount points inside a folder, the innermost first.

    Args:
        folder: The folder.

    Returns:
        Their paths.
    """
    points = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    return sorted((point for point in points if point.startswith(f"{folder}/")), key=len, reverse=True)
