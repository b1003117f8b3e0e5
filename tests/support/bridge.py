"""A network bridge for a private Docker Engine, in a subnet that the machine does not use, gone without a trace.

The engine adds firewall rules for its bridge and leaves them there; `remove` takes them out with the bridge.
"""

from __future__ import annotations

import fcntl
import ipaddress
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

# Where one is taken that no route of the machine touches.
SUBNETS = ipaddress.ip_network("172.29.0.0/16")
TABLES = ("filter", "nat")


class Bridge:
    """One bridge, made on construction. Needs root.

    Args:
        path: Where `ip` and `iptables` are looked for, as in PATH.

    Attributes:
        name: Its name as an interface.
        address: Its address, with the length of its subnet's prefix.

    Raises:
        FileNotFoundError: `ip` or `iptables` is not there.
    """

    def __init__(self, path: str) -> None:
        self._ip = _find("ip", path)
        self._iptables = _find("iptables", path)
        self.name = f"lt{uuid4().hex[:10]}"  # an interface's name has at most 15 characters
        self._run(self._ip, "link", "add", "name", self.name, "type", "bridge")
        with _one_at_a_time():
            self.address = _free_address()
            self._run(self._ip, "address", "add", str(self.address), "dev", self.name)
            self._run(self._ip, "link", "set", self.name, "up")

    def remove(self) -> None:
        """Remove the bridge and every firewall rule that names it."""
        for table in TABLES:
            for rule in self._run(self._iptables, "-w", "-t", table, "-S").splitlines():
                words = shlex.split(rule)
                if words[0] == "-A" and self.name in words:
                    self._run(self._iptables, "-w", "-t", table, "-D", *words[1:])
        self._run(self._ip, "link", "delete", self.name)

    @staticmethod
    def _run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _find(program: str, path: str) -> str:
    found = shutil.which(program, path=path)
    if found is None:
        raise FileNotFoundError(f"no {program} here: run scripts/setup-test-machine.sh as root")
    return found


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """Let nobody else of this machine's tests choose a subnet until this one is routed."""
    with (Path(tempfile.gettempdir()) / "launch-test-bridge.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_address() -> ipaddress.IPv4Interface:
    """The bridge's address in a /24 that no route of the machine overlaps."""
    taken = [_network(line.split()) for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    for subnet in SUBNETS.subnets(new_prefix=24):
        if not any(subnet.overlaps(network) for network in taken if network.prefixlen):
            return ipaddress.IPv4Interface((next(subnet.hosts()), subnet.prefixlen))
    raise RuntimeError(f"every /24 of {SUBNETS} is routed on this machine: free one for the tests' bridge")


def _network(route: list[str]) -> ipaddress.IPv4Network:
    # Columns 1 and 7 are destination and mask, hexadecimal, in the machine's (little endian) byte order.
    destination, mask = (ipaddress.ip_address(bytes.fromhex(route[column])[::-1]) for column in (1, 7))
    return ipaddress.IPv4Network(f"{destination}/{mask}")
