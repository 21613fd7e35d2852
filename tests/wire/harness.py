"""The whole relay in memory: real protocols, real TCP transports, sockets and time made here.

`Relay` is the service that a process would run. Its connections are Twisted's own TCP
transports, so producers, half-closes and aborts behave as they do in production; below them
`MemorySocket` stands in for the kernel. A `Peer` holds the far end of one: raw bytes; a `Client`
speaks WebSocket through the sans-I/O client of the ``websockets`` library, and a `Binary` speaks
in envelopes besides. Nothing happens but in `Relay.pump`, and no time passes but in
`Relay.advance`.
"""

from __future__ import annotations

import errno
import json
import select
import socket as _socket
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from itertools import count
from random import Random
from typing import Any, ClassVar, cast
from weakref import WeakValueDictionary

from twisted.internet import main
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.posixbase import _DisconnectSelectableMixin
from twisted.internet.tcp import Server
from twisted.internet.testing import MemoryReactorClock
from twisted.logger import ILogObserver, LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python import log
from twisted.trial.unittest import SynchronousTestCase
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.uri import parse_uri

from pyrycode_relay.config.settings import Settings
from pyrycode_relay.events import Event
from pyrycode_relay.http.server import Site
from pyrycode_relay.limits import Limits
from pyrycode_relay.service import RelayService
from pyrycode_relay.websocket.connection import RelayProtocol
from pyrycode_relay.websocket.poller import Poller
from tests.peers.requests import Headers, binary_headers, one_by_one, phone_headers
from tests.recorder import Recorder

MANY_TURNS = 20_000
"""After so many rounds without rest something goes round in circles."""


class Steps(Random):
    """A random source whose fractions are multiples of 1/1024, so that no time is rounded."""

    def uniform(self, a: float, b: float) -> float:
        """Return a number from ``a`` to ``b``."""
        return round(super().uniform(a, b) * 1024) / 1024


class MemorySocket:
    """What `twisted.internet.tcp` needs of a connected socket; the far end is a `Peer`."""

    _numbers: ClassVar[Iterator[int]] = count(10_000)
    by_number: ClassVar[WeakValueDictionary[int, MemorySocket]] = WeakValueDictionary()

    def __init__(self) -> None:
        self._number = next(self._numbers)
        self.by_number[self._number] = self
        self.inbound = bytearray()
        """What the peer sent and the relay has not read."""
        self.outbound = bytearray()
        """What the relay wrote and the peer has not read."""
        self.sends = 0
        """How many system calls of the relay's have written something."""
        self.window = 65536
        """How many bytes of ``outbound`` the kernels between the two take."""
        self.peer_finished = False
        self.peer_reset = False
        self.finished = False
        """Whether the relay has ended its direction, after what is in ``outbound``."""
        self.was_reset = False
        self.closed = False
        self.options: dict[int, object] = {}

    @property
    def readable(self) -> bool:
        """Whether a read would return at once."""
        return bool(self.inbound) or self.peer_finished or self.peer_reset

    @property
    def writable(self) -> bool:
        """Whether a write would take at least a byte, or fail."""
        return len(self.outbound) < self.window or self.peer_reset

    def setblocking(self, flag: bool) -> None:
        pass

    def fileno(self) -> int:
        return self._number

    def recv(self, size: int) -> bytes:
        if self.inbound and not self.peer_reset:
            data = bytes(self.inbound[:size])
            del self.inbound[:size]
            return data
        if self.peer_reset:
            raise ConnectionResetError(errno.ECONNRESET, "reset by peer")
        if self.peer_finished:
            return b""
        raise BlockingIOError(errno.EWOULDBLOCK, "nothing to read")

    def send(self, data: bytes | memoryview) -> int:
        if self.peer_reset:
            raise BrokenPipeError(errno.EPIPE, "reset by peer")
        taken = bytes(data[: max(0, self.window - len(self.outbound))])
        if data and not taken:
            raise BlockingIOError(errno.EWOULDBLOCK, "no room")
        self.outbound += taken
        self.sends += bool(taken)
        return len(taken)

    def shutdown(self, how: int) -> None:
        self.finished = True

    def setsockopt(self, level: int, option: int, value: object) -> None:
        self.options[option] = value

    def getsockname(self) -> tuple[str, int]:
        return ("127.0.0.1", 8080)

    def getsockopt(self, level: int, option: int) -> object:
        return self.options.get(option, 0)

    def close(self) -> None:
        self.closed = self.finished = True
        if _socket.SO_LINGER in self.options or self.inbound:
            # A reset, which overtakes what is still on its way: asked for, or because the
            # kernel had input that nobody read.
            self.was_reset = True
            self.outbound.clear()


