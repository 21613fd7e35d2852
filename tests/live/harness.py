"""The set-up of the live tests: a relay in this process, and blocking peers in threads.

The relay listens on the real reactor, on loopback TCP and on a UNIX socket. A `Peer` is a
WebSocket client on a raw blocking socket, so that a test decides about every byte: what is read
and when, and how the socket ends. Nothing here shares code with the relay's own protocol stack.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar, cast

from twisted.internet import reactor
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThread
from twisted.trial.unittest import TestCase

from pyrycode_relay.config.settings import Settings
from pyrycode_relay.events import Event
from pyrycode_relay.limits import Limits
from pyrycode_relay.service import RelayService
from pyrycode_relay.websocket.connection import RelayProtocol
from pyrycode_relay.websocket.poller import Poller

T = TypeVar("T")

CONTINUATION, TEXT, CLOSE, PING, PONG = 0, 1, 8, 9, 10

DEADLINE: Final = 15.0
"""Seconds after which a peer's blocking call, or a condition, is given up; far above any need."""

_POLL: Final = 0.01
_ZERO_MASK: Final = bytes(4)
"""A masking key that changes nothing: legal, and cheap for a sender of many megabytes."""


class Frame(NamedTuple):
    """A frame that a peer has read."""

    opcode: int
    payload: bytes


class Gone(Exception):
    """The relay ended the connection: by FIN (``reset`` is false) or by RST."""

    def __init__(self, reset: bool) -> None:
        super().__init__("reset" if reset else "end of stream")
        self.reset = reset


def request_head(path: str, headers: dict[str, str], method: str = "GET") -> bytes:
    """Return a WebSocket handshake request."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: relay.test",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def binary_headers(server_id: str) -> dict[str, str]:
    """Return what a binary sends along."""
    return {
        "X-Pyrycode-Server": server_id,
        "X-Pyrycode-Version": "1.2.3",
        "User-Agent": "pyry-test",
    }


def phone_headers(server_id: str, token: str = "t0ken") -> dict[str, str]:
    """Return what a v1 phone sends along."""
    return {
        "X-Pyrycode-Server": server_id,
        "X-Pyrycode-Token": token,
        "User-Agent": "phone-test",
    }


def encode_frame(payload: bytes, opcode: int = TEXT, final: bool = True) -> bytes:
    """Return a masked frame."""
    first, size = opcode | (0x80 if final else 0), len(payload)
    if size <= 125:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size <= 0xFFFF:
        head = struct.pack("!BBH", first, 0xFE, size)
    else:
        head = struct.pack("!BBQ", first, 0xFF, size)
    return head + _ZERO_MASK + payload


def envelope(conn_id: str, frame: bytes) -> bytes:
    """Return a binary's data envelope around ``frame``."""
    return b'{"conn_id":%s,"frame":%s}' % (json.dumps(conn_id).encode(), frame)


def directive(conn_id: str, code: int) -> bytes:
    """Return a binary's close directive."""
    return json.dumps({"conn_id": conn_id, "close_code": code}).encode()


def numbered(sender: str, number: int, size: int = 0) -> bytes:
    """Return a JSON frame that says who sent it and as which, at least ``size`` bytes long."""
    bare = json.dumps({"from": sender, "n": number, "pad": ""}).encode()
    return bare[:-2] + b"x" * (size - len(bare)) + bare[-2:]


