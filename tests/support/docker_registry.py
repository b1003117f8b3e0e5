"""A real registry on the loopback: Debian's `docker-registry`, with a folder of its own, with or without a password."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import httpx

from tests.support.ports import free_port
from tests.support.processes import ChildProcess

START_SECONDS = 30.0
USER = "launch"
PASSWORD = "of-the-tests"
# `htpasswd -nbB launch of-the-tests`: the registry takes nothing but bcrypt.
HTPASSWD = "launch:$2b$05$abcdefghijklmnopqrstuuuZed5HUPv8ETIZGTOl1S2yYkDII01Ei\n"


class RegistryMissingError(RuntimeError):
    """There is no `docker-registry` here."""


class DockerRegistry:
    """A registry, started on construction.

    Args:
        folder: Its own; made.
        has_password: Whether it asks for `USER` and `PASSWORD`.

    Raises:
        RegistryMissingError: The program is missing here.
    """

    def __init__(self, folder: Path, *, has_password: bool = False) -> None:
        program = shutil.which("docker-registry")
        if program is None:
            raise RegistryMissingError("no docker-registry here: run scripts/setup-test-machine.sh as root")
        folder.mkdir(parents=True)
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        (folder / "htpasswd").write_text(HTPASSWD)
        config = {
            "version": 0.1,
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host},
            **({"auth": {"htpasswd": {"realm": "tests", "path": str(folder / "htpasswd")}}} if has_password else {}),
        }
        (folder / "config.json").write_text(json.dumps(config))  # JSON is YAML.
        self._process = ChildProcess([program, "serve", str(folder / "config.json")], folder / "registry.log")
        self._process.wait_until(self._answers, START_SECONDS)

    def stop(self) -> None:
        """Stop it."""
        self._process.stop()

    def _answers(self) -> bool:
        try:
            return httpx.get(f"http://{self.host}/v2/", timeout=5).status_code in (200, 401)
        except httpx.TransportError:
            return False