class MemoryEpoll:
    """What the relay needs of ``select.epoll``, for memory sockets."""

    def __init__(self) -> None:
        self._events: dict[int, int] = {}

    def fileno(self) -> int:
        return 0

    def register(self, fd: int, events: int) -> None:
        assert fd not in self._events
        self._events[fd] = events

    def modify(self, fd: int, events: int) -> None:
        assert fd in self._events
        self._events[fd] = events

    def unregister(self, fd: int) -> None:
        del self._events[fd]

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        found = []
        for fd, events in self._events.items():
            sock = MemorySocket.by_number[fd]
            ready = sock.readable * select.EPOLLIN | sock.writable * select.EPOLLOUT
            if ready & events:
                found.append((fd, ready & events))
        return found[:maxevents]

    @property
    def readable(self) -> bool:
        """Whether a poll would find anything."""
        return bool(self.poll(0, 1))

    def close(self) -> None:
        self._events.clear()


class MemoryReactor(_DisconnectSelectableMixin, MemoryReactorClock):
    """Twisted's in-memory reactor, polling memory sockets in the order of their coming."""

    def __init__(self) -> None:
        super().__init__()
        self.readers: Any = _OrderedSet()
        self.writers: Any = _OrderedSet()

    def turn(self) -> bool:
        """Do what a real reactor does in one round; False when there was nothing to do."""
        moved = False
        for transport in list(self.readers):
            source: Any = transport._epoll if isinstance(transport, Poller) else transport.socket
            if transport in self.readers and source.readable:
                self._do(transport, transport.doRead, is_read=True)
                moved = True
        for transport in list(self.writers):
            if transport in self.writers and transport.socket.writable:
                self._do(transport, transport.doWrite, is_read=False)
                moved = True
        return self._fire_next() or moved

    def _fire_next(self) -> bool:
        """Fire the next timer if it is due; False if it is not."""
        due = self.next_time()
        if due is None or due > self.seconds():
            return False
        call = self.calls.pop(0)
        call.called = 1
        call.func(*call.args, **call.kw)
        return True

    def fire_due(self) -> None:
        """Fire the timers that are due, and no others that these plan for now."""
        due = [call for call in self.calls if call.getTime() <= self.seconds()]
        for _ in due:
            self._fire_next()

    def _do(self, transport: Server, step: Any, *, is_read: bool) -> None:
        try:
            why = step()
        except Exception:
            log.err()
            why = main.CONNECTION_LOST
        if why:
            self._disconnectSelectable(transport, why, is_read)

    def next_time(self) -> float | None:
        """Return when the next timer fires."""
        self.calls.sort(key=lambda call: call.getTime())
        return self.calls[0].getTime() if self.calls else None


class _OrderedSet(dict[Any, None]):
    def add(self, item: object) -> None:
        self[item] = None

    def discard(self, item: object) -> None:
        self.pop(item, None)


