"""Claims: conflict and takeover, grace, reclaim and expiry (section 4)."""

from __future__ import annotations

from typing import Any, ClassVar

from pyrycode_relay.events import Event
from pyrycode_relay.limits import OnReclaim
from pyrycode_relay.protocol.close_codes import EndCause
from tests.peers.frames import frame
from tests.peers.requests import binary_headers
from tests.wire.harness import Binary, Client, WireTest

CONFLICT = (4409, "server-id already claimed")


class ConflictTest(WireTest):
    """A second daemon claims a server-id that another one holds."""

    def silent_incumbent(self) -> tuple[Binary, Client]:
        """Return a daemon that will not answer, and its phone."""
        binary, phone = self.relay.pair()
        binary.answers = False
        return binary, phone

    def assert_serves(self, binary: Binary) -> None:
        """Check that a daemon holds the slot and is reached by its phones."""
        self.assertIsNone(binary.closed)
        phone = self.relay.phone()
        phone.text("7")
        self.assertEqual(binary.data_from(phone), [7])

    def test_pong(self) -> None:
        """An incumbent that answers the ping stays, with its phones; the newcomer gets 4409."""
        incumbent, phone = self.relay.pair()
        newcomer = self.relay.client("/v1/server", binary_headers("home"), host="192.0.2.8")
        self.assertEqual(newcomer.closed, CONFLICT)
        [conflict] = self.relay.seen.of(Event.SERVER_ID_CONFLICT)
        self.assertEqual(
            conflict, {"server_id": "home", "remote": "192.0.2.8", "holder": incumbent.host}
        )
        self.assertIsNone(phone.closed)
        self.assert_serves(incumbent)

    def test_any_data(self) -> None:
        """Any byte of the incumbent is as good as a pong: an envelope, half a frame, a ping."""
        for data in (frame(1, b"{}"), frame(1, b"{}")[:1], frame(9)):
            incumbent, _ = self.silent_incumbent()
            newcomer = self.relay.binary()
            self.relay.advance(9.875)
            self.assertIsNone(newcomer.closed)
            incumbent.send(data)
            self.assertEqual(newcomer.closed, CONFLICT)
            self.relay.advance(1)
            self.assertIsNone(incumbent.closed)
            incumbent.reset()
            self.relay.advance(31)

    def test_silence(self) -> None:
        """An incumbent silent for 10 s loses its place, and its phones theirs, as on reclaim."""
        incumbent, phone = self.silent_incumbent()
        newcomer = self.relay.binary()
        self.relay.advance(9.875)
        self.assertIsNone(newcomer.closed)
        self.assertIsNone(incumbent.closed)
        self.assertIsNone(phone.closed)
        self.relay.advance(0.25)
        self.assertEqual(incumbent.closed, (1011, "heartbeat timeout"))
        self.assertEqual(phone.closed, (4404, "binary reclaimed server-id"))
        self.assertEqual(self.relay.counts, (1, 0, 0))
        self.assertEqual(len(self.relay.seen.of(Event.SERVER_ID_TAKEOVER)), 1)
        self.assertEqual(self.relay.seen.of(Event.SERVER_RELEASED), [])
        self.assert_serves(newcomer)

    def test_late_answer(self) -> None:
        """An answer after the takeover changes nothing, nor does the end of the old connection."""
        incumbent, _ = self.silent_incumbent()
        newcomer = self.relay.binary()
        self.relay.advance(10.125)
        incumbent.send(frame(10) + frame(1, b"{}"))
        self.assert_serves(newcomer)
        incumbent.reset()
        self.assert_serves(newcomer)
        self.assertEqual(self.relay.counts, (1, 0, 2))
        self.assertEqual(self.relay.seen.of(Event.SERVER_RELEASED), [])

    def test_incumbent_drops_during_the_probe(self) -> None:
        """A dead socket is an answer: the newcomer has the slot at once, without a takeover."""
        incumbent, phone = self.silent_incumbent()
        newcomer = self.relay.binary()
        self.relay.advance(3)
        incumbent.reset()
        self.assertEqual(phone.closed, (4404, "binary reclaimed server-id"))
        self.assert_serves(newcomer)
        self.assertEqual(self.relay.counts, (1, 0, 1))

    def test_several_newcomers(self) -> None:
        """Of several newcomers the first gets the place of a silent incumbent, the others 4409."""
        incumbent, _ = self.silent_incumbent()
        newcomers = []
        for _ in range(3):
            newcomers.append(self.relay.binary())
            self.relay.advance(2)
        self.relay.advance(4.125)
        self.assertEqual(incumbent.closed, (1011, "heartbeat timeout"))
        self.assertEqual([each.closed for each in newcomers], [None, CONFLICT, CONFLICT])
        self.assert_serves(newcomers[0])

    def test_several_newcomers_and_a_live_incumbent(self) -> None:
        """A live incumbent sends all newcomers away with one pong."""
        incumbent, _ = self.silent_incumbent()
        newcomers = [self.relay.binary() for _ in range(3)]
        incumbent.send(frame(10))
        self.assertEqual([each.closed for each in newcomers], [CONFLICT] * 3)
        self.assert_serves(incumbent)

    def test_many_newcomers(self) -> None:
        """However many claim at once, a bounded number waits, and one of them gets the slot."""
        incumbent, _ = self.silent_incumbent()
        newcomers = [self.relay.binary() for _ in range(40)]
        waiting = [each for each in newcomers if each.closed is None]
        self.assertLess(len(waiting), 40)
        self.relay.advance(10.125)
        self.assertEqual([each for each in newcomers if each.closed is None], newcomers[:1])
        self.assert_serves(newcomers[0])
        self.assertTrue(incumbent.closed)

    def test_newcomer_gone(self) -> None:
        """A newcomer that left while it waited gets nothing; the next one gets the slot."""
        for leave in (Client.finish, Client.reset):
            incumbent, _ = self.silent_incumbent()
            first = self.relay.binary()
            second = self.relay.binary()
            leave(first)
            self.relay.advance(10.125)
            self.assertIsNone(second.closed, f"{leave.__name__}: told that a live one has the slot")
            self.assert_serves(second)
            second.reset()
            self.relay.advance(31)
            self.assertTrue(incumbent.closed)

    def test_only_newcomer_gone(self) -> None:
        """When the only newcomer has left, the incumbent that stayed silent so far stays."""
        incumbent, phone = self.silent_incumbent()
        self.relay.binary().reset()
        self.relay.advance(10.125)
        self.assertIsNone(incumbent.closed)
        self.assertIsNone(phone.closed)
        self.assertEqual(self.relay.counts, (1, 0, 1))

    def test_newcomer_speaks_while_it_waits(self) -> None:
        """What a newcomer sends while it waits is read when it has the slot."""
        self.silent_incumbent()
        newcomer = self.relay.binary()
        newcomer.text('{"push_wake":{}}')
        self.assertEqual(self.relay.seen.of(Event.PUSH_WAKE_DROPPED), [])
        self.relay.advance(10.125)
        self.assertEqual(len(self.relay.seen.of(Event.PUSH_WAKE_DROPPED)), 1)

    def test_newcomer_speaks_with_its_request(self) -> None:
        """What a newcomer sends in its request's packet is read when it has the slot, too."""
        self.silent_incumbent()
        self.relay.binary(tail=frame(1, b'{"push_wake":{}}'))
        self.relay.advance(10.125)
        self.assertEqual(len(self.relay.seen.of(Event.PUSH_WAKE_DROPPED)), 1)

    def test_second_conflict(self) -> None:
        """A conflict that is over does not spoil the next one."""
        incumbent, _ = self.relay.pair()
        for _ in range(3):
            self.assertEqual(self.relay.binary().closed, CONFLICT)
        incumbent.answers = False
        newcomer = self.relay.binary()
        self.relay.advance(10.125)
        self.assert_serves(newcomer)
        newcomer.answers = False
        third = self.relay.binary()
        self.relay.advance(10.125)
        self.assert_serves(third)

    def test_busy_with_a_stalled_phone(self) -> None:
        """A daemon that is busy writing to a stalled phone is alive: its answer counts."""
        incumbent, phone = self.relay.pair()
        phone.stop_reading()
        for _ in range(20):
            incumbent.forward(phone, '"' + "x" * 100_000 + '"')
        self.assertEqual(self.relay.binary().closed, CONFLICT)
        self.assertIsNone(incumbent.closed)

    def test_slow_reader_is_alive(self) -> None:
        """A daemon whose pong waits behind a backlog it is still reading is not displaced."""
        incumbent, phone = self.relay.pair()
        incumbent.stop_reading()
        for _ in range(20):
            phone.text('"' + "x" * 10_000 + '"')
        newcomer = self.relay.binary()
        for _ in range(30):
            self.relay.advance(0.5)
            incumbent.socket.window = 2_000
            incumbent.read(2_000)
        self.assertEqual(newcomer.closed, CONFLICT)
        self.assertIsNone(incumbent.closed)

    def test_slow_reader_with_more_to_come_is_alive(self) -> None:
        """Nor is one that is sent more, while it is probed, than it takes."""
        incumbent, phone = self.relay.pair()
        incumbent.stop_reading()
        phone.text('"' + "x" * 10_000 + '"')
        newcomer = self.relay.binary()
        for _ in range(40):
            phone.text('"' + "x" * 1_000 + '"')
            self.relay.advance(0.25)
            incumbent.socket.window = 200
            incumbent.read(200)
        self.relay.advance(0.25)
        self.assertEqual(newcomer.closed, CONFLICT)
        self.assertIsNone(incumbent.closed)

    def test_hung_daemon_that_is_sent_more(self) -> None:
        """A daemon that takes what its phones send, and answers nothing, loses its place after
        the probe timeout, counted from when it has taken the ping."""
        incumbent, phone = self.silent_incumbent()
        incumbent.stop_reading()
        for _ in range(4):
            phone.text('"' + "x" * 1_000 + '"')
        newcomer = self.relay.binary()
        start = self.relay.now
        while not self.relay.seen.of(Event.SERVER_ID_TAKEOVER):
            self.assertLess(self.relay.now - start, 13)
            self.assertIsNone(newcomer.closed)
            phone.text('"' + "x" * 1_000 + '"')
            incumbent.socket.window = 1_100
            incumbent.read(1_100)
            self.relay.advance(0.25)
        self.assertGreater(self.relay.now - start, 10)
        incumbent.resume_reading()
        self.assertEqual(incumbent.closed, (1011, "heartbeat timeout"))

    def test_other_ids(self) -> None:
        """Claims of other server-ids are not disturbed; ids are compared as they are."""
        self.silent_incumbent()
        for server_id in ("home2", "Home", "HOME", "hom"):
            self.assert_open(self.relay.binary(server_id))

    def assert_open(self, client: Client) -> None:
        """Check that a connection is open."""
        self.assertIsNone(client.closed)
        self.assertFalse(client.gone)


