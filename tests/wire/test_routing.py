"""Envelopes both ways, and the close notice (section 3)."""

from __future__ import annotations

import json
from typing import ClassVar

from websockets.frames import Opcode

from pyrycode_relay.events import Event
from pyrycode_relay.limits import OnReclaim
from tests.peers.frames import frame
from tests.wire.harness import Binary, Client, WireTest


class RoutingTest(WireTest):
    """Frames on their way."""

    def test_phone_to_binary_is_spliced(self) -> None:
        """A phone's message arrives byte for byte in an envelope of exactly one shape."""
        binary, phone = self.relay.pair()
        for message in ('{"b": 1,\n "a" :2, "a":3}', '"\\u0041\\/"', "[1.0,1e2,-0]", '"åäö📱"'):
            phone.text(message)
            self.assertEqual(
                binary.messages[-1].decode(),
                f'{{"conn_id":"{phone.conn_id}","frame":{message}}}',
            )

    def test_binary_to_phone_is_verbatim(self) -> None:
        """The phone sees the frame's bytes alone, and never a conn_id."""
        binary, phone = self.relay.pair()
        for message in ('{"b": 1,\n "a" :2, "a":3}', '"\\ud800"', "1e999", "false", '"åäö"', "[]"):
            binary.forward(phone, message)
            self.assertEqual(phone.messages[-1].decode(), message)
        self.assertNotIn(b"conn_id", bytes(phone.received))

    def test_conn_id(self) -> None:
        """A conn_id is client-, the server-id, and 8 lower-case hex digits; no two are alike."""
        self.relay.binary()
        found = {self.relay.phone().conn_id for _ in range(16)}
        self.assertEqual(len(found), 16)
        for each in found:
            self.assertRegex(each, r"\Aclient-home-[0-9a-f]{8}\Z")

    def test_always_text(self) -> None:
        """Whatever opcode and fragments come in, one whole TEXT frame goes out, either way."""
        binary, phone = self.relay.pair()
        message = b'{"a":"0123456789"}'
        ways = (
            frame(1, message),
            frame(2, message),
            frame(1, message[:5], fin=False) + frame(0, message[5:]),
            frame(2, message[:1], fin=False) + frame(0, message[1:2], fin=False)
            + frame(9, b"between") + frame(0, b"", fin=False) + frame(0, message[2:]),
            frame(1, b"", fin=False) + frame(0, message, fin=False) + frame(0, b""),
        )  # fmt: skip
        for way in ways:
            phone.send(way)
        self.assertEqual(binary.data_from(phone), [json.loads(message)] * len(ways))
        envelope = json.dumps({"conn_id": phone.conn_id, "frame": [1]}).encode()
        for opcode in (1, 2):
            binary.send(frame(opcode, envelope))
            binary.send(frame(opcode, envelope[:9], fin=False) + frame(0, envelope[9:]))
        # `messages` checks the opcode and that each is one frame.
        self.assertEqual(phone.messages, [b"[1]"] * 4)

    def test_order(self) -> None:
        """Order is kept in both directions, whatever the packets' borders."""
        binary, phone = self.relay.pair()
        stream = b"".join(frame(1 + n % 2, str(n).encode()) for n in range(300))
        for start in range(0, len(stream), 7):
            phone.send(stream[start : start + 7])
        self.assertEqual(binary.data_from(phone), list(range(300)))
        binary.send(
            b"".join(
                frame(1, json.dumps({"conn_id": phone.conn_id, "frame": n}).encode())
                for n in range(300)
            )
        )
        self.assertEqual([int(each) for each in phone.messages], list(range(300)))

    def test_sizes(self) -> None:
        """Frames at the borders of the length encoding, and at the cap, pass both ways."""
        binary, phone = self.relay.pair()
        sizes = (2, 60, 72, 73, 74, 125, 126, 127, 65_480, 65_535, 65_536, 65_537, 262_144)
        for size in sizes:
            message = '"' + "x" * (size - 2) + '"'
            phone.text(message)
            self.assertIsNone(phone.closed, str(size))
            self.assertEqual(binary.data_from(phone)[-1], message[1:-1])
            binary.forward(phone, message)
            self.assertIsNone(binary.closed, str(size))
            self.assertEqual(phone.messages[-1], message.encode())

    def test_server_id_is_escaped(self) -> None:
        """The longest and nastiest server-id is escaped in the envelope and still addresses."""
        for server_id in ('"}{' * 85 + "x", "\\" * 256, 'a","frame":1,"x":"', "<>&'/`"):
            binary, phone = self.relay.binary(server_id), self.relay.phone(server_id)
            phone.text('"' + "x" * 262_142 + '"')
            (envelope,) = binary.envelopes
            self.assertEqual(set(envelope), {"conn_id", "frame"})
            self.assertEqual(envelope["conn_id"], phone.conn_id)
            binary.forward(phone, '"' + "y" * 262_142 + '"')
            self.assertEqual(len(phone.messages[0]), 262_144)

    def test_equal_ids_by_escapes(self) -> None:
        """A conn_id is compared as text, however the daemon escapes it, and fields in any order."""
        binary, phone = self.relay.pair()
        escaped = "".join(f"\\u{ord(each):04x}" for each in phone.conn_id)
        binary.text(f' {{ "frame" : 1 , "x":{{"conn_id":"y"}}, "conn_id" : "{escaped}" }} ')
        self.assertEqual(phone.messages, [b"1"])

    def test_unknown_fields(self) -> None:
        """Unknown fields of an envelope are ignored."""
        binary, phone = self.relay.pair()
        binary.text(f'{{"v":9,"conn_id":"{phone.conn_id}","frame":{{}},"extra":[null]}}')
        self.assertEqual(phone.messages, [b"{}"])

    def test_siblings(self) -> None:
        """Each phone gets what is for it and nothing else."""
        binary = self.relay.binary()
        phones = [self.relay.phone() for _ in range(5)]
        for number, phone in enumerate(phones):
            binary.forward(phone, str(number))
            phone.text(f'"from {number}"')
        for number, phone in enumerate(phones):
            self.assertEqual(phone.messages, [str(number).encode()])
            self.assertEqual(binary.data_from(phone), [f"from {number}"])

    def test_versions_meet(self) -> None:
        """The v1 and v2 endpoints meet in the same slot, in every combination."""
        for server in ("/v1/server", "/v2/server"):
            binary = self.relay.binary(server, server)
            for client in ("/v1/client", "/v2/client"):
                phone = self.relay.phone(server, client)
                phone.text("1")
                binary.forward(phone, "2")
                self.assertEqual(binary.data_from(phone), [1])
                self.assertEqual(phone.messages, [b"2"])
        rival = self.relay.binary("/v1/server", "/v2/server")
        self.assertEqual(rival.closed, (4409, "server-id already claimed"))


