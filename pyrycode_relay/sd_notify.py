"""Notifies the service manager that the relay is ready, reloads, stops, and is alive.

Source: ``sd_notify(3)`` and ``sd_watchdog_enabled(3)``. Other managers use this protocol too.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import MutableMapping
from typing import Final

from twisted.internet.interfaces import IReactorTime

_SHARE: Final = 0.5
"""Share of the watchdog's time between two signs of life, as systemd recommends."""


class Notifier:
    """Notifies the service manager, if there is one.

    The reactor sends the signs of life, so a relay that hangs sends none.

    Args:
        address: The manager's UNIX socket; empty if there is no manager.
        clock: Times the signs of life.
        watchdog: Seconds in which the manager expects a sign of life; 0 if it expects none.

    """

    def __init__(self, address: str, clock: IReactorTime, *, watchdog: float) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog = watchdog
        self._clock = clock

    @classmethod
    def from_environment(
        cls, environment: MutableMapping[str, str], pid: int, clock: IReactorTime
    ) -> Notifier:
        """Take the service manager's variables for process ``pid`` out of the environment."""
        address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        meant = environment.pop("WATCHDOG_PID", "") in {"", str(pid)}
        watchdog = int(microseconds) / 1e6 if meant and microseconds.isdecimal() else 0.0
        return cls(address, clock, watchdog=watchdog)

    def ready(self) -> None:
        """Report that connections are served, and begin to send signs of life."""
        self._send("READY=1")
        if self._address and self._watchdog:
            self._live()

    def reloading(self) -> None:
        """Report that a reload begins; `reloaded` must follow."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def reloaded(self) -> None:
        """Report that the reload is over."""
        self._send("READY=1")

    def stopping(self) -> None:
        """Report that the relay drains. Signs of life continue until the process ends."""
        self._send("STOPPING=1")

    def _live(self) -> None:
        self._send("WATCHDOG=1")
        self._clock.callLater(self._watchdog * _SHARE, self._live)

    def _send(self, state: str) -> None:
        # A manager that does not read must not stop the relay.
        with contextlib.suppress(OSError):
            if self._address:
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                    sock.setblocking(False)
                    sock.sendto(state.encode(), self._address)