class Answer:
    """An HTTP answer, taken apart. Its status has the phrase of the standard."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        head, _, self.body = raw.partition(b"\r\n\r\n")
        status_line, *lines = head.split(b"\r\n")
        self.status = int(status_line.split(b" ")[1]) if raw else 0
        if raw:
            phrase = HTTPStatus(self.status).phrase
            assert status_line[:9] in {b"HTTP/1.0 ", b"HTTP/1.1 "}, status_line
            assert status_line[9:] == f"{self.status} {phrase}".encode(), status_line
        self.headers = {
            name.lower().decode(): value.strip().decode()
            for name, _, value in (line.partition(b":") for line in lines)
        }


class Peer:
    """Somebody with a TCP connection to the relay."""

    def __init__(self, relay: Relay, host: str) -> None:
        self.relay = relay
        self.host = host
        self.socket = MemorySocket()
        self.reading = True
        self.received = bytearray()
        """Everything that was read."""
        self.ended = False
        """Whether the end of the stream, or a reset, was read."""

    @property
    def gone(self) -> bool:
        """Whether the relay has let go of the socket."""
        return self.socket.closed

    @property
    def was_reset(self) -> bool:
        """Whether the relay aborted the connection."""
        return self.socket.was_reset

    @property
    def answer(self) -> Answer:
        """What was received, as an HTTP answer."""
        return Answer(bytes(self.received))

    def send(self, data: bytes) -> None:
        """Send raw bytes and let the relay act on them."""
        self.socket.inbound += data
        self.relay.pump()

    def finish(self) -> None:
        """End the own direction of the stream: a FIN."""
        self.socket.peer_finished = True
        self.relay.pump()

    def reset(self) -> None:
        """Vanish with a reset."""
        self.socket.peer_reset = True
        self.relay.pump()

    def stop_reading(self, window: int = 0) -> None:
        """Read nothing more; the kernels take another ``window`` bytes."""
        self.reading = False
        self.socket.window = len(self.socket.outbound) + window

    def resume_reading(self) -> None:
        """Read everything from now on."""
        self.reading = True
        self.socket.window = 65536
        self.relay.pump()

    def read(self, size: int) -> None:
        """Read ``size`` bytes at most, of a peer that has stopped, making room for as many."""
        self._take(size)
        self.relay.pump()

    def turn(self) -> bool:
        """Take what has come; False when there was nothing."""
        if self.ended or not self.reading:
            return False
        if self.socket.outbound:
            self._take(len(self.socket.outbound))
            return True
        if self.socket.finished or self.was_reset:
            self.ended = True
            self._end()
            return True
        return False

    def _take(self, size: int) -> None:
        data = bytes(self.socket.outbound[:size])
        del self.socket.outbound[:size]
        self.received += data
        self._data(data)

    def _data(self, data: bytes) -> None:
        pass

    def _end(self) -> None:
        pass


class Client(Peer):
    """Somebody who speaks WebSocket. With ``answers`` false, pings and closes get no answer."""

    def __init__(self, relay: Relay, host: str, path: str) -> None:
        super().__init__(relay, host)
        self.ws = ClientProtocol(parse_uri("ws://relay.example" + path), max_size=None)
        self.answers = True
        self.response: Response | None = None
        self.frames: list[Frame] = []
        self.conn_id = ""
        """A registered phone's, as the log shows it."""

    def handshake(self, headers: Headers, tail: bytes = b"") -> None:
        """Ask for the upgrade, with ``tail`` in the same packet."""
        request = self.ws.connect()
        lines = [f"GET {request.path} HTTP/1.1".encode()]
        lines += [f"{name}: {value}".encode() for name, value in request.headers.raw_items()]
        lines += [name + b": " + value for name, value in one_by_one(headers)]
        self.send(b"\r\n".join(lines) + b"\r\n\r\n" + tail)

    def _data(self, data: bytes) -> None:
        self.ws.receive_data(data)
        self._settle()

    def _end(self) -> None:
        self.ws.receive_eof()
        self._settle()

    def _settle(self) -> None:
        for event in self.ws.events_received():
            if isinstance(event, Response):
                self.response = event
            else:
                self.frames.append(cast(Frame, event))
        for data in self.ws.data_to_send():
            if not self.answers:
                continue
            if data:
                self.socket.inbound += data
            else:
                self.socket.peer_finished = True

    def _flush(self) -> None:
        answers, self.answers = self.answers, True
        self._settle()
        self.answers = answers
        self.relay.pump()

    @property
    def messages(self) -> list[bytes]:
        """The payloads of all messages received, which all came as whole TEXT frames."""
        found = [each for each in self.frames if each.opcode in {0, 1, 2}]
        for each in found:
            assert each.opcode is Opcode.TEXT, each
            assert each.fin, each
        return [bytes(each.data) for each in found]

    def count(self, opcode: Opcode) -> int:
        """Return how many frames with ``opcode`` were received."""
        return sum(1 for each in self.frames if each.opcode is opcode)

    @property
    def closed(self) -> tuple[int, str] | None:
        """Code and reason of the close frame received; None when there was none."""
        rcvd = self.ws.close_rcvd
        return None if rcvd is None else (int(rcvd.code), rcvd.reason)

    def text(self, message: str | bytes) -> None:
        """Send a TEXT message."""
        self.ws.send_text(message.encode() if isinstance(message, str) else message)
        self._flush()

    def ping(self, payload: bytes = b"") -> None:
        """Send a ping."""
        self.ws.send_ping(payload)
        self._flush()

    def close(self, code: int | None = None, reason: str = "") -> None:
        """Send a close frame."""
        self.ws.send_close(code, reason)
        self._flush()


