"""The listeners: all are opened or none, and all are closed, over real sockets."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import cast

from twisted.internet import reactor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.protocol import Factory
from twisted.trial.unittest import TestCase

from pyrycode_relay import listeners
from pyrycode_relay.listeners import Listener, Listeners, listen
from pyrycode_relay.startup_error import StartupError

ANY = "127.0.0.1:0"


def factory() -> IProtocolFactory:
    """Return a factory whose connections do nothing."""
    made = Factory()
    made.noisy = False
    return cast(IProtocolFactory, made)


class Port:
    """Stands in for a listener that was opened elsewhere."""

    def getHost(self) -> IPv6Address:
        return IPv6Address("TCP", "::1", 443)


class ListenersTests(TestCase):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="listeners-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.opened: list[str] = []
        self.listeners = Listeners(self.listen)
        # If a test does not stop them, trial finds them in the reactor.
        self.addCleanup(self.listeners.stop)

    def listen(self, address: str, factory: IProtocolFactory) -> IListeningPort:
        """Listen as the relay does, and note where."""
        port = listen(reactor, address, factory)
        host = cast(IPv4Address, port.getHost())
        self.opened.append(f"{host.host}:{host.port}" if hasattr(host, "port") else str(host))
        return port

    def open(self, *addresses: str) -> None:
        """Open listeners on these addresses."""
        self.listeners.open([Listener(address, factory()) for address in addresses])

    def refusal(self, *addresses: str) -> str:
        """Return the sentence with which these addresses are refused."""
        return str(self.assertRaises(StartupError, self.open, *addresses))

    def connect(self, address: str) -> int:
        """Connect to an address; return 0 or the error's number."""
        host, _, port = address.rpartition(":")
        with socket.socket() as sock:
            return sock.connect_ex((host, int(port)))

    def test_open(self) -> None:
        """Listeners are opened in their order, and say where they listen."""
        path = self.directory / "socket"
        self.open(ANY, f"unix:{path}", ANY)
        first, unix, last = self.listeners.addresses
        self.assertEqual(unix, str(path))
        self.assertNotEqual(first, last)
        self.assertEqual([self.connect(first), self.connect(last)], [0, 0])

    def test_elsewhere(self) -> None:
        """Sockets may come from elsewhere; each address gets its own factory."""
        asked = []

        def find(address: str, factory: IProtocolFactory) -> IListeningPort:
            asked.append((address, factory))
            return cast(IListeningPort, Port())

        one, other = factory(), factory()
        found = Listeners(find)
        found.open([Listener(":443", one), Listener("fd:3", other)])
        self.assertEqual(asked, [(":443", one), ("fd:3", other)])
        self.assertEqual(found.addresses, ["[::1]:443", "[::1]:443"])

    def test_one_fails(self) -> None:
        """If one cannot be opened, those before it are closed at once, and those after it are
        not opened."""
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            self.assertEqual(
                self.refusal(ANY, ANY, address, ANY),
                f"Cannot listen on {address}: Address already in use.",
            )
        self.assertEqual(len(self.opened), 2)
        for address in self.opened:
            self.assertEqual(self.connect(address), errno.ECONNREFUSED)
        self.assertEqual(self.listeners.addresses, [])

    def test_later_one_fails(self) -> None:
        """Listeners that are open already are closed too."""
        self.open(ANY)
        [address] = self.listeners.addresses
        self.refusal(f"unix:{self.directory}/none/socket")
        self.assertEqual(self.connect(address), errno.ECONNREFUSED)

    def test_sentence(self) -> None:
        """A refusal names the address, the system's reason and, if there is one, the fix."""
        listener = Listener(f"unix:{self.directory}/none/socket", factory(), fix="; try another")
        error = self.assertRaises(StartupError, self.listeners.open, [listener])
        self.assertEqual(
            str(error),
            f"Cannot listen on {listener.address}: No such file or directory; try another.",
        )

    def test_slow_endpoint(self) -> None:
        """A kind of endpoint that does not answer at once is refused."""

        class Slow:
            def listen(self, _: object) -> Deferred[IListeningPort]:
                return Deferred()

        self.patch(listeners, "serverFromString", lambda *_: Slow())
        self.assertIn("did not answer at once", self.refusal(ANY))

    async def test_stop(self) -> None:
        """A stop closes all, and with them their UNIX sockets' files."""
        path = self.directory / "socket"
        self.open(ANY, f"unix:{path}")
        address, _ = self.listeners.addresses
        await self.listeners.stop()
        self.assertEqual(self.connect(address), errno.ECONNREFUSED)
        self.assertFalse(path.exists())
        self.assertEqual(self.listeners.addresses, [])

    async def test_stop_fails(self) -> None:
        """A listener that does not close cleanly is logged, and the others are closed."""
        path = self.directory / "socket"
        self.open(f"unix:{path}", ANY)
        _, address = self.listeners.addresses
        os.unlink(path)
        await self.listeners.stop()
        self.assertEqual(self.connect(address), errno.ECONNREFUSED)
        self.assertEqual(len(self.flushLoggedErrors(FileNotFoundError)), 1)

    def test_close(self) -> None:
        """A close is over at once, without the reactor."""
        self.open(ANY, ANY)
        addresses = self.listeners.addresses
        self.listeners.close()
        for address in addresses:
            self.assertEqual(self.connect(address), errno.ECONNREFUSED)

    async def test_again(self) -> None:
        """Closed listeners can be opened again."""
        self.open(ANY)
        await self.listeners.stop()
        self.open(ANY)
        self.assertEqual(len(self.listeners.addresses), 1)