class ReleaseTest(WireTest):
    """What the log says of a binary that leaves."""

    def released(self) -> dict[str, Any]:
        """Return the fields of the only release since the last look."""
        [fields] = self.relay.seen.of(Event.SERVER_RELEASED)
        self.relay.seen.clear()
        return fields

    def test_why_and_how_much(self) -> None:
        """The cause, the code, the time, and the traffic of all its phones, also of those gone."""
        binary, phone = self.relay.pair()
        other = self.relay.phone()
        phone.text("123")
        other.text("1")
        binary.forward(phone, '"five"')
        other.close(1000)
        self.relay.advance(2.5)
        binary.close(1001)
        self.assertEqual(
            self.released(),
            {
                "server_id": "home",
                "remote": binary.host,
                "close_code": 1001,
                "duration": 2.5,
                "frames": 3,
                "bytes": 3 + 1 + 6,
                "reason": EndCause.CLOSED_BY_PEER,
            },
        )

    def test_each_binary_has_its_own(self) -> None:
        """The next binary's numbers begin with its claim."""
        binary, phone = self.relay.pair()
        phone.text("123")
        binary.reset()
        fields = self.released()
        self.assertEqual((fields["frames"], fields["bytes"]), (1, 3))
        self.assertEqual(fields["reason"], EndCause.CONNECTION_LOST)
        again = self.relay.binary()
        late = self.relay.phone()
        late.text("12")
        self.relay.advance(1)
        again.reset()
        fields = self.released()
        self.assertEqual((fields["frames"], fields["bytes"], fields["duration"]), (1, 2, 1.0))