class Binary(Client):
    """A daemon: speaks in envelopes."""

    @property
    def envelopes(self) -> list[dict[str, Any]]:
        """The envelopes received."""
        return [json.loads(message) for message in self.messages]

    @property
    def notices(self) -> list[tuple[str, int]]:
        """The close notices received: conn_ids and codes."""
        return [
            (each["conn_id"], each["close_code"]) for each in self.envelopes if "close_code" in each
        ]

    def data_from(self, phone: Client) -> list[Any]:
        """Return the frames received from ``phone``."""
        return [
            each["frame"]
            for each in self.envelopes
            if each["conn_id"] == phone.conn_id and "frame" in each
        ]

    def forward(self, phone: Client, message: str) -> None:
        """Send ``message``, one JSON value, to ``phone``."""
        self.text(f'{{"conn_id":{json.dumps(phone.conn_id)},"frame":{message}}}')

    def direct(self, phone: Client, code: object, message: str | None = None) -> None:
        """Ask for the closing of ``phone``, after ``message`` if there is one."""
        last = "" if message is None else f'"frame":{message},'
        self.text(f'{{"conn_id":{json.dumps(phone.conn_id)},{last}"close_code":{code}}}')


LIFTED: dict[str, Any] = {"upgrade_rate": 0, "max_connections_per_address": 0}
"""Limits by which an address is not bounded."""


