"""Habits of the libraries below that the relay overrides.

One test for each habit of Autobahn and twisted.web that `pyrycode_relay.websocket`
works around and that the other modules of this package do not pin already.
"""

from __future__ import annotations

import gc
import socket
import weakref
from typing import Any, ClassVar, cast

from pyrycode_relay.events import Event
from tests.peers.frames import frame
from tests.peers.requests import binary_headers, phone_headers, upgrade_request
from tests.wire.harness import Relay, WireTest


class ClosingTest(WireTest):
    """Close timers and counts."""

    limits: ClassVar = {"close_timeout": 0.5}

    def test_close_timeout_is_not_cut_to_seconds(self) -> None:
        """Autobahn's close timeout is in whole seconds and early; ours is exact."""
        _, phone = self.relay.pair()
        phone.answers = False
        self.relay.advance(0.25)
        phone.send(frame(1, b"oops"))
        self.relay.advance(0.4375)
        self.assertFalse(phone.gone)
        self.relay.advance(0.125)
        self.assertTrue(phone.gone)

    def test_close_after_the_answer_is_no_reset(self) -> None:
        """Autobahn aborts after a clean closing handshake; the relay closes in order."""
        for client in reversed(self.relay.pair()):
            client.close(1000)
            self.assertEqual(client.closed, (1000, ""))
            self.assertTrue(client.gone)
            self.assertFalse(client.was_reset)

    def test_failed_connection_is_closed_without_reset(self) -> None:
        """After a violation the relay ends its own direction and lets the peer close."""
        _, phone = self.relay.pair()
        phone.answers = False
        phone.send(frame(3))
        self.assertTrue(phone.socket.finished)
        self.assertFalse(phone.gone)
        phone.send(b"\x00" * 100_000)
        phone.finish()
        self.assertTrue(phone.gone)
        self.assertFalse(phone.was_reset)

    def test_counts_after_errors(self) -> None:
        """An error in a hook does not leak a connection in the factory's count."""

        def broken(*args: object) -> None:
            raise RuntimeError("a bug")

        _, phone = self.relay.pair()
        side = self.relay.server_side(phone)
        factory = side.factory
        self.patch(side, "ended", broken)
        phone.reset()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertNotIn(side, factory.connections)


class OpeningTest(WireTest):
    """The handshake."""

    def test_no_status_page(self) -> None:
        """Autobahn's page for browsers, with its version and an open redirect, is not served."""
        request = upgrade_request(
            b"/v1/client?redirect=http://evil.example&after=1",
            phone_headers(),
            change={b"Upgrade": None},
        )
        answer = self.relay.request(request).answer
        self.assertEqual((answer.status, answer.body), (426, b""))
        self.assertNotIn("location", answer.headers)
        self.assertNotIn(b"evil", answer.raw)

    def test_refused_request_ends_no_session(self) -> None:
        """Autobahn's onClose also fires for connections that never opened; ours end no session."""
        self.relay.binary()
        self.relay.seen.clear()
        self.relay.request(upgrade_request(b"/v1/client", []))
        self.assertEqual([event for event, _ in self.relay.seen.events], [Event.REQUEST_REFUSED])
        self.assertEqual(len(self.relay.connections()), 1)

    def test_peer_that_leaves_with_its_request(self) -> None:
        """A peer whose request and end come together leaves nothing behind."""
        peer = self.relay.tcp()
        peer.socket.peer_finished = True
        peer.send(upgrade_request(b"/v1/server", binary_headers()))
        self.assertTrue(peer.gone)
        self.assertEqual(self.relay.counts, (0, 1, 0))
        self.relay.advance(31)
        self.assertEqual(self.relay.counts, (0, 0, 0))

    def test_http_channel_lets_go(self) -> None:
        """After the upgrade nothing of the HTTP channel stays: no producer, no timer, no object."""
        self.relay.binary()
        peer = self.relay.tcp()
        (channel,) = self.relay.service.site.channels
        alive = weakref.ref(channel)
        timers = len(self.relay.reactor.getDelayedCalls())
        del channel
        peer.send(upgrade_request(b"/v1/client", phone_headers()))
        self.assertEqual(peer.answer.status, 101)
        gc.collect()
        self.assertIsNone(alive(), "the channel is still referred to")
        self.assertEqual(len(self.relay.service.site.channels), 0)
        # The header timeout is gone, the heartbeat has come.
        self.assertEqual(len(self.relay.reactor.getDelayedCalls()), timers)

    def test_protocol_is_the_producer(self) -> None:
        """The transport tells the connection itself when to stop writing."""
        _, phone = self.relay.pair()
        side = self.relay.server_side(phone)
        self.assertIs(cast(Any, side.transport).producer, side)


