"""TCP ports for servers that are about to start on loopback.

Owns the choice: below the ports that the system gives to outgoing connections.
Speaks port numbers.
Never promises that nobody else takes them meanwhile; only that no mere connection does.
"""

from __future__ import annotations

import random
import socket

_RANGE = range(20_000, 32_000)
"""Linux gives 32768 to 60999 to outgoing connections, which hold a port beyond their end."""


def free_ports(count: int) -> list[int]:
    """Different ports that were free a moment ago."""
    found: list[int] = []
    for port in random.sample(_RANGE, len(_RANGE)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports between {_RANGE.start} and {_RANGE.stop}")