class Relay:
    """A running relay with the given `Limits` and other settings, all else by default.

    Its peers come from one address, so what bounds an address is off, unless it is given.
    """

    def __init__(self, others: Mapping[str, Any] | None = None, **limits: Any) -> None:
        self.reactor = MemoryReactor()
        self.seen = Recorder()
        settings = Settings(
            ("tcp:0:interface=127.0.0.1",),
            limits=Limits(**LIFTED | limits),
            **({"admin_listen": ""} | dict(others or {})),
        )
        self.service = RelayService(
            self.reactor, settings, [self.seen], Steps(1), epoll=MemoryEpoll
        )
        self.peers: list[Peer] = []
        self._accepted = 0

    def start(self) -> Relay:
        """Begin to serve."""
        self.service.startService()
        self.seen.clear()
        return self

    # Time and input

    def pump(self) -> None:
        """Let everything happen that can without time passing."""
        for _ in range(MANY_TURNS):
            moved = self.reactor.turn()
            for peer in self.peers:
                moved = peer.turn() or moved
            if not moved:
                return
        raise AssertionError("the relay does not come to rest")

    def advance(self, seconds: float) -> None:
        """Let time pass, timer by timer."""
        end = self.reactor.seconds() + seconds
        for _ in range(MANY_TURNS):
            self.pump()
            due = self.reactor.next_time()
            if due is None or due > end:
                self.reactor.rightNow = end
                self.pump()
                return
            self.reactor.rightNow = due
        raise AssertionError("timers without end")

    def stop(self, seconds: float) -> None:
        """Let time pass while the process is stopped; then timers fire before sockets are read."""
        self.reactor.rightNow += seconds
        self.reactor.fire_due()
        self.pump()

    @property
    def now(self) -> float:
        """The clock's time."""
        return self.reactor.seconds()

    # Peers

    def _accept(self, peer: Peer, site: Site | None = None) -> None:
        client = (peer.host, 40_000 + self._accepted)
        self._accepted += 1
        listeners = self.reactor.tcpServers
        public = listeners[0][1] if listeners else self.service.site
        factory = cast(IProtocolFactory, site or public)
        protocol = cast(Any, factory.buildProtocol(IPv4Address("TCP", *client)))
        self.peers.append(peer)
        if protocol is None:
            peer.socket.close()
            return
        transport = Server(
            cast(Any, peer.socket), protocol, client, cast(Any, None), self._accepted, self.reactor
        )
        transport.repstr = "in memory"
        protocol.makeConnection(transport)
        self.pump()

    def tcp(self, host: str = "192.0.2.7") -> Peer:
        """Connect, and send nothing."""
        peer = Peer(self, host)
        self._accept(peer)
        return peer

    def request(self, data: bytes, host: str = "192.0.2.7") -> Peer:
        """Connect and send ``data``."""
        peer = self.tcp(host)
        peer.send(data)
        return peer

    def ask(
        self,
        path: str,
        host: str = "localhost:9090",
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Ask the operator's side, and return its answer."""
        assert self.service.admin is not None
        peer = Peer(self, "127.0.0.1")
        self._accept(peer, self.service.admin)
        more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        peer.send(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode())
        return peer.answer

    def client(
        self, path: str, headers: Headers, tail: bytes = b"", host: str = "192.0.2.7"
    ) -> Client:
        """Connect and ask for an upgrade."""
        client = (Binary if path.endswith("server") else Client)(self, host, path)
        self._accept(client)
        client.handshake(headers, tail)
        return client

    def binary(
        self, server_id: str = "home", path: str = "/v1/server", tail: bytes = b""
    ) -> Binary:
        """Connect a daemon."""
        return cast(Binary, self.client(path, binary_headers(server_id), tail))

    def phone(self, server_id: str = "home", path: str = "/v1/client", tail: bytes = b"") -> Client:
        """Connect a phone; it knows its ``conn_id`` if it was registered."""
        known = len(self.seen.of(Event.PHONE_REGISTERED))
        phone = self.client(path, phone_headers(server_id), tail)
        registered = self.seen.of(Event.PHONE_REGISTERED)
        if len(registered) > known:
            phone.conn_id = str(registered[known]["conn_id"])
        return phone

    def pair(self) -> tuple[Binary, Client]:
        """Connect a daemon and a phone of it."""
        return self.binary(), self.phone()

    # State

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many binaries are connected, how many in grace, and how many phones."""
        registry = self.service.context.registry
        return registry.binaries, registry.in_grace, registry.phones

    def connections(self) -> list[RelayProtocol]:
        """Return the connections that were upgraded and are not gone."""
        factories = (*self.service._phones, *self.service._binaries)
        return [each for factory in factories for each in factory.connections]

    def server_side(self, client: Client) -> RelayProtocol:
        """Return the relay's end of a client's connection."""
        for each in self.connections():
            if cast(Any, each.transport).socket is client.socket:
                return each
        raise AssertionError("no such connection")

    @property
    def queued(self) -> int:
        """How many bytes all queues together hold."""
        return self.service.context.memory_budget.total


class WireTest(SynchronousTestCase):
    """A test with a relay; afterwards nothing may be left: no socket, no timer, no queued byte."""

    limits: ClassVar[dict[str, Any]] = {}
    settings: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        """Start a relay, and listen to everything that is logged."""
        self.logged: list[LogEvent] = []
        observer = cast(ILogObserver, self.logged.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.relay = Relay(self.settings, **self.limits).start()
        self.addCleanup(self._leave_nothing_behind)

    def _leave_nothing_behind(self) -> None:
        if self.relay.service.running:
            self.relay.service.stopService()
        self.relay.advance(60)
        for peer in self.relay.peers:
            self.assertTrue(peer.gone, "a socket is left open after the drain")
        left = [str(call) for call in self.relay.reactor.getDelayedCalls()]
        self.assertEqual(left, [], "timers are left after the drain")
        self.assertEqual(self.relay.queued, 0, "bytes are left on the books after the drain")
        self.assertEqual(self.relay.counts, (0, 0, 0))
        admission = self.relay.service.admission
        self.assertEqual(
            (admission.total, admission.usage.of_address), (0, {}), "places are not left"
        )
        self.assertEqual([*self.relay.service.site.channels], [])

    def log_text(self) -> str:
        """Return everything that was logged, as text."""
        return "\n".join(formatEvent(each) + repr(each) for each in self.logged)

    def log_loud(self) -> list[str]:
        """Return what was logged above debug."""
        return [
            formatEvent(each)
            for each in self.logged
            if each.get("log_level", LogLevel.info) > LogLevel.debug
        ]
