"""A blocking peer against the far end of a socket pair."""

from __future__ import annotations

import socket

from tests.peers.blocking import Gone, RawPeer
from tests.peers.frames import ABNORMAL, TEXT
from tests.unit.bench import Cases


class RawPeerTests(Cases):
    def setUp(self) -> None:
        near, self.far = socket.socketpair()
        for each in (near, self.far):
            each.settimeout(10)
            self.addCleanup(each.close)
        self.peer = RawPeer(near)

    def test_upgrade(self) -> None:
        """Frames right behind the answer are kept for later."""
        self.far.sendall(b"HTTP/1.1 101 x\r\nA: b\r\n\r\n\x81\x011")
        self.peer.upgrade("/", {})
        self.assertTrue(self.far.recv(65536).startswith(b"GET / HTTP/1.1\r\n"))
        self.assertEqual(self.peer.frame(), (TEXT, b"1"))

    def test_no_upgrade(self) -> None:
        """Any other answer is an error with its head."""
        self.far.sendall(b"HTTP/1.1 404 x\r\nA: b\r\n\r\n")
        error = self.assertRaises(AssertionError, self.peer.upgrade, "/", {})
        self.assertIn("404 x", str(error))

    def test_frames(self) -> None:
        """Frames come one by one until the end of the stream."""
        self.far.sendall(b"\x81\x011\x82\x00\x81")
        self.far.shutdown(socket.SHUT_WR)
        self.assertEqual([*self.peer.frames()], [(TEXT, b"1"), (2, b"")])

    def test_ending(self) -> None:
        """The ending is the close frame's code and reason, or a code for an end without one."""
        self.far.sendall(b"\x81\x011\x88\x04\x03\xe8ok")
        self.assertEqual(self.peer.ending(), (1000, "ok"))
        self.far.close()
        self.assertEqual(self.peer.ending(), (ABNORMAL, ""))

    def test_read_to_end(self) -> None:
        """Bytes that were read slowly are not lost, and the rest comes with them."""
        self.far.sendall(b"12345")
        self.peer.read_slowly(2, piece=1, pause=0)
        self.far.close()
        self.assertEqual(self.peer.read_to_end(), b"12345")

    def test_gone(self) -> None:
        """The end of the stream and a reset are told apart."""
        server = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(server.close)
        for reset in (False, True):
            peer = RawPeer(socket.create_connection(server.getsockname(), 10))
            far = RawPeer(server.accept()[0])
            if reset:
                far.reset()
            else:
                far.finish()
            self.assertIs(self.assertRaises(Gone, peer.frame).reset, reset)
            peer.release()
            far.sock.close()
