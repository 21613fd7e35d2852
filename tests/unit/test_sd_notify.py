"""Word to the service manager, over a real socket that stands for it."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from pathlib import Path

from twisted.internet.task import Clock

from pyrycode_relay.sd_notify import Notifier
from tests.unit.bench import Cases


class NotifierTests(Cases):
    def setUp(self) -> None:
        directory = Path(tempfile.mkdtemp(prefix="notify-"))
        self.addCleanup(shutil.rmtree, directory)
        self.path = str(directory / "socket")
        self.manager = self.listen(self.path)
        self.clock = Clock()

    def listen(self, address: str) -> socket.socket:
        """Be a service manager."""
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(manager.close)
        manager.bind(address)
        manager.setblocking(False)
        return manager

    def heard(self) -> list[str]:
        """Return what the manager has been told since it was asked last."""
        states = []
        while True:
            try:
                states.append(self.manager.recv(4096).decode())
            except BlockingIOError:
                return states

    def test_life(self) -> None:
        """Ready, reload and stop are in systemd's words. Without a watchdog that is all."""
        notifier = Notifier(self.path, self.clock, watchdog=0)
        notifier.ready()
        notifier.reloading()
        notifier.reloaded()
        notifier.stopping()
        ready, reloading, reloaded, stopping = self.heard()
        self.assertEqual([ready, reloaded, stopping], ["READY=1", "READY=1", "STOPPING=1"])
        first, second = reloading.splitlines()
        self.assertEqual(first, "RELOADING=1")
        name, _, microseconds = second.partition("=")
        self.assertEqual(name, "MONOTONIC_USEC")
        self.assertLess(abs(int(microseconds) / 1e6 - time.monotonic()), 60)
        self.clock.advance(1000)
        self.assertEqual(self.heard(), [])

    def test_watchdog(self) -> None:
        """Signs of life come twice in the watchdog's time, and go on during a drain."""
        notifier = Notifier(self.path, self.clock, watchdog=10)
        self.clock.advance(100)
        self.assertEqual(self.heard(), [])
        notifier.ready()
        self.assertEqual(self.heard(), ["READY=1", "WATCHDOG=1"])
        notifier.stopping()
        self.clock.pump([5, 4, 1])
        self.assertEqual(self.heard(), ["STOPPING=1", "WATCHDOG=1", "WATCHDOG=1"])

    def test_environment(self) -> None:
        """The manager's variables are taken out of the environment, so no child repeats them."""
        environment = {
            "NOTIFY_SOCKET": self.path,
            "WATCHDOG_USEC": "2000000",
            "WATCHDOG_PID": "7",
            "HOME": "/",
        }
        Notifier.from_environment(environment, 7, self.clock).ready()
        self.assertEqual(environment, {"HOME": "/"})
        self.assertEqual(self.heard(), ["READY=1", "WATCHDOG=1"])
        self.clock.advance(1)
        self.assertEqual(self.heard(), ["WATCHDOG=1"])

    def test_other_watchdogs(self) -> None:
        """A watchdog of another process, or one without a time, is ignored."""
        for more in ({"WATCHDOG_PID": "8"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "0"}):
            environment = {"NOTIFY_SOCKET": self.path, "WATCHDOG_USEC": "1000000", **more}
            Notifier.from_environment(environment, 7, self.clock).ready()
            self.clock.advance(1)
            self.assertEqual(self.heard(), ["READY=1"])

    def test_abstract(self) -> None:
        """An address with an at sign is in Linux's abstract name space."""
        name = f"relay-test-{os.getpid()}-{id(self)}"
        self.manager = self.listen("\0" + name)
        Notifier("@" + name, self.clock, watchdog=0).ready()
        self.assertEqual(self.heard(), ["READY=1"])

    def test_no_manager(self) -> None:
        """Without a manager, or with one that is gone, nothing happens; so do no timers run."""
        for address in ("", self.path + "-not", "/" + "x" * 300):
            notifier = Notifier(address, self.clock, watchdog=0 if address else 1)
            notifier.ready()
            notifier.stopping()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(self.heard(), [])

    def test_deaf_manager(self) -> None:
        """A manager that does not read holds nobody up."""
        notifier = Notifier(self.path, self.clock, watchdog=0)
        for _ in range(1000):
            notifier.reloaded()
        self.assertLess(len(self.heard()), 1000)
