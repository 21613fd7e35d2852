"""Attachments: bursts of 31 MB for phones that read slowly, while strangers fill the memory."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple
from urllib.request import ProxyHandler, build_opener

from tests.peers.blocking import RawPeer
from tests.peers.envelopes import directive, envelope, numbered
from tests.peers.frames import CLOSE, PING, PONG, TEXT, code_and_reason, frame, text_frame
from tests.peers.requests import binary_fields, phone_fields
from tests.peers.waiting import DEADLINE, eventually
from tests.system.harness import Relay, dial
from tests.system.test_status_page import ADMIN, admin_port
from tests.system.test_tls import TLSTestCase

MIB = 2**20
MESSAGES, MESSAGE = 373, 83_000
"""What a daemon sends for one attachment of 16 MiB: so many messages, of so many bytes."""
BUDGET = 256 * MIB
LAST = 4401
"""The code of the directive behind an attachment."""


class Arrived(NamedTuple):
    """What a phone got."""

    frames: int
    code: int
    pongs: dict[bytes, int]
    """How many frames came between each ping and its pong."""


class Daemon(RawPeer):
    """A binary. A thread answers its phones' questions, and notes which phones have gone."""

    def __init__(self, relay: Relay, server_id: str) -> None:
        super().__init__(dial(relay.address))
        self.upgrade("/v1/server", binary_fields(server_id))
        self.server_id = server_id
        self.gone: dict[str, int] = {}
        self.known: list[str] = []
        self._turn = threading.Lock()
        threading.Thread(target=self._answer, daemon=True).start()

    def say(self, envelope: bytes) -> None:
        """Send an envelope."""
        self.put(text_frame(envelope))

    def put(self, data: bytes) -> None:
        """Send a whole frame, between those of other threads."""
        with self._turn:
            self.write(data)

    def _answer(self) -> None:
        with contextlib.suppress(OSError):
            for opcode, payload in self.frames():
                if opcode == PING:
                    self.put(frame(PONG, payload))
                    continue
                got = json.loads(payload)
                if "close_code" in got:
                    self.gone[got["conn_id"]] = got["close_code"]
                elif got["frame"] == "hello":
                    self.known.append(got["conn_id"])
                else:
                    self.say(payload)


