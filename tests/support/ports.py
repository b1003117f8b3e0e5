"""Free ports on the loopback, kept out of the range from which the kernel takes ports for clients.

A server that is stopped and started again on its port must find it free: nobody who merely opens a connection in
between can be given one of these.
"""

from __future__ import annotations

import random
import socket

# Below Linux's default range for outgoing connections (32768 to 60999), above the ports that services commonly use.
FIRST_PORT = 20_000
LAST_PORT = 31_999
ATTEMPTS = 200


def free_port() -> int:
    """Find a port of the loopback that nobody listens on.

    Returns:
        The port.

    Raises:
        RuntimeError: No free port was found in many tries.
    """
    for _ in range(ATTEMPTS):
        port = random.randint(FIRST_PORT, LAST_PORT)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError(
        f"no free port between {FIRST_PORT} and {LAST_PORT} in {ATTEMPTS} tries: something holds them all"
    )
