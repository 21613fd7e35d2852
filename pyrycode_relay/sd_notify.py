"""Word to the service manager: that the relay is ready, reloads, stops, and is alive.

Source: ``sd_notify(3)`` and ``sd_watchdog_enabled(3)``. Other managers speak this protocol too.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import MutableMapping
from typing import Final

from twisted.internet.interfaces import IReactorTime

_SHARE: Final = 0.5
"""Share of the watchdog's time after which a sign of life is due, as systemd recommends."""


class Notifier:
    """Tells the service manager; without one, tells nobody.

    ``address`` is a UNIX socket's, ``watchdog`` the seconds in which a sign of life is expected,
    0 for none. Signs of life come from the reactor, so that a relay that is stuck gives none.
    """

    def __init__(self, address: str, watchdog: float, clock: IReactorTime) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = watchdog
        self._clock = clock

    @classmethod
    def from_environment(
        cls, environment: MutableMapping[str, str], pid: int, clock: IReactorTime
    ) -> Notifier:
        """Take what the service manager has left for process ``pid`` out of the environment."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", "") in {"", str(pid)}
        watchdog = int(microseconds) / 1e6 if meant and microseconds.isdecimal() else 0.0
        return cls(address, watchdog, clock)

    def ready(self) -> None:
        """Say that connections are served, and begin to give signs of life."""
        self._send("READY=1")
        if self._address and self._watchdog:
            self._live()

    def reloading(self) -> None:
        """Say that settings are being read again; `reloaded` has to follow."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """Say that the reload is over."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Say that the relay drains. Signs of life go on until the process ends."""
        self._send("STOPPING=1")

    def _live(self) -> None:
        self._send("WATCHDOG=1")
        self._clock.callLater(self._watchdog * _SHARE, self._live)

    def _send(self, state: str) -> None:
        # A manager that does not listen must not cost the relay its service.
        with contextlib.suppress(OSError):
            if self._address:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                    sock.setblocking(False)
                    sock.sendto(state.encode(), self._address)
