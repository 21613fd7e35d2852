"""The set-up of the live tests: a relay in this process, and blocking peers in threads.

The relay listens on the real reactor, on loopback TCP and on a UNIX socket. A `Peer` is a
WebSocket client on a raw blocking socket, so that a test decides about every byte: what is read
and when, and how the socket ends."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar, cast

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
from tests.peers.blocking import RawPeer
from tests.peers.envelopes import envelope, numbered
from tests.peers.frames import CLOSE, PING, PONG, TEXT, close_frame, code_and_reason, frame
from tests.peers.requests import binary_fields, phone_fields
from tests.peers.waiting import on_reactor
from tests.recorder import Recorder

T = TypeVar("T")

DEADLINE: Final = 15.0
"""Seconds after which a peer's blocking call, or a condition, is given up; far above any need."""


class Peer(RawPeer):
    """A blocking WebSocket client that keeps the rules; its methods belong into threads."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self.conn_id = ""

    def send(self, payload: bytes, opcode: int = TEXT, fin: bool = True) -> None:
        """Send a frame, by default one whole message."""
        self.write(frame(opcode, payload, fin=fin))

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
                code, reason = code_and_reason(payload)
                if answer:
                    # The relay may have gone already.
                    with contextlib.suppress(OSError):
                        self.send(payload[:2], CLOSE)
                return before, code, reason

    def closed_with(self) -> tuple[int, str]:
        """Return the code and the reason of the close frame that comes next."""
        return self.closing()[1:]

    def say_close(self, code: int | None) -> None:
        """Send a close frame, an empty one for None."""
        self.write(close_frame(code))


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

    def relay(self, others: Mapping[str, Any] | None = None, **limits: object) -> Relay:
        """Start a relay with ``limits`` in place of the quick ones, and other settings."""
        folder = tempfile.mkdtemp(prefix="relay")
        recorder = Recorder()
        settings = Settings(
            insecure_listen=("tcp:0:interface=127.0.0.1", f"unix:{folder}/socket"),
            admin_listen="",
            limits=Limits(**cast(dict[str, Any], QUICK | limits)),
            **dict(others or {}),
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
        await on_reactor(what, holds, DEADLINE)

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
        return await self.upgrade(relay, "/v2/server", binary_fields(server_id), receive_buffer)

    async def phone(self, relay: Relay, server_id: str = "s", receive_buffer: int = 0) -> Peer:
        """Return a registered phone, which knows its ``conn_id``."""
        before = len(relay.recorder.of(Event.PHONE_REGISTERED))
        peer = await self.upgrade(relay, "/v1/client", phone_fields(server_id), receive_buffer)
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
