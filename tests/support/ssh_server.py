"""OpenSSH's own server on the loopback, for the user that runs the tests, with keys that are made for one test."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from pathlib import Path

from tests.support.ports import free_port
from tests.support.processes import ChildProcess

START_SECONDS = 20.0


class SshMissingError(Exception):
    """There is no OpenSSH server on this machine."""


class SshServer:
    """Lets the user of the tests in by a key.

    Args:
        folder: of the test's own.
    """

    def __init__(self, folder: Path) -> None:
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if program is None:
            raise SshMissingError("OpenSSH's server (sshd) is not here; scripts/setup-test-machine.sh installs it.")
        folder.mkdir()
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # Where it locks itself in; made at boot otherwise.
        self.port = free_port()
        self.host_key = make_key(folder / "host_key")
        self.user_key = make_key(folder / "user_key")
        self._settings = folder / "sshd_config"
        self._settings.write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {self.host_key}\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.user_key}.pub\nStrictModes no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        )
        self._process = ChildProcess([program, "-D", "-e", "-f", str(self._settings)], folder / "sshd.log")
        self._process.wait_until(self._answers, START_SECONDS)

    def url(self, path: Path) -> str:
        """The address of a repository on this disk."""
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{path}"

    @property
    def known_host(self) -> str:
        """The line of this server in a file of known hosts."""
        return f"[127.0.0.1]:{self.port} {Path(f'{self.host_key}.pub').read_text()}"

    def stop(self) -> None:
        """End it."""
        self._process.stop()

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def make_key(path: Path) -> Path:
    """Make a key pair; return the private key's file."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path