class ReleaseWithKeepTest(ReleaseTest):
    """The same where phones are kept."""

    limits: ClassVar = {"on_reclaim": OnReclaim.KEEP}


class EvictTest(WireTest):
    """Grace and reclaim where phones are evicted, the default."""

    def test_phones_stay_during_grace(self) -> None:
        """During grace phones stay open, may speak, and new ones are accepted up to the cap."""
        binary, phone = self.relay.pair()
        binary.reset()
        self.assertEqual(self.relay.counts, (0, 1, 1))
        phone.text("1")
        late = [self.relay.phone() for _ in range(15)]
        self.relay.advance(29)
        for each in (phone, *late):
            self.assertIsNone(each.closed)
        self.assertEqual(self.relay.phone().closed, (4429, "too many phones for server-id"))

    def test_evicted_phones_leave_nothing(self) -> None:
        """What evicted phones sent during grace is dropped, and their places are free at once."""
        old, phone = self.relay.pair()
        old.reset()
        for number in range(10):
            phone.text(str(number))
        self.assertGreater(self.relay.queued, 0)
        new = self.relay.binary()
        self.assertEqual(self.relay.queued, 0)
        self.assertEqual(new.envelopes, [])
        again = self.relay.phone()
        again.text("1")
        self.assertEqual(new.data_from(again), [1])

    def test_reclaim_never_conflicts(self) -> None:
        """A daemon that comes back in grace has its slot at once, however often."""
        for _ in range(5):
            binary = self.relay.binary()
            self.assertIsNone(binary.closed)
            self.assertEqual(self.relay.counts, (1, 0, 0))
            binary.reset()
            self.relay.advance(29)

    def test_polite_close_starts_the_grace_too(self) -> None:
        """A daemon that closes politely, or is closed for a mistake, gets its grace as well."""
        for leave in (
            lambda each: each.close(1000),
            lambda each: each.send(frame(3)),
            lambda each: each.finish(),
        ):
            binary, phone = self.relay.pair()
            leave(binary)
            self.assertEqual(self.relay.counts, (0, 1, 1))
            self.assertIsNone(phone.closed)
            self.relay.advance(31)
            self.assertEqual(phone.closed, (1000, ""))

    def test_stale_timer(self) -> None:
        """The first grace's timer does nothing to a slot that was reclaimed and lost again."""
        self.relay.binary().reset()
        self.relay.advance(20)
        self.relay.binary().reset()
        phone = self.relay.phone()
        self.relay.advance(29)
        self.assertEqual(self.relay.counts, (0, 1, 1))
        self.assertIsNone(phone.closed)
        self.relay.advance(1.125)
        self.assertEqual(self.relay.counts, (0, 0, 0))
        self.assertEqual(phone.closed, (1000, ""))

    def test_expiry_drops_what_was_held(self) -> None:
        """At expiry slot, phones and held bytes go together; a new daemon starts afresh."""
        binary, phone = self.relay.pair()
        binary.reset()
        phone.text('"' + "x" * 1000 + '"')
        self.relay.advance(30.125)
        self.assertEqual(self.relay.queued, 0)
        self.assertEqual(self.relay.phone().closed, (4404, "no server with that id"))
        new = self.relay.binary()
        self.assertEqual(new.envelopes, [])

    def test_slots_are_apart(self) -> None:
        """The end of one slot leaves another alone."""
        self.relay.binary("a").reset()
        binary = self.relay.binary("b")
        phone = self.relay.phone("b")
        self.relay.advance(31)
        self.assertIsNone(binary.closed)
        self.assertIsNone(phone.closed)


