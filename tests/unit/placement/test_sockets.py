"""The sockets that the parent of several workers opens, and that its workers share."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path
from unittest import mock

from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactor
from twisted.python.failure import Failure

from pyrycode_relay.config.settings import Settings
from pyrycode_relay.listeners import Purpose
from pyrycode_relay.placement.sockets import LinkSockets, SharedUnixPort, remove_link, wanted
from pyrycode_relay.startup_error import StartupError
from tests.unit.bench import Cases


class FolderCase(Cases):
    """Has a folder of its own for temporary files."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory(prefix="t")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)


class LinkSocketsTests(FolderCase):
    """The sockets on which workers reach each other."""

    def make(self, folder: Path) -> LinkSockets:
        """Make the sockets of two workers."""
        with mock.patch.dict(os.environ, {"RUNTIME_DIRECTORY": str(folder)}):
            return LinkSockets(2)

    def test_private(self) -> None:
        """Only the relay's user can open the sockets; nothing is left of them at the end."""
        links = self.make(self.folder)
        for index, path in enumerate(links.paths):
            self.assertEqual(0o600, stat.S_IMODE(os.stat(path).st_mode))
            self.assertEqual(0o700, stat.S_IMODE(os.stat(Path(path).parent).st_mode))
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.connect(path)
            self.assertGreater(links.fileno(index), 2)
        links.remove()
        self.assertEqual([], [*self.folder.iterdir()])

    def test_no_folder(self) -> None:
        """Without a folder to write, one sentence says what to set."""
        with self.assertRaisesRegex(StartupError, "No such file.*set TMPDIR"):
            self.make(self.folder / "none")

    def test_long_path(self) -> None:
        """A path that is too long for a socket leaves nothing behind."""
        long = self.folder / ("x" * 90)
        long.mkdir()
        with self.assertRaisesRegex(StartupError, "too long"):
            self.make(long)
        self.assertEqual([], [*long.iterdir()])

    def test_without_the_parent(self) -> None:
        """Workers without a parent remove their sockets, and the last one the folder."""
        links = self.make(self.folder)
        self.addCleanup(links.remove)
        remove_link(links.paths[0])
        self.assertTrue(Path(links.paths[1]).exists())
        remove_link(links.paths[1])
        self.assertEqual([], [*self.folder.iterdir()])


class SharedUnixPortTests(FolderCase):
    """A listener on a UNIX socket that others share."""

    def test_file(self) -> None:
        """It changes neither the permissions of the socket's file, nor removes it at its end."""
        path = self.folder / "s"
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(path))
            path.chmod(0o660)
            sock.listen()
            port = SharedUnixPort.adopt(MemoryReactor(), sock.fileno(), Factory())
            port.connectionLost(Failure(RuntimeError()))
            self.assertEqual(0o660, stat.S_IMODE(path.stat().st_mode))
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(str(path))


class WantedTests(Cases):
    """The addresses to listen on."""

    def test_order(self) -> None:
        """They stand in the order in which a relay opens them."""
        settings = Settings((":1", ":2"), tls_listen=(":3",), acme_listen=(":4",))
        expected = [(":1", Purpose.PLAIN), (":2", Purpose.PLAIN)]
        expected += [(":3", Purpose.TLS), (":4", Purpose.CHALLENGES)]
        self.assertEqual(expected, wanted(settings))