class TransportTest(WireTest):
    """The kernel's part."""

    def test_send_buffer(self) -> None:
        """Each upgraded connection's kernel buffer is bounded."""
        for client in self.relay.pair():
            self.assertEqual(client.socket.options[socket.SO_SNDBUF], 131_072)

    def test_send_buffer_left_alone(self) -> None:
        """A send buffer of 0 leaves the size to the kernel."""
        relay = Relay(send_buffer=0).start()
        self.assertNotIn(socket.SO_SNDBUF, relay.binary().socket.options)
        relay.service.stopService()
        relay.advance(20)


class SizeTest(WireTest):
    """Autobahn's limit for messages applies to what is sent, too."""

    limits: ClassVar = {"max_message_bytes": 100}

    def test_frame_at_the_cap(self) -> None:
        """A frame at the cap passes both ways, though its envelope is over the cap."""
        binary, phone = self.relay.pair()
        message = '"' + "x" * 98 + '"'
        phone.text(message)
        binary.forward(phone, message)
        self.assertEqual(binary.data_from(phone), ["x" * 98])
        self.assertEqual(phone.messages, [message.encode()])

    def test_larger_frame_to_a_phone(self) -> None:
        """A daemon's frame that fits the daemon's own limit reaches the phone."""
        binary, phone = self.relay.pair()
        binary.forward(phone, '"' + "x" * 3_000 + '"')
        self.assertEqual(len(phone.messages[0]), 3_002)
        self.assertIsNone(phone.closed)


class TimerTest(WireTest):
    """Autobahn's own timers."""

    def test_no_timer_on_another_clock(self) -> None:
        """In a connection's whole life nothing is scheduled but on the clock that was handed in."""
        from twisted.internet import reactor

        before = len(reactor.getDelayedCalls())
        binary, phone = self.relay.pair()
        phone.answers = False
        phone.text("1")
        binary.forward(phone, "2")
        self.relay.advance(40)
        binary.direct(phone, 4401)
        self.relay.advance(10)
        binary.send(frame(3))
        self.assertEqual(len(reactor.getDelayedCalls()), before)


class LogTest(WireTest):
    """Autobahn's and twisted.web's own log lines."""

    def test_libraries_log_nothing(self) -> None:
        """Neither addresses nor payloads reach the log by a library's own words, at any level."""
        binary, phone = self.relay.pair()
        phone.text('"payload"')
        binary.forward(phone, '"payload"')
        phone.send(frame(1, b"payload-that-is-not-json"))
        self.relay.phone().send(frame(3, b"payload"))
        self.relay.phone().reset()
        self.relay.request(b"junk\r\n\r\n")
        self.relay.request(upgrade_request(b"/v1/client", []))
        mute = self.relay.phone()
        mute.answers = False
        binary.direct(mute, 4401)
        self.relay.tcp()
        self.relay.advance(100)
        text = self.log_text()
        self.assertNotIn("192.0.2.7", text)
        self.assertNotIn("payload", text)
        self.assertEqual(self.log_loud(), [])