class Peer:
    """A blocking WebSocket client on a raw socket; its methods belong into threads."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.conn_id = ""
        self._buffer = bytearray()

    # Bytes

    def write(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.sock.sendall(data)

    def _fill(self) -> None:
        try:
            data = self.sock.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            raise Gone(reset=True) from None
        if not data:
            raise Gone(reset=False)
        self._buffer += data

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def read_slowly(self, size: int, piece: int, pause: float) -> None:
        """Bring ``size`` bytes into the buffer, ``piece`` bytes every ``pause`` seconds."""
        while len(self._buffer) < size:
            data = self.sock.recv(piece)
            if not data:
                raise Gone(reset=False)
            self._buffer += data
            time.sleep(pause)  # the pace is the point: this is a slow reader

    def read_to_end(self) -> bytes:
        """Return everything up to the end of the connection, however it ends."""
        with contextlib.suppress(Gone):
            while True:
                self._fill()
        return self._take(len(self._buffer))

    # HTTP

    def head(self) -> tuple[int, bytes]:
        """Return the status and the head of an answer."""
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head = self._take(self._buffer.index(b"\r\n\r\n") + 4)
        return int(head.split(b" ", 2)[1]), head

    def upgrade(self, path: str, headers: dict[str, str]) -> None:
        """Make the connection a WebSocket."""
        self.write(request_head(path, headers))
        status, head = self.head()
        if status != 101:
            raise AssertionError(f"no upgrade: {head!r}")

    # Frames and messages

    def send(self, payload: bytes, opcode: int = TEXT, final: bool = True) -> None:
        """Send a frame, by default one whole message."""
        self.write(encode_frame(payload, opcode, final))

    def frame(self) -> Frame:
        """Return the next frame."""
        first, second = self._take(2)
        size = second & 0x7F
        if size == 126:
            size = int.from_bytes(self._take(2), "big")
        elif size == 127:
            size = int.from_bytes(self._take(8), "big")
        return Frame(first & 0x0F, self._take(size))

    def message(self) -> bytes:
        """Return the next message; pings on the way are answered, a close is an error."""
        while True:
            opcode, payload = self.frame()
            if opcode == TEXT:
                return payload
            if opcode == PING:
                self.send(payload, PONG)
            elif opcode == CLOSE:
                raise AssertionError(f"closed instead of a message: {payload!r}")

    def messages(self, count: int) -> list[bytes]:
        """Return the next ``count`` messages."""
        return [self.message() for _ in range(count)]

    def envelope(self) -> dict[str, Any]:
        """Return the next message, an envelope, as an object."""
        return cast(dict[str, Any], json.loads(self.message()))

    def closing(self, answer: bool = True) -> tuple[list[bytes], int, str]:
        """Return the messages up to a close frame, and its code and reason; answer it or not."""
        before = []
        while True:
            opcode, payload = self.frame()
            if opcode == TEXT:
                before.append(payload)
            elif opcode == CLOSE:
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                if answer:
                    # The relay may have gone already.
                    with contextlib.suppress(OSError):
                        self.send(payload[:2], CLOSE)
                return before, code, payload[2:].decode()

    def closed_with(self) -> tuple[int, str]:
        """Return the code and the reason of the close frame that comes next."""
        return self.closing()[1:]

    def say_close(self, code: int | None) -> None:
        """Send a close frame, an empty one for None."""
        self.send(b"" if code is None else struct.pack("!H", code), CLOSE)

    # Ends

    def reset(self) -> None:
        """End the connection with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def finish(self) -> None:
        """Send a FIN; what the relay sends can still be read."""
        self.sock.shutdown(socket.SHUT_WR)

    def release(self) -> None:
        """Wake up whoever blocks in one of the methods, and close."""
        with contextlib.suppress(OSError):  # it may not be connected any more
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


class Recorder:
    """An observer that keeps what it saw."""

    def __init__(self) -> None:
        self.events: list[tuple[Event, dict[str, Any]]] = []

    def saw(self, event: Event, **fields: object) -> None:
        """Keep an event."""
        self.events.append((event, fields))

    def of(self, event: Event) -> list[dict[str, Any]]:
        """Return the fields of all events of one kind, in order."""
        return [fields for seen, fields in self.events if seen is event]


class Relay:
    """A running relay, and where it is reached."""

    def __init__(self, service: RelayService, recorder: Recorder, folder: str) -> None:
        self.service = service
        self.recorder = recorder
        self.folder = folder
        self._port = cast(Any, service.listeners.ports[0].getHost()).port

    @property
    def path(self) -> str:
        """The UNIX socket."""
        return f"{self.folder}/socket"

    @property
    def address(self) -> tuple[str, int]:
        """The TCP address."""
        return "127.0.0.1", self._port

    @property
    def uri(self) -> str:
        """What a WebSocket library is told."""
        return f"ws://127.0.0.1:{self._port}"

    def counts(self) -> tuple[int, int]:
        """Return how many binaries and phones there are, as the health answer has it."""
        health = self.service.health()
        return cast(int, health["connected_binaries"]), cast(int, health["connected_phones"])

    @property
    def queued(self) -> int:
        """Bytes in all queues."""
        return self.service.context.memory_budget.total

    @property
    def queued_at_most(self) -> int:
        """The most bytes that were ever in all queues."""
        return self.service.context.memory_budget.highest

    def dial(self, receive_buffer: int = 0, unix: bool = False) -> Peer:
        """Return a connected peer that has sent nothing yet; belongs into a thread."""
        family = socket.AF_UNIX if unix else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if not unix:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(DEADLINE)
        sock.connect(self.path if unix else self.address)
        return Peer(sock)


def server_ends() -> Iterator[RelayProtocol]:
    """Yield the relay's ends of all connections that it reads at the moment."""
    pollers = (each for each in cast(Any, reactor).getReaders() if isinstance(each, Poller))
    for reader in (each for poller in pollers for each in poller.getReaders()):
        protocol = getattr(reader, "protocol", None)
        if isinstance(protocol, RelayProtocol):
            yield protocol