class RefusedEnvelopeTest(WireTest):
    """What a daemon sends and the relay does not take."""

    def test_malformed(self) -> None:
        """A malformed envelope is logged and dropped; the daemon's connection goes on."""
        binary, phone = self.relay.pair()
        own = json.dumps(phone.conn_id)
        for number, message in enumerate((
            "", " ", "x", "[]", "1", "null", '"x"', "{}", '{"frame":1}', '{"conn_id":""}',
            '{"conn_id":"","frame":1}', '{"conn_id":1,"frame":1}', '{"conn_id":null,"frame":1}',
            f'{{"conn_id":[{own}],"frame":1}}', f'{{"conn_id":{own}}}',
            f'{{"conn_id":{own},"frame":null}}', f'{{"conn_id":{own},"close_code":0}}',
            f'{{"conn_id":{own},"frame":1,"close_code":"4401"}}',
            f'{{"conn_id":{own},"frame":1}}{{}}', f'{{"conn_id":{own},"frame":1',
            f'{{"conn_id":{own},"frame":1,}}', f'[{{"conn_id":{own},"frame":1}}]',
            f'{{"conn_id":{own},"frame":}}', f'{{"conn_id":{own},"frame":01}}',
            '{"a":' * 50_000, "[" * 200_000, '{"x":"\\ud800"',
            '{"conn_id":"\\ud800","frame":1}',
        )):  # fmt: skip
            self.relay.seen.clear()
            binary.text(message)
            self.assertIsNone(binary.closed, message[:60])
            self.assertEqual(len(self.relay.seen.of(Event.BINARY_ENVELOPE_REFUSED)), 1, number)
            self.assertEqual(phone.messages, [], message[:60])
        binary.forward(phone, "1")
        self.assertEqual(phone.messages, [b"1"])
        self.assertIsNone(phone.closed)

    def test_unknown_conn_id(self) -> None:
        """An envelope for nobody is logged and dropped, without a word of it in the log."""
        binary, phone = self.relay.pair()
        for conn_id in ("nobody", phone.conn_id + "x", phone.conn_id.upper(), " " + phone.conn_id):
            self.relay.seen.clear()
            binary.text(json.dumps({"conn_id": conn_id, "frame": "payload", "close_code": 4401}))
            (fields,) = self.relay.seen.of(Event.BINARY_UNKNOWN_CONN_ID)
            self.assertNotIn("payload", str(fields))
        self.assertEqual(phone.messages, [])
        self.assertIsNone(phone.closed)
        self.assertIsNone(binary.closed)

    def test_phone_that_has_left(self) -> None:
        """What is for a phone that has left is late for a minute, and then a mistake."""
        binary, phone = self.relay.pair()
        phone.close(1000)
        binary.forward(phone, "1")
        self.relay.advance(59)
        binary.direct(phone, 4421)
        self.assertEqual(self.late(), (2, 0))
        self.relay.advance(1)
        binary.direct(phone, 4421)
        self.assertEqual(self.late(), (2, 1))
        self.assertIsNone(binary.closed)

    def late(self) -> tuple[int, int]:
        """Return the number of late envelopes, and of those that are a mistake."""
        seen = self.relay.seen.of
        return len(seen(Event.BINARY_LATE_ENVELOPE)), len(seen(Event.BINARY_UNKNOWN_CONN_ID))

    def test_directive_that_answers_a_notice(self) -> None:
        """A daemon that answers each close notice with a directive leaves no line above debug."""
        binary = self.relay.binary()
        for end in ("close", "reset", "backlog"):
            phone = self.relay.phone()
            if end == "close":
                phone.close(1000)
            elif end == "reset":
                phone.reset()
            else:
                phone.text("not JSON")
            self.assertEqual(binary.notices[-1][0], phone.conn_id)
            self.relay.seen.clear()
            binary.direct(phone, 4421)
            self.assertEqual(
                self.relay.seen.events,
                [(Event.BINARY_LATE_ENVELOPE, {"server_id": "home", "remote": "192.0.2.7"})],
            )

    def test_directive_for_a_phone_that_was_evicted(self) -> None:
        """What a daemon that has come back sends for its former phones is late, too."""
        binary, phone = self.relay.pair()
        binary.reset()
        back = self.relay.binary()
        self.assertEqual(phone.closed, (4404, "binary reclaimed server-id"))
        back.direct(phone, 4421)
        other = self.relay.phone()
        back.reset()
        self.relay.advance(31)
        self.assertEqual(other.closed, (1000, ""))
        self.relay.binary().direct(other, 4421)
        self.assertEqual(self.late(), (2, 0))

    def test_phone_of_another_that_has_left(self) -> None:
        """A phone that another daemon's slot had is nobody's that has left."""
        self.relay.binary("victim")
        victim = self.relay.phone("victim")
        victim.close(1000)
        self.relay.binary("attacker").direct(victim, 4421)
        self.assertEqual(self.late(), (0, 1))

    def test_no_server_id_reaches_another(self) -> None:
        """A daemon can address no phone of another server-id, whatever it sends."""
        victim_binary, victim = self.relay.binary("victim"), self.relay.phone("victim")
        attacker = self.relay.binary("attacker")
        own = self.relay.phone("attacker")
        attacker.forward(victim, "1")
        attacker.direct(victim, 4401)
        attacker.text(f'{{"conn_id":"{own.conn_id}","conn_id":"{victim.conn_id}","frame":1}}')
        attacker.text(
            f'{{"conn_id":"{victim.conn_id}","conn_id":"{own.conn_id}","frame":2,"x":"\\ud800"}}'
        )
        self.assertEqual(victim.messages, [])
        self.assertIsNone(victim.closed)
        self.assertEqual(victim_binary.messages, [])
        self.assertIsNone(own.closed)

    def test_phone_cannot_forge(self) -> None:
        """A phone's message that holds envelope keys is but a frame to its daemon."""
        binary, phone = self.relay.pair()
        other = self.relay.phone()
        phone.text(f'{{"conn_id":"{other.conn_id}","close_code":4401,"push_wake":{{}}}}')
        (envelope,) = binary.envelopes
        self.assertEqual(envelope["conn_id"], phone.conn_id)
        self.assertEqual(envelope["frame"]["conn_id"], other.conn_id)
        self.assertEqual(set(envelope), {"conn_id", "frame"})

    def test_push_wake(self) -> None:
        """A push wake is logged as dropped, its token is not, and the daemon stays."""
        binary = self.relay.binary()
        binary.text('{"push_wake":{"platform":"fcm","token":"wake-secret"}}')
        self.assertEqual(len(self.relay.seen.of(Event.PUSH_WAKE_DROPPED)), 1)
        self.assertNotIn("wake-secret", str(self.relay.seen.events))
        self.assertNotIn("wake-secret", self.log_text())
        self.assertIsNone(binary.closed)
        self.assertEqual(binary.messages, [])

    def test_push_wake_that_asks(self) -> None:
        """A binary that asks for the outcome is told that the wake is dropped."""
        binary = self.relay.binary()
        binary.text('{"push_wake":{"platform":"fcm","token":"t","reply":"w-1"},"frame":1}')
        result = {"push_result": {"reply": "w-1", "outcome": "dropped"}}
        self.assertEqual(binary.envelopes, [result])

    def test_payloads_are_not_logged(self) -> None:
        """Neither a good nor a bad message leaves a word of itself in events or log."""
        binary, phone = self.relay.pair()
        phone.text('"payload-one"')
        binary.forward(phone, '"payload-two"')
        binary.text('{"conn_id":"payload-three"')
        phone.text("payload-four")
        self.assertNotIn("payload-", str(self.relay.seen.events))
        self.assertNotIn("payload-", self.log_text())