class Handset(RawPeer):
    """A phone."""

    def __init__(self, sock: socket.socket, daemon: Daemon) -> None:
        super().__init__(sock)
        self.upgrade("/v1/client", phone_fields(daemon.server_id))
        before = len(daemon.known)
        self.write(text_frame(b'"hello"'))
        eventually("the binary knows the phone", lambda: len(daemon.known) > before)
        self.conn_id = daemon.known[-1]

    def pieces(self, rate: int) -> Iterator[bytes]:
        """Read ``rate`` bytes a second, in pieces, until the relay ends the connection."""
        began, size = time.monotonic(), 0
        while data := self.sock.recv(min(rate // 50, 65_536)):
            size += len(data)
            yield data
            # The pace is the point: this is a slow reader.
            time.sleep(max(0, began + size / rate - time.monotonic()))

    def fetch(self, rate: int) -> Arrived:
        """Read an attachment at ``rate`` bytes a second, and ping the relay meanwhile."""
        count, asked, pongs = 0, {}, {}
        for data in self.pieces(rate):
            self._unread += data
            while (found := self.next_frame()) is not None:
                if found.opcode == TEXT:
                    if found.payload != numbered("binary", count, MESSAGE):
                        raise AssertionError(f"frame {count} is wrong")
                    count += 1
                    if count % 100 == 50:
                        ping = b"at %d" % count
                        asked[ping] = count
                        self.write(frame(PING, ping))
                elif found.opcode == PONG:
                    pongs[found.payload] = count - asked[found.payload]
                elif found.opcode == CLOSE:
                    return Arrived(count, code_and_reason(found.payload)[0], pongs)
        raise AssertionError(f"the connection ended after {count} frames")


class Strangers:
    """A binary with 20 phones that read ``rate`` bytes a second, or nothing. It floods them."""

    def __init__(self, relay: Relay, name: str, rate: int) -> None:
        self.daemon = Daemon(relay, name)
        self.phones = [
            Handset(dial(relay.address, receive_buffer=4096), self.daemon) for _ in range(20)
        ]
        self._messages = {
            each.conn_id: text_frame(envelope(each.conn_id, numbered("stranger", 0, 250_000)))
            for each in self.phones
        }
        self._over = threading.Event()
        if rate:
            threading.Thread(target=self._read, args=(rate,), daemon=True).start()

    def _read(self, rate: int) -> None:
        while not self._over.wait(1.0):
            for phone in self.phones:
                with contextlib.suppress(OSError):
                    phone.sock.recv(rate)

    @property
    def all_gone(self) -> bool:
        """Whether the relay has closed every phone."""
        return len(self.daemon.gone) == len(self.phones)

    def flood(self) -> None:
        """Send a message to each phone that is left."""
        for conn_id, message in self._messages.items():
            if conn_id not in self.daemon.gone:
                self.daemon.put(message)

    def release(self) -> None:
        """Close all sockets."""
        self._over.set()
        for each in (self.daemon, *self.phones):
            each.release()


class AttachmentTests(TLSTestCase):
    """One relay with the default outbox and budget, for all readers at a time.

    The test takes as long as a phone that reads 1 MB/s needs for an attachment: only the real size
    shows that it gets all of it.
    """

    def setUp(self) -> None:
        super().setUp()
        self.entry = self.door(ADMIN, "--max-phones=20")
        self.server = self.entry.relay
        self.metrics = f"http://127.0.0.1:{admin_port(self.server)}/metrics"
        self.opener = build_opener(ProxyHandler({}))

    def number(self, name: str) -> int:
        """Return one of the relay's metrics."""
        with self.opener.open(self.metrics, timeout=DEADLINE) as answer:
            page = answer.read().decode()
        found = re.search(rf"^pyrycode_relay_{name} (\S+)$", page, re.MULTILINE)
        assert found is not None, name
        return int(float(found[1]))

    def daemon(self, server_id: str) -> Daemon:
        """Return a binary."""
        daemon = Daemon(self.server, server_id)
        self.addCleanup(daemon.release)
        return daemon

    def phone(self, daemon: Daemon, *, tls: bool = False) -> Handset:
        """Return a phone with a small kernel buffer."""
        if tls:
            phone = Handset(self.entry.dial(receive_buffer=65_536), daemon)
        else:
            phone = Handset(dial(self.server.address, receive_buffer=65_536), daemon)
        self.addCleanup(phone.release)
        return phone

    def strangers(self, name: str, rate: int) -> Strangers:
        """Return phones that read little or nothing."""
        crowd = Strangers(self.server, name, rate)
        self.addCleanup(crowd.release)
        return crowd

    def talk(self, sibling: Handset, over: threading.Event) -> int:
        """Talk with the binary until it is over; return the number of round trips."""
        trips = 0
        while not over.wait(0.005):
            asked = b'"trip %d"' % trips
            sibling.write(text_frame(asked))
            answer = sibling.frame()
            while answer.opcode == PING:
                sibling.write(frame(PONG, answer.payload))
                answer = sibling.frame()
            if answer.payload != asked:
                raise AssertionError(f"{asked!r} was answered by {answer!r}")
            trips += 1
        return trips

    def test_attachments(self) -> None:
        """Phones that read get every message in order, and then the directive's close, at 1, 3 and
        12 MB/s, over TCP and TLS, while 20 phones that read nothing and 20 that read 1 KB/s fill
        the memory. Only these 40 are closed. Pongs do not wait for the queue, a sibling's round
        trips go on, and memory stays within the budget and comes back."""
        before = self.server.rss()
        home = self.daemon("home")
        sibling = self.phone(home)
        honest = {
            (rate, tls): self.phone(home, tls=tls)
            for rate in (1_000_000, 3_000_000, 12_000_000)
            for tls in (False, True)
        }
        crowds = [self.strangers("deaf", 0), self.strangers("slow", 1024)]
        over = threading.Event()
        self.addCleanup(over.set)
        with ThreadPoolExecutor() as threads:
            talking = threads.submit(self.talk, sibling, over)
            try:
                for crowd in crowds:
                    most = self.number("queue_bytes") + BUDGET // 2 - 4 * MIB
                    while self.number("queue_bytes") < most:
                        crowd.flood()
                fetching = {
                    each: threads.submit(phone.fetch, each[0]) for each, phone in honest.items()
                }
                for number in range(MESSAGES):
                    message = numbered("binary", number, MESSAGE)
                    for phone in honest.values():
                        home.say(envelope(phone.conn_id, message))
                for phone in honest.values():
                    home.say(directive(phone.conn_id, LAST))
                while not all(crowd.all_gone for crowd in crowds):
                    for crowd in crowds:
                        crowd.flood()
                for each, fetched in fetching.items():
                    with self.subTest(each=each):
                        arrived = fetched.result(2 * DEADLINE)
                        self.assertEqual((arrived.frames, arrived.code), (MESSAGES, LAST))
                        # Only what the two kernels and the transport have goes before a pong.
                        self.assertEqual(len(arrived.pongs), 4)
                        self.assertLess(max(arrived.pongs.values()), 40)
            finally:
                over.set()
            self.assertGreater(talking.result(DEADLINE), 100)

        self.assertEqual(home.gone, {}, "a phone that reads was closed, or dropped")
        for crowd in crowds:
            self.assertEqual(set(crowd.daemon.gone.values()), {1011})
        # The last ones may have filled their outboxes instead.
        self.assertGreater(self.number("queues_shed_total"), 30)
        self.assertLessEqual(self.number("queue_bytes_highest"), BUDGET + MIB)
        self.assertLess(self.server.peak() - before, 1.3 * BUDGET)
        eventually("the queues are empty", lambda: self.number("queue_bytes") == 0)
        eventually("memory comes back", lambda: self.server.rss() - before < 48 * MIB)