def server_end(peer: Peer) -> RelayProtocol:
    """Return the relay's end of a TCP peer's connection, which the relay must be reading."""
    port = peer.sock.getsockname()[1]
    for protocol in server_ends():
        if cast(Any, protocol.transport).getPeer().port == port:
            return protocol
    raise AssertionError("the relay does not read this peer")


def resident_bytes() -> int:
    """Return how much memory this process has."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


QUICK: Final = {
    "grace": 10.0,
    "close_timeout": 3.0,
    "drain_timeout": 6.0,
    "probe_timeout": 5.0,
    "upgrade_rate": 0.0,
    "max_connections_per_address": 0,
}
"""Shorter times than by default, still far longer than what takes place under them, and no bounds
for an address: all peers here have the same."""


class RelayCase(TestCase):
    """A test with relays and peers; afterwards both are gone, and so are their threads."""

    timeout = 90
    unix = False
    """Whether peers come over the UNIX socket."""

    def setUp(self) -> None:
        """Begin with nothing."""
        self._peers: list[Peer] = []
        self._threads: list[Deferred[Any]] = []
        self._relays: list[Relay] = []
        self.stop = threading.Event()
        """Set at the end of the test: what runs in a thread looks at it now and then."""
        self.addCleanup(self._end)

    async def _end(self) -> None:
        self.stop.set()
        for peer in self._peers:
            peer.release()
        await DeferredList(self._threads, consumeErrors=True)
        for relay in self._relays:
            if relay.service.running:
                await relay.service.stopService()
            shutil.rmtree(relay.folder)

    def relay(self, **limits: object) -> Relay:
        """Start a relay with ``limits`` in place of the quick ones."""
        folder = tempfile.mkdtemp(prefix="relay")
        recorder = Recorder()
        settings = Settings(
            insecure_listen=("tcp:0:interface=127.0.0.1", f"unix:{folder}/socket"),
            admin_listen="",
            limits=Limits(**cast(dict[str, Any], QUICK | limits)),
        )
        service = RelayService(reactor, settings, [recorder])
        service.startService()
        relay = Relay(service, recorder, folder)
        self._relays.append(relay)
        return relay

    def in_thread(self, call: Callable[..., T], *args: Any) -> Deferred[T]:
        """Run a blocking call in a thread; the test does not end before it does."""
        running = deferToThread(call, *args)
        self._threads.append(running)
        return running

    async def until(self, holds: Callable[[], object], what: str) -> None:
        """Wait until a condition holds; fail with ``what`` when it does not in good time."""
        deadline = time.monotonic() + DEADLINE
        while not holds():
            if time.monotonic() > deadline:
                self.fail(f"waited in vain: {what}")
            await self.wait(_POLL)

    async def wait(self, seconds: float) -> None:
        """Let the reactor run for a while."""
        await deferLater(cast(Any, reactor), seconds)

    # Peers

    async def dial(self, relay: Relay, receive_buffer: int = 0) -> Peer:
        """Return a connected peer that has sent nothing yet."""
        peer = await self.in_thread(relay.dial, receive_buffer, self.unix)
        self._peers.append(peer)
        return peer

    async def upgrade(
        self, relay: Relay, path: str, headers: dict[str, str], receive_buffer: int = 0
    ) -> Peer:
        """Return a peer with a WebSocket."""
        peer = await self.dial(relay, receive_buffer)
        await self.in_thread(peer.upgrade, path, headers)
        return peer

    async def binary(self, relay: Relay, server_id: str = "s", receive_buffer: int = 0) -> Peer:
        """Return a binary; whether it holds the slot is for the test to know."""
        return await self.upgrade(relay, "/v2/server", binary_headers(server_id), receive_buffer)

    async def phone(self, relay: Relay, server_id: str = "s", receive_buffer: int = 0) -> Peer:
        """Return a registered phone, which knows its ``conn_id``."""
        before = len(relay.recorder.of(Event.PHONE_REGISTERED))
        peer = await self.upgrade(relay, "/v1/client", phone_headers(server_id), receive_buffer)
        registered = relay.recorder.of(Event.PHONE_REGISTERED)
        self.assertEqual(before + 1, len(registered), "the phone was not registered")
        peer.conn_id = registered[-1]["conn_id"]
        return peer


def round_trip(phone: Peer, binary: Peer, number: int) -> None:
    """Have a phone ask and its binary answer; what else the binary gets meanwhile is skipped."""
    question, answer = numbered("phone", number), numbered("binary", number)
    phone.send(question)
    while True:
        got = binary.envelope()
        if got["conn_id"] == phone.conn_id:
            break
    if got["frame"] != json.loads(question):
        raise AssertionError(f"the binary got {got!r}")
    binary.send(envelope(phone.conn_id, answer))
    back = phone.message()
    if back != answer:
        raise AssertionError(f"the phone got {back!r}")
