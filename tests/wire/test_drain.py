"""The drain (section 7)."""

from __future__ import annotations

from itertools import pairwise

from twisted.internet.defer import Deferred

from pyrycode_relay.events import Event
from tests.peers.frames import frame
from tests.peers.requests import phone_headers, upgrade_request
from tests.wire.harness import Client, WireTest

GOING = (1001, "shutting down")


class DrainTest(WireTest):
    """Every peer gets a close and some time for its answer, and then the drain is over."""

    def drain(self) -> Deferred[None]:
        """Stop the relay."""
        done = self.relay.service.stopService()
        self.relay.pump()
        return done

    def test_nobody_there(self) -> None:
        """A relay without connections stops at once."""
        self.successResultOf(self.drain())
        self.assertEqual(
            [event for event, _ in self.relay.seen.events], [Event.DRAINING, Event.DRAINED]
        )

    def test_few_connections(self) -> None:
        """A relay with few connections does not take the whole window."""
        _, phone = self.relay.pair()
        done = self.drain()
        self.relay.advance(1)
        self.successResultOf(done)
        self.assertEqual(phone.closed, GOING)

    def test_spread(self) -> None:
        """Many connections are told over a span of time, all within the window, none reset."""
        clients: list[Client] = []
        for number in range(40):
            clients.append(self.relay.binary(str(number)))
            clients += [self.relay.phone(str(number)) for _ in range(4)]
        done = self.drain()
        told: list[int] = []
        while len(told) < 100 and (not told or told[-1] < 200):
            told.append(sum(1 for each in clients if each.closed))
            self.relay.advance(0.125)
        steps = [b - a for a, b in pairwise(told)]
        self.assertLess(max(steps), 100, f"one wave: {told}")
        self.assertGreater(sum(1 for each in steps if each), 3, f"one wave: {told}")
        self.assertLess(len(told), 80)
        self.relay.advance(1)
        self.successResultOf(done)
        for each in clients:
            self.assertEqual(each.closed, GOING)
            self.assertFalse(each.was_reset)

    def test_peers_that_do_not_go(self) -> None:
        """Peers that do not answer, or do not read, are aborted by the end of the window."""
        binary, mute = self.relay.pair()
        mute.answers = False
        stalled = self.relay.phone()
        stalled.stop_reading()
        for _ in range(20):
            binary.forward(stalled, '"' + "x" * 20_000 + '"')
        done = self.drain()
        self.relay.advance(10.125)
        self.successResultOf(done)
        for each in (binary, mute, stalled):
            self.assertTrue(each.gone)
        self.assertEqual(mute.closed, GOING)

    def test_what_is_queued_is_flushed(self) -> None:
        """Frames queued for a slow phone reach it before its close."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        for number in range(20):
            binary.forward(phone, f'"{number:05}' + "x" * 10_000 + '"')
        done = self.drain()
        self.relay.advance(2)
        self.assertNoResult(done)
        phone.resume_reading()
        self.assertEqual([int(each[1:6]) for each in phone.messages], list(range(20)))
        self.assertEqual(phone.closed, GOING)
        self.relay.advance(0.125)
        self.successResultOf(done)

    def test_phones_are_heard_to_the_end(self) -> None:
        """Phones go first: the daemon gets their last frames and a notice of each, code 1001."""
        binary = self.relay.binary()
        phones = [self.relay.phone() for _ in range(5)]
        done = self.drain()
        for phone in phones:
            phone.send(frame(1, b"1"))
        self.relay.advance(2)
        self.successResultOf(done)
        self.assertEqual(sorted(binary.notices), sorted((each.conn_id, 1001) for each in phones))
        for phone in phones:
            self.assertEqual(binary.data_from(phone), [1])

    def test_new_requests(self) -> None:
        """While draining no upgrade is accepted and idle connections are not waited for."""
        idle = self.relay.tcp()
        half = self.relay.tcp()
        half.send(b"GET /v1/client HTTP/1.1\r\n")
        _, phone = self.relay.pair()
        phone.answers = False
        done = self.drain()
        late = self.relay.request(upgrade_request(b"/v1/client", phone_headers()))
        self.assertEqual(late.answer.status, 503)
        half.send(upgrade_request(b"/v1/client", phone_headers()).partition(b"\r\n")[2])
        self.assertEqual(half.answer.status, 503)
        self.relay.advance(10.125)
        self.successResultOf(done)
        self.assertTrue(idle.gone)

    def test_grace_does_not_outlive_the_drain(self) -> None:
        """A slot in grace is gone with the drain, with its phones told to go."""
        binary, phone = self.relay.pair()
        binary.reset()
        done = self.drain()
        self.relay.advance(1)
        self.successResultOf(done)
        self.assertEqual(phone.closed, GOING)
        self.assertEqual(self.relay.seen.of(Event.SERVER_EXPIRED), [])

    def test_during_a_contest(self) -> None:
        """A drain in the middle of a conflict tells all of them to go."""
        incumbent = self.relay.binary()
        incumbent.answers = False
        newcomer = self.relay.binary()
        done = self.drain()
        self.relay.advance(10.125)
        self.successResultOf(done)
        self.assertEqual(incumbent.closed, GOING)
        self.assertIsNotNone(newcomer.closed)
        self.assertTrue(newcomer.gone)

    def test_paused_phones(self) -> None:
        """Phones that are not being read are told to go and can answer."""
        binary, phone = self.relay.pair()
        binary.stop_reading()
        while not phone.socket.inbound:
            phone.send(frame(1, b'"' + b"x" * 60_000 + b'"'))
        done = self.drain()
        self.relay.advance(10.125)
        self.successResultOf(done)
        self.assertEqual(phone.closed, GOING)
        self.assertFalse(phone.was_reset)