class NoticeTest(WireTest):
    """The close notice: who gets it, how often, with which code."""

    limits: ClassVar = {"max_phones": 2, "outbox_bytes": 100_000}

    def test_code_of_the_phone(self) -> None:
        """The notice has the code that the phone sent."""
        binary = self.relay.binary()
        for code in (1000, 1001, 3000, 4000, 4999):
            phone = self.relay.phone()
            phone.close(code)
            self.assertEqual(binary.notices[-1], (phone.conn_id, code))
        self.assertEqual(len(binary.notices), 5)

    def test_shape(self) -> None:
        """A notice is conn_id and close_code, without a frame."""
        binary, phone = self.relay.pair()
        phone.close(4000, "a reason that stays here")
        self.assertEqual(
            binary.messages, [f'{{"conn_id":"{phone.conn_id}","close_code":4000}}'.encode()]
        )

    def test_no_code(self) -> None:
        """A drop, a reset, and a close frame without a code are all 1001."""
        binary = self.relay.binary()
        for leave in (Client.finish, Client.reset, Client.close):
            phone = self.relay.phone()
            leave(phone)
            self.assertEqual(binary.notices[-1], (phone.conn_id, 1001))
        self.assertEqual(len(binary.notices), 3)

    def test_code_of_the_relay(self) -> None:
        """Where the relay closed the phone, the notice has that code."""
        binary = self.relay.binary()
        for sent, code in (
            (frame(1, b"oops"), 1007),
            (frame(1, b"\xff"), 1007),
            (frame(3), 1002),
            (frame(1, b"", length=1 << 40), 1009),
        ):
            phone = self.relay.phone()
            phone.send(sent)
            self.assertEqual(binary.notices[-1], (phone.conn_id, code))
        phone = self.relay.phone()
        phone.send(frame(1, b'"', fin=False))
        self.relay.advance(30.125)
        self.assertEqual(binary.notices[-1], (phone.conn_id, 1008))
        self.assertEqual(len(binary.notices), 5)

    def test_after_the_last_frame(self) -> None:
        """The notice stands behind the phone's last frame, once, even in one packet."""
        binary, phone = self.relay.pair()
        phone.send(frame(1, b"1") + frame(1, b"2") + frame(8, b"\x0f\xa0") + frame(1, b"3"))
        self.assertEqual(
            [each.get("frame", each.get("close_code")) for each in binary.envelopes], [1, 2, 4000]
        )

    def test_silent_phone(self) -> None:
        """It does not depend on whether the phone ever sent a frame."""
        binary, phone = self.relay.pair()
        phone.reset()
        self.assertEqual(binary.notices, [(phone.conn_id, 1001)])

    def test_asked_for(self) -> None:
        """No notice of a phone that the daemon asked to close, however that ended."""
        binary = self.relay.binary()
        phone = self.relay.phone()
        binary.direct(phone, 4401)
        mute = self.relay.phone()
        mute.answers = False
        binary.direct(mute, 4401)
        self.relay.advance(6)
        self.assertTrue(mute.gone)
        stalled = self.relay.phone()
        stalled.stop_reading()
        for _ in range(3):
            binary.forward(stalled, '"' + "x" * 30_000 + '"')
        binary.direct(stalled, 4401)
        stalled.reset()
        self.assertEqual(binary.notices, [])

    def test_never_registered(self) -> None:
        """No notice of a phone that never had a place."""
        binary = self.relay.binary()
        self.relay.phone()
        self.relay.phone()
        self.assertEqual(self.relay.phone().closed, (4429, "too many phones for server-id"))
        self.assertEqual(binary.envelopes, [])

    def test_notice_while_the_binary_is_slow(self) -> None:
        """A notice waits behind the phone's held frames for a daemon that is slow."""
        binary, phone = self.relay.pair()
        binary.stop_reading()
        for number in range(12):
            phone.text(f'"{number:04}' + "x" * 10_000 + '"')
        phone.close(4000)
        self.assertTrue(phone.gone)
        binary.resume_reading()
        self.assertEqual([each[:4] for each in binary.data_from(phone)], [
            f"{number:04}" for number in range(12)
        ])  # fmt: skip
        self.assertEqual(binary.notices, [(phone.conn_id, 4000)])
        self.assertEqual(binary.envelopes[-1]["close_code"], 4000)

    def test_left_in_grace(self) -> None:
        """A phone that left during the grace is nothing to the daemon that comes back."""
        old, phone = self.relay.pair()
        old.reset()
        phone.text("1")
        phone.close(4000)
        new = self.relay.binary()
        self.assertEqual(new.envelopes, [])
        self.assertEqual(self.relay.counts, (1, 0, 0))

    def test_came_in_grace(self) -> None:
        """A phone that came during the grace is evicted without a notice."""
        self.relay.binary().reset()
        phone = self.relay.phone()
        phone.text("1")
        new = self.relay.binary()
        self.assertEqual(phone.closed, (4404, "binary reclaimed server-id"))
        self.assertEqual(new.envelopes, [])

    def test_evicted(self) -> None:
        """No notice of evicted phones, to the new daemon or by a late answer of theirs."""
        old, phone = self.relay.pair()
        phone.answers = False
        old.reset()
        new = self.relay.binary()
        phone.send(frame(8, b"\x11\x34"))
        self.relay.advance(6)
        self.assertTrue(phone.gone)
        self.assertEqual(new.envelopes, [])

    def test_closing_phone_of_the_old_binary(self) -> None:
        """A phone that was closing when its daemon went is no notice to the next one."""
        old, phone = self.relay.pair()
        phone.answers = False
        phone.text("oops")
        self.assertEqual(old.notices, [(phone.conn_id, 1007)])
        old.reset()
        new = self.relay.binary()
        self.relay.advance(6)
        self.assertEqual(new.envelopes, [])

    def test_backlog_full(self) -> None:
        """1011 for a phone that did not read, and only one notice."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        for _ in range(10):
            binary.forward(phone, '"' + "x" * 30_000 + '"')
        self.relay.advance(40)
        self.assertEqual(binary.notices, [(phone.conn_id, 1011)])


class KeepNoticeTest(WireTest):
    """The close notice where phones are kept."""

    limits: ClassVar = {"on_reclaim": OnReclaim.KEEP}

    def reclaimed(self) -> tuple[Binary, Client]:
        """Return a daemon that came back, and the phone it was handed."""
        old, phone = self.relay.pair()
        old.reset()
        return self.relay.binary(), phone

    def test_handed_over(self) -> None:
        """A phone that was handed over is a notice to the daemon that has it now."""
        new, phone = self.reclaimed()
        phone.close(4000)
        self.assertEqual(new.notices, [(phone.conn_id, 4000)])

    def test_left_in_grace(self) -> None:
        """A phone that left in the grace is a notice to the next daemon, behind its frames."""
        old, phone = self.relay.pair()
        old.reset()
        phone.text("1")
        phone.close(4000)
        new = self.relay.binary()
        self.assertEqual(
            new.envelopes,
            [
                {"conn_id": phone.conn_id, "frame": 1},
                {"conn_id": phone.conn_id, "close_code": 4000},
            ],
        )

    def test_handed_over_twice(self) -> None:
        """A phone may be handed over again and again; each daemon hears once at most."""
        second, phone = self.reclaimed()
        second.reset()
        third = self.relay.binary()
        phone.finish()
        self.assertEqual(second.notices, [])
        self.assertEqual(third.notices, [(phone.conn_id, 1001)])

    def test_opcode(self) -> None:
        """What was held goes out as TEXT like everything else."""
        old, phone = self.relay.pair()
        old.reset()
        phone.send(frame(2, b"1"))
        new = self.relay.binary()
        self.assertEqual(new.count(Opcode.TEXT), 1)
        self.assertEqual(new.count(Opcode.BINARY), 0)
