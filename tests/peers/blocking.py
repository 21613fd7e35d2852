"""A peer on a raw socket that blocks: it sends what a test wants, and reads when a test wants.

Its methods belong into threads, but in tests that have nothing else to run. Every operation has
the time-out of the socket.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Iterator

from tests.peers.frames import ABNORMAL, CLOSE, Frame, code_and_reason, take_frame
from tests.peers.requests import Headers, upgrade_request


class Gone(Exception):
    """The relay ended the connection: by FIN (``reset`` is false) or by RST."""

    def __init__(self, reset: bool) -> None:
        super().__init__("reset" if reset else "end of stream")
        self.reset = reset


class RawPeer:
    """A raw socket to the relay, with the bytes that were received and not read yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._unread = bytearray()

    # Bytes

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def _fill(self) -> None:
        """Receive something; raises `Gone` if there is nothing more."""
        try:
            data = self.sock.recv(1 << 18)
        except (ConnectionResetError, BrokenPipeError):
            raise Gone(reset=True) from None
        if not data:
            raise Gone(reset=False)
        self._unread += data

    def read_slowly(self, size: int, piece: int, pause: float) -> None:
        """Receive ``size`` bytes, ``piece`` bytes every ``pause`` seconds, to be read later."""
        while len(self._unread) < size:
            data = self.sock.recv(piece)
            if not data:
                raise Gone(reset=False)
            self._unread += data
            time.sleep(pause)  # the pace is the point: this is a slow reader

    def read_to_end(self) -> bytes:
        """Return everything up to the end of the connection, however it ends."""
        with contextlib.suppress(Gone):
            while True:
                self._fill()
        data = bytes(self._unread)
        self._unread.clear()
        return data

    # HTTP

    def head(self) -> tuple[int, bytes]:
        """Return the status and the head of an answer."""
        while (end := self._unread.find(b"\r\n\r\n")) < 0:
            self._fill()
        head = bytes(self._unread[: end + 4])
        del self._unread[: end + 4]
        return int(head.split(b" ", 2)[1]), head

    def upgrade(self, path: str, headers: Headers) -> None:
        """Make the connection a WebSocket."""
        self.write(upgrade_request(path, headers))
        status, head = self.head()
        if status != 101:
            raise AssertionError(f"no upgrade: {head!r}")

    # Frames

    def frame(self) -> Frame:
        """Return the next frame."""
        while (found := take_frame(self._unread)) is None:
            self._fill()
        return found

    def next_frame(self) -> Frame | None:
        """Return the next frame if all of it has been received."""
        return take_frame(self._unread)

    def frames(self) -> Iterator[Frame]:
        """Yield frames until the connection ends."""
        with contextlib.suppress(Gone):
            while True:
                yield self.frame()

    def ending(self) -> tuple[int, str]:
        """Return code and reason of the close frame that comes; `ABNORMAL` if none comes."""
        for opcode, payload in self.frames():
            if opcode == CLOSE:
                return code_and_reason(payload)
        return ABNORMAL, ""

    # Ends

    def finish(self) -> None:
        """Send a FIN; what the relay sends can still be read."""
        self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """End the connection with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def release(self) -> None:
        """Wake up the thread that blocks in one of the methods, and close."""
        with contextlib.suppress(OSError):  # it may not be connected any longer
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()
