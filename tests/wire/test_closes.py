"""Every close code: its exact code and reason, who gets it and when (section 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from pyrycode_relay.endpoints.binary import BinaryProtocol
from pyrycode_relay.endpoints.phone import PhoneProtocol
from pyrycode_relay.events import Event
from pyrycode_relay.protocol.close_codes import EndCause
from tests.peers.frames import frame
from tests.peers.requests import binary_headers, phone_headers
from tests.wire.harness import Binary, Client, WireTest

ONE_MIB = 1 << 20


class CloseTest(WireTest):
    """One close code each. Each test ends with an open sibling that notices nothing."""

    limits: ClassVar = {"max_phones": 3}

    def assert_untouched(self, *clients: Client) -> None:
        """Check that these connections are as open as ever."""
        for client in clients:
            self.assertIsNone(client.closed)
            self.assertFalse(client.gone)

    def test_no_server(self) -> None:
        """4404: a phone without a daemon, after the 101."""
        phone = self.relay.phone("nobody")
        assert phone.response is not None
        self.assertEqual(phone.response.status_code, 101)
        self.assertEqual(phone.closed, (4404, "no server with that id"))
        self.assertTrue(phone.gone)
        (fields,) = self.relay.seen.of(Event.PHONE_REGISTER_NO_SERVER)
        self.assertEqual(fields, {"server_id": "nobody", "remote": "192.0.2.7"})
        self.assertEqual(self.relay.counts, (0, 0, 0))

    def test_too_many_phones(self) -> None:
        """4429: a phone beyond the cap; the place is free as soon as another phone is gone."""
        binary = self.relay.binary()
        phones = [self.relay.phone() for _ in range(3)]
        extra = self.relay.phone()
        assert extra.response is not None
        self.assertEqual(extra.response.status_code, 101)
        self.assertEqual(extra.closed, (4429, "too many phones for server-id"))
        self.assertEqual(len(self.relay.seen.of(Event.PHONE_REGISTER_AT_CAP)), 1)
        self.assert_untouched(binary, *phones)
        phones[0].close(1000)
        self.assert_untouched(self.relay.phone())
        self.assertEqual(self.relay.counts, (1, 0, 3))

    def test_no_server_is_tested_before_the_cap(self) -> None:
        """4404 and not 4429 when the slot with its full house is gone."""
        self.relay.binary().reset()
        self.relay.advance(31)
        self.assertEqual(self.relay.phone().closed, (4404, "no server with that id"))

    def test_conflict(self) -> None:
        """4409: a daemon whose server-id another live one holds, after the 101."""
        incumbent = self.relay.binary()
        newcomer = self.relay.binary()
        assert newcomer.response is not None
        self.assertEqual(newcomer.response.status_code, 101)
        self.assertEqual(newcomer.closed, (4409, "server-id already claimed"))
        self.assertTrue(newcomer.gone)
        self.assert_untouched(incumbent)

    def test_reclaimed(self) -> None:
        """4404: the phones of a daemon that came back, at that moment."""
        binary = self.relay.binary()
        phones = [self.relay.phone(), self.relay.phone()]
        binary.reset()
        self.relay.advance(3)
        self.assert_untouched(*phones)
        self.relay.binary()
        for phone in phones:
            self.assertEqual(phone.closed, (4404, "binary reclaimed server-id"))
        self.assertEqual(self.relay.counts, (1, 0, 0))

    def test_grace_expired(self) -> None:
        """1000 without a reason: the phones of a daemon that did not come back."""
        binary, phone = self.relay.pair()
        binary.reset()
        self.relay.advance(29.875)
        self.assert_untouched(phone)
        self.relay.advance(0.25)
        self.assertEqual(phone.closed, (1000, ""))
        self.assertEqual(self.relay.counts, (0, 0, 0))
        self.assertEqual(len(self.relay.seen.of(Event.SERVER_EXPIRED)), 1)

    def test_not_json(self) -> None:
        """1007: a phone whose message is not exactly one JSON value; the others go on."""
        binary = self.relay.binary()
        other = self.relay.phone()
        for message in (
            '1,"conn_id":"victim"', "", " ", "{", "1 2", "nul", "NaN", "{'a':1}", "[1,]", "01",
            "\ufeff1", '"\x01"', "[" * 200_000, "[" * 100_000 + "]" * 100_000,
        ):  # fmt: skip
            phone = self.relay.phone()
            phone.text(message)
            self.assertEqual(phone.closed, (1007, "frame is not valid JSON"), message[:40])
            self.assertTrue(phone.gone)
            self.assertEqual(binary.data_from(phone), [])
            self.assertEqual(binary.notices[-1], (phone.conn_id, 1007))
        self.assert_untouched(binary, other)

    def test_json_by_the_grammar(self) -> None:
        """Any JSON value passes: each type, lone surrogates, numbers beyond any float."""
        binary, phone = self.relay.pair()
        for message in (
            "null", "true", " 1 ", '"x"', "[]", "{}", '"\\ud800"', "1e999", "-0",
            "9" * 5000, '{"a":1,"a":2}', '"\\u0000"', "[" * 500 + "]" * 500,
        ):  # fmt: skip
            phone.text(message)
            self.assertIsNone(phone.closed, message[:40])
            prefix = f'{{"conn_id":"{phone.conn_id}","frame":'
            self.assertEqual(binary.messages[-1].decode(), prefix + message + "}")

    def each_kind(self, name: str = "") -> list[tuple[Client, Client]]:
        """Return a phone and a daemon to hurt, each with one of the same slot to watch."""
        watched, victim = self.relay.binary("a" + name), self.relay.phone("a" + name)
        hurt, sibling = self.relay.binary("b" + name), self.relay.phone("b" + name)
        return [(victim, watched), (hurt, sibling)]

    def test_violation(self) -> None:
        """1002: a peer that violates RFC 6455, and no other."""
        for sender, watcher in self.each_kind():
            sender.send(frame(3, b"x"))
            self.assertEqual((sender.closed or (0,))[0], 1002)
            self.assertTrue(sender.gone)
            self.assertFalse(sender.was_reset)
            self.assert_untouched(watcher)

    def test_invalid_utf8(self) -> None:
        """1007: a peer that sends invalid UTF-8, in a text or in a binary message."""
        for opcode in (1, 2):
            for payload in (b'"\xff"', b'"\xc3"', b'"\xed\xa0\x80"', b'"a\xc3', b"\xf8\x88"):
                server_id = f"{opcode}{payload!r}"
                for role in ("phone", "binary"):
                    binary = self.relay.binary(server_id)
                    phone = self.relay.phone(server_id)
                    sender, watcher = (phone, binary) if role == "phone" else (binary, phone)
                    sender.send(frame(opcode, payload))
                    self.assertEqual((sender.closed or (0,))[0], 1007, f"{role} {payload!r}")
                    self.assertNotEqual((sender.closed or (0, ""))[1], "frame is not valid JSON")
                    self.assertTrue(sender.gone)
                    self.assert_untouched(watcher)
                    watcher.reset()
        self.relay.advance(31)

    def test_utf8_split_between_fragments(self) -> None:
        """A character cut in two by a fragment's end is valid, in either opcode."""
        binary, phone = self.relay.pair()
        for opcode in (1, 2):
            phone.send(frame(opcode, b'"\xc3', fin=False) + frame(0, b'\xa5"'))
        self.assertEqual(binary.data_from(phone), ["å", "å"])

    def test_too_large(self) -> None:
        """1009: a peer that sends more than the cap, in one frame or in fragments."""
        cap = 262_144
        for sender, watcher in self.each_kind():
            allowed = cap + (4096 if isinstance(sender, Binary) else 0)
            sender.send(frame(1, b"1" * (allowed - 5), fin=False) + frame(0, b"1" * 6, fin=False))
            self.assertEqual((sender.closed or (0,))[0], 1009)
            self.assertTrue(sender.gone)
            self.assert_untouched(watcher)
            self.assert_too_big(sender, allowed + 1, allowed)
        for sender, watcher in self.each_kind("again"):
            allowed = cap + (4096 if isinstance(sender, Binary) else 0)
            sender.send(frame(1, b"1" * (allowed + 1)))
            self.assertEqual((sender.closed or (0,))[0], 1009)
            self.assertFalse(sender.was_reset)
            self.assert_untouched(watcher)
            self.assert_too_big(sender, allowed + 1, allowed)

    def assert_too_big(self, sender: Client, size: int, limit: int) -> None:
        """Check that the log has one line about a message, with both sizes."""
        [fields] = self.relay.seen.of(Event.MESSAGE_TOO_BIG)
        self.relay.seen.clear()
        self.assertEqual((fields["size"], fields["limit"]), (size, limit))
        self.assertEqual(fields["remote"], sender.host)

    def test_message_timeout(self) -> None:
        """1008: a peer that begins a message and does not end it in 30 s."""
        for sender, watcher in self.each_kind():
            sender.send(frame(1, b'"abc', fin=False))
            self.relay.advance(29.875)
            self.assert_untouched(sender)
            self.relay.advance(0.25)
            self.assertEqual(sender.closed, (1008, "message not completed in time"))
            self.assertTrue(sender.gone)
            self.assert_untouched(watcher)

    def test_heartbeat_timeout(self) -> None:
        """1011: a peer that does not answer a ping for 30 s; a daemon's grace begins then."""
        (phone, binary), (other_binary, other_phone) = self.each_kind()
        phone.answers = other_binary.answers = False
        self.relay.advance(27 + 29.875)
        self.assert_untouched(phone, binary, other_phone, other_binary)
        self.relay.advance(33 - 27 + 0.25)
        for silent in (phone, other_binary):
            self.assertEqual(silent.closed, (1011, "heartbeat timeout"))
        self.assert_untouched(binary, other_phone)
        self.assertEqual(self.relay.counts, (1, 1, 1))
        self.relay.advance(5)
        self.assertTrue(phone.gone)
        self.assertTrue(other_binary.gone)

    def test_failed_probe(self) -> None:
        """1011: the incumbent that did not answer when another daemon claimed its id."""
        incumbent = self.relay.binary()
        incumbent.answers = False
        newcomer = self.relay.binary()
        self.relay.advance(9.875)
        self.assert_untouched(incumbent, newcomer)
        self.relay.advance(0.25)
        self.assertEqual(incumbent.closed, (1011, "heartbeat timeout"))
        self.assert_untouched(newcomer)

    def test_internal_error(self) -> None:
        """1011: a bug in a hook costs its connection and leaves a traceback, each hook in turn."""
        binary, sibling = self.relay.pair()

        def broken(*args: object, **kwargs: object) -> None:
            raise RuntimeError("a bug")

        phone = self.relay.phone()
        with _patched(PhoneProtocol, "message", broken):
            phone.text("1")
        self.assertEqual(phone.closed, (1011, "internal error"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assertEqual(binary.notices, [(phone.conn_id, 1011)])

        with _patched(PhoneProtocol, "opened", broken):
            phone = self.relay.phone()
        self.assertEqual(phone.closed, (1011, "internal error"))
        self.assertTrue(phone.gone)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

        phone = self.relay.phone()
        with _patched(PhoneProtocol, "ended", broken):
            phone.close(4000, "bye")
        self.assertEqual(phone.closed, (4000, "bye"))
        self.assertTrue(phone.gone)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

        with _patched(BinaryProtocol, "message", broken):
            binary.text("{}")
        self.assertEqual(binary.closed, (1011, "internal error"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)
        self.assert_untouched(sibling)
        self.assertNotIn("bug", bytes(phone.received + binary.received).decode("latin-1"))

    def test_bug_in_on_connect(self) -> None:
        """A bug before the upgrade is a bare 500 and a traceback; nothing of it is shown."""

        def broken(*args: object) -> None:
            raise RuntimeError("secret detail")

        with _patched(PhoneProtocol, "server_id", property(broken, broken)):
            phone = self.relay.client("/v1/client", phone_headers())
        answer = phone.answer
        self.assertEqual((answer.status, answer.body), (500, b""))
        self.assertNotIn(b"secret", answer.raw)
        self.assertNotIn("server", answer.headers)
        self.assertTrue(phone.gone)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_drain(self) -> None:
        """1001: everybody, when the relay stops."""
        binary, phone = self.relay.pair()
        self.relay.service.stopService()
        self.relay.advance(10)
        for client in (binary, phone):
            self.assertEqual(client.closed, (1001, "shutting down"))
            self.assertTrue(client.gone)
            self.assertFalse(client.was_reset)


class _patched:
    """Replace an attribute of a class for a while."""

    def __init__(self, owner: Any, name: str, value: object) -> None:
        self.owner, self.name, self.value = owner, name, value

    def __enter__(self) -> None:
        self.original = self.owner.__dict__[self.name]
        setattr(self.owner, self.name, self.value)

    def __exit__(self, *exc: object) -> None:
        setattr(self.owner, self.name, self.original)


class StallTest(WireTest):
    """Closes of a peer that does not read."""

    limits: ClassVar = {"outbox_bytes": 200_000}

    def fill(self, binary: Binary, phone: Client, frames: int) -> None:
        """Have the daemon send frames of 10,000 bytes."""
        for number in range(frames):
            binary.forward(phone, '"' + f"{number:09}" + "x" * 9_989 + '"')

    def test_backlog_full(self) -> None:
        """1011: a phone whose outbox would pass its budget; others are not disturbed."""
        binary, phone = self.relay.pair()
        other = self.relay.phone()
        phone.stop_reading()
        self.fill(binary, phone, 22)
        self.assertEqual(binary.notices, [])
        self.fill(binary, phone, 10)
        self.assertEqual(binary.notices, [(phone.conn_id, 1011)])
        binary.forward(other, "1")
        self.assertEqual(other.messages, [b"1"])
        phone.resume_reading()
        self.assertEqual(phone.closed, (1011, "phone backlog full"))
        (fields,) = self.relay.seen.of(Event.PHONE_UNREGISTERED)
        self.assertEqual(fields["close_code"], 1011)
        self.assertIs(fields["reason"], EndCause.PHONE_BACKLOG_FULL)

    def test_write_stalled(self) -> None:
        """1011: a phone that takes nothing of its outbox for the write timeout."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        self.fill(binary, phone, 10)
        self.relay.advance(29.875)
        self.assertEqual(binary.notices, [])
        self.relay.advance(0.25)
        self.assertEqual(binary.notices, [(phone.conn_id, 1011)])
        phone.resume_reading()
        self.assertEqual(phone.closed, (1011, "phone write stalled"))

    def test_stalled_binary_starts_its_grace(self) -> None:
        """A daemon that takes nothing for the write timeout is dropped, and grace starts."""
        binary, phone = self.relay.pair()
        binary.stop_reading()
        for _ in range(10):
            phone.text('"' + "x" * 10_000 + '"')
        self.relay.advance(30.125)
        self.assertEqual(self.relay.counts, (0, 1, 1))
        self.assertIsNone(phone.closed)
        binary.resume_reading()
        self.assertEqual((binary.closed or (0,))[0], 1011)


class DirectiveTest(WireTest):
    """Closes that a daemon asks for."""

    def test_legal_codes(self) -> None:
        """Every code that may stand in a close frame reaches the phone as it is, without reason."""
        binary = self.relay.binary()
        legal = [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4401, 4421, 4426]
        for code in [*legal, 4999]:
            phone = self.relay.phone()
            binary.direct(phone, code)
            self.assertEqual(phone.closed, (code, ""))
            self.assertTrue(phone.gone)
        self.assertEqual(binary.notices, [])

    def test_illegal_codes(self) -> None:
        """A code that may not stand in a close frame closes the phone with 1000."""
        binary = self.relay.binary()
        for code in (1, 7, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535):
            phone = self.relay.phone()
            binary.direct(phone, code)
            self.assertEqual(phone.closed, (1000, ""), str(code))
        self.assertEqual(binary.notices, [])

    def test_no_codes(self) -> None:
        """A close_code that is no integer from 1 to 65535 closes nobody, and the daemon stays."""
        binary, phone = self.relay.pair()
        for code in (0, -1, 65536, 1 << 70, 4401.0, "4401e0", '"4401"', "null", "true", "[4401]"):
            binary.direct(phone, code, "1")
        self.assertIsNone(phone.closed)
        self.assertIsNone(binary.closed)
        self.assertEqual(phone.messages, [])
        self.assertEqual(len(self.relay.seen.of(Event.BINARY_ENVELOPE_REFUSED)), 10)

    def test_own_frame_comes_first(self) -> None:
        """The frame of a directive is delivered before the close; null and absent are no frame."""
        binary = self.relay.binary()
        for message, delivered in (("[1]", [b"[1]"]), ("null", []), (None, [])):
            phone = self.relay.phone()
            binary.direct(phone, 4401, message)
            self.assertEqual(phone.messages, delivered)
            self.assertEqual(phone.closed, (4401, ""))

    def test_after_what_is_queued(self) -> None:
        """A directive takes effect after every frame queued before it; later frames are dropped."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        expected = [b'"%05d%s"' % (number, b"x" * 5_000) for number in range(60)]
        for message in expected:
            binary.forward(phone, message.decode())
        binary.direct(phone, 4421, '"last"')
        binary.forward(phone, '"after"')
        binary.direct(phone, 4000)
        self.assertEqual(len(self.relay.seen.of(Event.BINARY_LATE_ENVELOPE)), 2)
        self.assertEqual(self.relay.seen.of(Event.BINARY_UNKNOWN_CONN_ID), [])
        phone.resume_reading()
        self.assertEqual(phone.messages, [*expected, b'"last"'])
        self.assertEqual(phone.closed, (4421, ""))
        self.assertEqual(binary.notices, [])

    def test_phone_speaks_after_the_directive(self) -> None:
        """Messages of a phone go nowhere once its daemon has directed its close."""
        binary, phone = self.relay.pair()
        phone.answers = False
        binary.direct(phone, 4401)
        phone.send(frame(1, b"1"))
        self.assertEqual(binary.data_from(phone), [])
        self.relay.advance(5.125)
        self.assertTrue(phone.gone)

    def test_phone_speaks_while_the_directive_waits(self) -> None:
        """Nor does it change its close while that waits behind queued frames."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        for _ in range(30):
            binary.forward(phone, '"' + "x" * 5_000 + '"')
        binary.direct(phone, 4401)
        phone.send(frame(1, b"1") + frame(1, b"oops"))
        phone.resume_reading()
        self.assertEqual(binary.envelopes, [])
        self.assertEqual(phone.closed, (4401, ""))
        self.assertEqual(len(phone.messages), 30)


class FirstCloseTest(WireTest):
    """One close per connection, and the first wins."""

    def test_close_then_other_reasons(self) -> None:
        """Nothing that happens to a connection that is closing changes its close."""
        binary, phone = self.relay.pair()
        phone.answers = False
        phone.text("oops")
        phone.send(frame(1, b"1") + frame(1, b"also oops"))
        binary.direct(phone, 4401)
        binary.reset()
        self.relay.service.stopService()
        self.relay.advance(6)
        self.assertEqual(phone.closed, (1007, "frame is not valid JSON"))
        closes = [each for each in phone.frames if each.opcode == 8]
        self.assertEqual(len(closes), 1)
        self.assertEqual(binary.notices, [(phone.conn_id, 1007)])
        self.assertEqual(binary.data_from(phone), [])
        self.assertEqual(len(self.relay.seen.of(Event.PHONE_UNREGISTERED)), 1)

    def test_directive_that_waits_then_drain(self) -> None:
        """A directive that waits behind queued frames wins over the drain that comes later."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        for _ in range(30):
            binary.forward(phone, '"' + "x" * 5_000 + '"')
        binary.direct(phone, 4401)
        self.relay.service.stopService()
        self.relay.advance(1)
        phone.resume_reading()
        self.assertEqual(phone.closed, (4401, ""))

    def test_peer_that_closes_first(self) -> None:
        """A close frame from the peer is answered with its code and reason."""
        for code, reason in ((1000, ""), (1001, "bye"), (3000, "x"), (4999, "y")):
            _, phone = self.relay.pair()
            phone.close(code, reason)
            self.assertEqual(phone.closed, (code, reason))
            self.assertTrue(phone.gone)
            self.assertFalse(phone.was_reset)
            self.relay.advance(1)

    def test_nothing_else_is_waited_for(self) -> None:
        """A connection that is closing has one timer, the abort, whatever it waited for."""
        for begun, timers in ((b"", ["pong"]), (frame(1, b'"', fin=False), ["ping", "message"])):
            binary, phone = self.relay.binary(str(timers)), self.relay.phone(str(timers))
            phone.answers = False
            self.relay.advance(33.125)
            if begun:
                phone.send(begun)
            before = len(self.relay.reactor.getDelayedCalls())
            binary.direct(phone, 4401)
            self.assertEqual(
                len(self.relay.reactor.getDelayedCalls()), before - len(timers) + len(["abort"])
            )
            self.relay.advance(6)
            self.assertTrue(phone.gone)

    def stalled(self) -> Client:
        """Return a phone that reads nothing, whose transport has stopped its connection."""
        binary, phone = self.relay.pair()
        phone.stop_reading()
        binary.forward(phone, '"' + "x" * 70_000 + '"')
        return phone

    def test_violation_of_a_slow_reader(self) -> None:
        """A slow peer that violates the protocol reads what was written, the close frame, and the
        end of the stream, with no abort."""
        phone = self.stalled()
        phone.send(frame(3))
        phone.resume_reading()
        self.assertEqual((phone.closed or (0,))[0], 1002)
        self.assertTrue(phone.socket.finished)
        self.assertTrue(phone.gone)
        self.assertFalse(phone.was_reset)

    def test_close_of_a_slow_reader(self) -> None:
        """So does a slow peer that closes: it reads the answer behind what was written."""
        phone = self.stalled()
        phone.close(1000)
        self.assertFalse(phone.gone)
        phone.resume_reading()
        self.assertEqual((phone.closed, len(phone.messages)), ((1000, ""), 1))
        self.assertTrue(phone.gone)
        self.assertFalse(phone.was_reset)

    def test_empty_close(self) -> None:
        """A close frame without a code is answered by one without."""
        _, phone = self.relay.pair()
        phone.close()
        self.assertEqual(phone.closed, (1005, ""))
        self.assertTrue(phone.gone)


def _abort_test(hurt: Callable[[WireTest], Client]) -> Callable[[AbortTest], None]:
    def test(self: AbortTest) -> None:
        client = hurt(self)
        client.answers = False
        self.assertFalse(client.gone)
        self.relay.advance(4.875)
        self.assertFalse(client.gone)
        self.relay.advance(0.25)
        self.assertTrue(client.gone)
        self.assertTrue(client.was_reset)

    return test


class AbortTest(WireTest):
    """Behind every close stands an abort after the close timeout, whatever the peer does."""


def _mute_phone(test: WireTest) -> Client:
    _, phone = test.relay.pair()
    phone.answers = False
    return phone


def _not_json(test: WireTest) -> Client:
    phone = _mute_phone(test)
    phone.send(frame(1, b"oops"))
    return phone


def _violation(test: WireTest) -> Client:
    phone = _mute_phone(test)
    phone.send(frame(3))
    return phone


def _too_large(test: WireTest) -> Client:
    phone = _mute_phone(test)
    phone.send(frame(1, b"", length=ONE_MIB))
    return phone


def _not_utf8(test: WireTest) -> Client:
    phone = _mute_phone(test)
    phone.send(frame(1, b"\xff"))
    return phone


def _no_server(test: WireTest) -> Client:
    phone = Client(test.relay, "192.0.2.7", "/v1/client")
    phone.answers = False
    test.relay._accept(phone)
    phone.handshake(phone_headers())
    return phone


def _directive(test: WireTest) -> Client:
    binary, phone = test.relay.pair()
    phone.answers = False
    binary.direct(phone, 4401)
    return phone


def _expired(test: WireTest) -> Client:
    binary, phone = test.relay.pair()
    phone.answers = False
    binary.reset()
    test.relay.advance(29)
    phone.send(frame(10))
    test.relay.advance(1)
    return phone


def _reclaimed(test: WireTest) -> Client:
    binary, phone = test.relay.pair()
    phone.answers = False
    binary.reset()
    test.relay.binary()
    return phone


def _conflict(test: WireTest) -> Client:
    test.relay.binary()
    newcomer = Binary(test.relay, "192.0.2.7", "/v1/server")
    newcomer.answers = False
    test.relay._accept(newcomer)
    newcomer.handshake(binary_headers())
    return newcomer


def _peer_closed(test: WireTest) -> Client:
    _, phone = test.relay.pair()
    phone.answers = False
    phone.stop_reading()
    phone.send(frame(8, b"\x03\xe8"))
    return phone


def _backlog_full(test: WireTest) -> Client:
    binary, phone = test.relay.pair()
    phone.stop_reading()
    while not binary.notices:
        binary.forward(phone, '"' + "x" * 200_000 + '"')
    return phone


def _reads_nothing(test: WireTest) -> Client:
    phone = _mute_phone(test)
    phone.stop_reading()
    phone.send(frame(1, b"oops"))
    return phone


def _backlog_then_not_json(test: WireTest) -> Client:
    binary, phone = test.relay.pair()
    phone.stop_reading()
    for _ in range(10):
        binary.forward(phone, '"' + "x" * 100_000 + '"')
    phone.send(frame(1, b"oops"))
    return phone


for _name, _hurt in {
    "not_json": _not_json,
    "violation": _violation,
    "too_large": _too_large,
    "not_utf8": _not_utf8,
    "no_server": _no_server,
    "directive": _directive,
    "expired": _expired,
    "reclaimed": _reclaimed,
    "conflict": _conflict,
    "peer_closed_and_stays": _peer_closed,
    "backlog_full": _backlog_full,
    "reads_nothing": _reads_nothing,
    "close_behind_a_backlog": _backlog_then_not_json,
}.items():
    _test = _abort_test(_hurt)
    _test.__name__ = f"test_{_name}"
    _test.__doc__ = f"A peer that does nothing about its close is aborted in time: {_name}."
    setattr(AbortTest, _test.__name__, _test)
