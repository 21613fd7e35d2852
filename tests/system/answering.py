"""Peers in a process of their own, which a test can stop: they read everything and answer pings.

The argument is a JSON array of what `Answering` is made of. The process prints a line when all
its peers are connected, and ends with its standard input.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import sys
import threading
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from tests.peers.blocking import Gone, RawPeer
from tests.peers.frames import PING, PONG, frame, text_frame
from tests.peers.requests import binary_fields, phone_fields

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Answering:
    """One peer."""

    port: int
    server_id: str
    is_binary: bool = False
    ca: str = ""
    """The certificate that a server on TLS has; without it there is no TLS."""
    receive_buffer: int = 0
    """0: the kernel's choice."""
    hello: str = ""
    """JSON that a phone sends at first."""
    pace: float = 0.0
    """Seconds between two reads of `PIECE` bytes; 0: it reads what there is."""

    def dial(self) -> RawPeer:
        """Connect, and send nothing but TLS."""
        sock = socket.socket()
        if self.receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        sock.connect(("127.0.0.1", self.port))
        if self.ca:
            sock = _context(self.ca).wrap_socket(sock)
        return RawPeer(sock) if not self.pace else SlowPeer(sock, self.pace)

    def connect(self) -> RawPeer:
        """Connect, become a WebSocket, and say hello."""
        peer = self.dial()
        fields = (binary_fields if self.is_binary else phone_fields)(self.server_id)
        peer.upgrade("/v2/server" if self.is_binary else "/v1/client", fields)
        if self.hello:
            peer.write(text_frame(self.hello.encode()))
        return peer


@cache
def _context(ca: str) -> ssl.SSLContext:
    """Return a context that trusts one certificate, whatever name it has."""
    context = ssl.create_default_context(cafile=ca)
    context.check_hostname = False
    return context


class SlowPeer(RawPeer):
    """A peer that reads at a low rate."""

    PIECE = 8192

    def __init__(self, sock: socket.socket, pace: float) -> None:
        super().__init__(sock)
        self._pace = pace

    def _fill(self) -> None:
        data = self.sock.recv(self.PIECE)
        if not data:
            raise Gone(reset=False)
        self._unread += data
        time.sleep(self._pace)  # the pace is the point


def answer(peer: RawPeer) -> None:
    """Read, and answer pings, until the connection ends."""
    with contextlib.suppress(Gone, OSError):
        while True:
            opcode, payload = peer.frame()
            if opcode == PING:
                peer.write(frame(PONG, payload))


def argument(peers: list[Answering]) -> str:
    """Return the program's argument for these peers."""
    return json.dumps([asdict(each) for each in peers])


def main() -> None:
    """Be the peers."""
    peers = [Answering(**each).connect() for each in json.loads(sys.argv[1])]
    for each in peers:
        threading.Thread(target=answer, args=(each,), daemon=True).start()
    print("connected", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