class KeepTest(WireTest):
    """Grace and reclaim where phones are kept."""

    limits: ClassVar = {"on_reclaim": OnReclaim.KEEP, "hold_bytes": 10_000}

    def test_held_frames_once_and_in_order(self) -> None:
        """What phones sent in grace reaches the new daemon: each phone's in order, each once."""
        old = self.relay.binary()
        phones = [self.relay.phone() for _ in range(3)]
        for phone in phones:
            phone.text("0")
        old.reset()
        for number in range(1, 5):
            for phone in phones:
                phone.text(str(number))
        new = self.relay.binary()
        for phone in phones:
            self.assertEqual(old.data_from(phone), [0])
            self.assertEqual(new.data_from(phone), [1, 2, 3, 4])
            phone.text("5")
            self.assertEqual(new.data_from(phone)[-1], 5)
            new.forward(phone, '"hello"')
            self.assertEqual(phone.messages, [b'"hello"'])
        self.assertEqual(self.relay.queued, 0)

    def test_second_drop_during_the_hand_over(self) -> None:
        """A daemon that drops before it was handed everything leaves the rest for the next."""
        old, phone = self.relay.pair()
        old.reset()
        for number in range(30):
            phone.text(f'"{number:04}' + "x" * 9_000 + '"')
        middle = Binary(self.relay, "192.0.2.7", "/v1/server")
        middle.socket.window = 0
        self.relay._accept(middle)
        middle.handshake(binary_headers())
        middle.reset()
        last = self.relay.binary()
        numbers = [int(each[:4]) for each in last.data_from(phone)]
        self.assertEqual(numbers, list(range(numbers[0], 30)))
        self.assertGreater(numbers[0], 0, "nothing was handed to the one in the middle")
        self.assertLess(numbers[0], 20)

    def test_back_pressure_in_grace(self) -> None:
        """A phone that sends more than may be held is not read, and nothing of it is lost."""
        old, phone = self.relay.pair()
        old.reset()
        for number in range(200):
            phone.text(f'"{number:04}' + "x" * 1_000 + '"')
        self.assertGreater(len(phone.socket.inbound), 100_000)
        self.assertLess(self.relay.queued, 10_000 + 65_536 + 70 * 64)
        new = self.relay.binary()
        self.assertEqual([int(each[:4]) for each in new.data_from(phone)], list(range(200)))
        self.assertEqual(len(phone.socket.inbound), 0)

    def test_newer_frames_come_after_held_ones(self) -> None:
        """A frame sent while older ones are being handed over does not overtake them."""
        old, phone = self.relay.pair()
        old.reset()
        for number in range(20):
            phone.text(f'"{number:04}' + "x" * 9_000 + '"')
        new = Binary(self.relay, "192.0.2.7", "/v1/server")
        self.relay._accept(new)
        new.handshake(binary_headers())
        new.stop_reading()
        for number in range(20, 40):
            phone.text(f'"{number:04}' + "x" * 9_000 + '"')
        new.resume_reading()
        self.assertEqual([int(each[:4]) for each in new.data_from(phone)], list(range(40)))

    def test_phones_are_served_in_turn(self) -> None:
        """Held frames of several phones go out in turn: a talkative one does not starve a quiet."""
        old = self.relay.binary()
        talker, quiet = self.relay.phone(), self.relay.phone()
        old.reset()
        for _ in range(9):
            talker.text("1")
        quiet.text("2")
        new = self.relay.binary()
        self.assertIn(2, [each["frame"] for each in new.envelopes[:2]])

    def test_came_in_grace(self) -> None:
        """A phone that came during grace is handed over like the others."""
        self.relay.binary().reset()
        phone = self.relay.phone()
        phone.text("1")
        new = self.relay.binary()
        self.assertEqual(new.data_from(phone), [1])
        new.forward(phone, "2")
        self.assertEqual(phone.messages, [b"2"])

    def test_left_in_grace(self) -> None:
        """The frames of a phone that has left stay for the daemon; its place is free at once."""
        old = self.relay.binary()
        phones = [self.relay.phone() for _ in range(16)]
        old.reset()
        for phone in phones:
            phone.text("1")
            phone.close(1000)
        self.assertEqual(self.relay.counts, (0, 1, 0))
        late = self.relay.phone()
        self.assertIsNone(late.closed)
        new = self.relay.binary()
        for phone in phones:
            self.assertEqual(new.data_from(phone), [1])
        self.assertEqual(len(new.notices), 16)
        self.assertEqual(self.relay.queued, 0)

    def test_expiry(self) -> None:
        """Kept phones go too when nobody comes back."""
        old, phone = self.relay.pair()
        old.reset()
        phone.text("1")
        self.relay.advance(30.125)
        self.assertEqual(phone.closed, (1000, ""))
        self.assertEqual(self.relay.queued, 0)

    def test_takeover_keeps(self) -> None:
        """Phones of a silent incumbent are handed to the newcomer that takes its place."""
        old, phone = self.relay.pair()
        old.answers = False
        new = self.relay.binary()
        phone.text("1")
        self.relay.advance(10.125)
        self.assertIsNone(phone.closed)
        phone.text("2")
        self.assertEqual(old.data_from(phone), [1])
        self.assertEqual(new.data_from(phone), [2])

    def test_takeover_of_a_stalled_binary(self) -> None:
        """What was held for a daemon that stopped reading goes to the one that takes its place."""
        old, phone = self.relay.pair()
        old.answers = False
        old.stop_reading()
        for number in range(25):
            phone.text(f'"{number:04}' + "x" * 9_000 + '"')
        new = self.relay.binary()
        self.relay.advance(10.125)
        numbers = [int(each[:4]) for each in new.data_from(phone)]
        self.assertEqual(numbers, list(range(numbers[0], 25)))
        self.assertIsNone(phone.closed)
