"""What a process tells its keeper: that it is ready, alive, stopping.

Owns both ends of systemd's notification protocol (sd_notify(3)); the only door to sdnotify.
Speaks datagrams such as READY=1 on the socket that NOTIFY_SOCKET names.
Never says that a process lives which makes no progress: who calls `alive` has just seen some.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Mapping
from types import TracebackType

from sdnotify import SystemdNotifier

READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"
USEC_A_SECOND = 1_000_000


class Notifier:
    """The telling end; silent where nobody keeps this process.

    Attributes:
        every_s: how often `alive` is wanted: a third of the watchdog's time, or 1 s without one.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._systemd = SystemdNotifier()
        watchdog_usec = int(environment.get("WATCHDOG_USEC", "0"))
        self.every_s = watchdog_usec / USEC_A_SECOND / 3 if watchdog_usec else 1.0

    def ready(self, status: str) -> None:
        """The process does its work from now on; `status` is shown by `systemctl status`."""
        self._systemd.notify(f"{READY}\nSTATUS={status}")

    def alive(self) -> None:
        """Progress was made just now."""
        self._systemd.notify(ALIVE)

    def stopping(self) -> None:
        """The process drains and ends."""
        self._systemd.notify(STOPPING)


class Channel:
    """The hearing end, for one child; a socket in the abstract name space, which leaves no file."""

    def __init__(self, watchdog_s: float) -> None:
        self._name = f"anatomynode-{os.getpid()}-{secrets.token_hex(8)}"
        self._watchdog_s = watchdog_s
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(f"\0{self._name}")

    def environment(self) -> dict[str, str]:
        """The variables through which the child finds this channel."""
        return {
            "NOTIFY_SOCKET": f"@{self._name}",
            "WATCHDOG_USEC": str(int(self._watchdog_s * USEC_A_SECOND)),
        }

    def heard(self) -> frozenset[str]:
        """What the child has said since the last call, without waiting."""
        words: set[str] = set()
        while True:
            try:
                words.update(self._socket.recv(4096).decode(errors="replace").splitlines())
            except BlockingIOError:
                return frozenset(words)

    def __enter__(self) -> Channel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()
