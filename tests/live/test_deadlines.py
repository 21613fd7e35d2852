"""Peers that take their time: with a message, with a request, with nothing at all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from pyrycode_relay.events import Event
from tests.live.harness import Peer, RelayCase, round_trip
from tests.peers.envelopes import envelope, numbered
from tests.peers.frames import CONTINUATION, PING, PONG, frame, text_frame
from tests.peers.requests import phone_fields, upgrade_request


def dribble(peer: Peer, data: bytes, piece: int, pause: float = 0.0) -> int:
    """Send ``data`` in pieces, with a pause behind each, until all is out or no one listens.

    Return how many bytes were sent.
    """
    sent = 0
    with contextlib.suppress(OSError):
        for start in range(0, len(data), piece):
            peer.write(data[start : start + piece])
            sent += piece
            time.sleep(pause)  # the pace is the point
    return min(sent, len(data))


class PartialMessages(RelayCase):
    """Messages that do not come in one go."""

    async def test_message_that_is_not_completed_closes_its_sender(self) -> None:
        """A phone or a binary that begins a message, or a frame, and does not finish it is
        closed 1008; pings and pongs in between do not help."""
        relay = self.relay(message_timeout=0.3, close_timeout=1.0)
        whole = text_frame(numbered("peer", 0, 400))
        fragment = text_frame(b'{"a":', fin=False)
        for part in (whole[:1], whole[:5], whole[:200], fragment, fragment + frame(PING)):
            binary = await self.binary(relay)
            phone = await self.phone(relay)
            await self.in_thread(phone.write, part)
            closed = await self.in_thread(phone.closed_with)
            self.assertEqual((1008, "message not completed in time"), closed, part)
            notice = await self.in_thread(binary.envelope)
            self.assertEqual({"conn_id": phone.conn_id, "close_code": 1008}, notice)
            await self.in_thread(binary.write, part)
            closed = await self.in_thread(binary.closed_with)
            self.assertEqual((1008, "message not completed in time"), closed, part)
            await self.until(lambda: relay.counts() == (0, 0), "the end")

    async def test_dribbled_message_is_cut_although_bytes_keep_coming(self) -> None:
        """The deadline is for the whole message: bytes that keep coming do not move it."""
        relay = self.relay(message_timeout=0.5, close_timeout=1.0)
        binary = await self.binary(relay)
        phone = await self.phone(relay)
        dribbling = self.in_thread(dribble, phone, text_frame(numbered("phone", 0, 2000)), 20, 0.05)
        notice = await self.in_thread(binary.envelope)
        self.assertEqual({"conn_id": phone.conn_id, "close_code": 1008}, notice)
        self.assertEqual(
            (1008, "message not completed in time"), await self.in_thread(phone.closed_with)
        )
        await dribbling

    async def test_many_messages_may_take_longer_together(self) -> None:
        """Messages that follow each other without a gap, each complete well within the
        deadline but together far beyond it, all arrive: the deadline is each message's own."""
        timeout = 1.0
        relay = self.relay(message_timeout=timeout)
        binary = await self.binary(relay)
        phone = await self.phone(relay)
        frames = [numbered("phone", number, 90) for number in range(40)]
        stream = b"".join(map(text_frame, frames))
        self.assertNotEqual(0, len(text_frame(frames[0])) % 64, "pieces end with messages")
        started = time.monotonic()
        dribbling = self.in_thread(dribble, phone, stream, 64, 0.05)
        for number in range(len(frames)):
            got = await self.in_thread(binary.envelope)
            self.assertEqual(number, got["frame"]["n"])
        await dribbling
        self.assertGreater(time.monotonic() - started, 2 * timeout)

    async def test_idle_between_messages_is_free(self) -> None:
        """A connection that says nothing for several message deadlines stays."""
        relay = self.relay(message_timeout=0.2)
        binary = await self.binary(relay)
        phone = await self.phone(relay)
        await self.in_thread(round_trip, phone, binary, 0)
        await self.wait(1.0)
        await self.in_thread(round_trip, phone, binary, 1)

    async def test_large_message_in_small_pieces(self) -> None:
        """A message of 256 KiB that comes in pieces of 100 bytes arrives whole, both ways."""
        relay = self.relay()
        binary = await self.binary(relay)
        phone = await self.phone(relay)
        frame = numbered("phone", 0, 262_144)
        self.assertEqual(262_144, len(frame))
        await self.in_thread(dribble, phone, text_frame(frame), 100, 0.0002)
        got = await self.in_thread(binary.message)
        self.assertEqual(envelope(phone.conn_id, frame), got)
        await self.in_thread(dribble, binary, text_frame(got), 100, 0.0002)
        self.assertEqual(frame, await self.in_thread(phone.message))

    async def test_message_in_many_fragments(self) -> None:
        """A message in a thousand fragments, with pings between them, arrives as one frame,
        and every ping is answered."""
        relay = self.relay()
        binary = await self.binary(relay)
        phone = await self.phone(relay)
        message = numbered("phone", 0, 100_000)
        pieces = [message[start : start + 100] for start in range(0, len(message), 100)]
        stream = text_frame(pieces[0], fin=False)
        for number, piece in enumerate(pieces[1:], 1):
            if number % 100 == 0:
                stream += frame(PING, b"%d" % number)
            stream += frame(CONTINUATION, piece, fin=number == len(pieces) - 1)
        await self.in_thread(phone.write, stream)
        self.assertEqual(envelope(phone.conn_id, message), await self.in_thread(binary.message))
        for number in range(100, len(pieces), 100):
            self.assertEqual((PONG, b"%d" % number), await self.in_thread(phone.frame))


class Bursts(RelayCase):
    """Many messages at once."""

    async def test_burst_to_a_phone_that_has_just_come(self) -> None:
        """300 frames that a binary sends at a phone's first sign arrive whole and in order,
        also when the phone does not read at first."""
        relay = self.relay()
        binary = await self.binary(relay)
        for size in (0, 3000):
            phone = await self.phone(relay, receive_buffer=16_384)
            frames = [numbered("binary", number, size) for number in range(300)]
            burst = b"".join(text_frame(envelope(phone.conn_id, frame)) for frame in frames)
            await self.in_thread(binary.write, burst)
            self.assertEqual(frames, await self.in_thread(phone.messages, len(frames)))
        self.assertEqual([], relay.recorder.of(Event.PHONE_UNREGISTERED))

    async def test_frames_in_the_packet_of_the_request(self) -> None:
        """Frames that come right behind the request, before its answer, are not lost."""
        relay = self.relay()
        binary = await self.binary(relay)
        phone = await self.dial(relay)
        frames = [numbered("phone", number, 500) for number in range(200)]
        stream = b"".join(map(text_frame, frames))
        request = upgrade_request("/v1/client", phone_fields("s"))
        await self.in_thread(phone.write, request + stream)
        self.assertEqual(101, (await self.in_thread(phone.head))[0])
        for number in range(len(frames)):
            got = await self.in_thread(binary.envelope)
            self.assertEqual(number, got["frame"]["n"])

    async def test_bursts_over_a_unix_socket(self) -> None:
        """The same goes for peers on a UNIX socket, in both directions."""
        self.unix = True
        relay = self.relay()
        binary = await self.binary(relay)
        phone = await self.phone(relay)
        frames = [numbered("x", number, 3000) for number in range(300)]
        upward = self.in_thread(phone.write, b"".join(map(text_frame, frames)))
        for message in frames:
            got = await self.in_thread(binary.message)
            self.assertEqual(envelope(phone.conn_id, message), got)
            await self.in_thread(binary.send, got)
        await upward
        self.assertEqual(frames, await self.in_thread(phone.messages, len(frames)))


class SlowRequests(RelayCase):
    """Requests that do not come, or come to too much."""

    async def test_request_that_does_not_come_in_time_is_cut(self) -> None:
        """A connection that says nothing, or whose request's head dribbles in, ends at the
        header timeout; bytes that keep coming do not move it."""
        relay = self.relay(header_timeout=0.5)
        head = upgrade_request("/v1/client", phone_fields("s"))
        for part in (b"", head[:-2]):
            peer = await self.dial(relay)
            await self.in_thread(peer.write, part)
            self.assertEqual(b"", await self.in_thread(peer.read_to_end), part)
        peer = await self.dial(relay)
        dribbling = self.in_thread(dribble, peer, head, 1, 0.05)
        self.assertEqual(b"", await self.in_thread(peer.read_to_end))
        self.assertLess(await dribbling, len(head), "it came to its end")
        self.assertEqual(0, len(relay.service.site.channels))

    async def test_answered_connection_does_not_stay(self) -> None:
        """A connection does not stay beyond its answer, whatever it asks for afterwards."""
        relay = self.relay(header_timeout=0.5, close_timeout=0.5)
        ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
        for more in (b"", ask[:10], ask * 1000):
            peer = await self.dial(relay)
            await self.in_thread(peer.write, ask)
            self.assertEqual(200, (await self.in_thread(peer.head))[0])
            await self.in_thread(dribble, peer, more, 10)
            body = await self.in_thread(peer.read_to_end)
            self.assertTrue(body.startswith(b'{"status":"ok"') and body.endswith(b"}"), body)
            await self.until(lambda: not relay.service.site.channels, "the channel's end")

    async def send_too_much(self, lines: Sequence[bytes]) -> bytes:
        """Send a request with more header lines; return what the relay says to that."""
        relay = self.relay(header_timeout=60.0, close_timeout=0.5)
        await self.binary(relay)
        head = upgrade_request("/v1/client", phone_fields("s"))[:-2]
        peer = await self.dial(relay)
        writing = self.in_thread(dribble, peer, head + b"".join(lines) + b"\r\n", 65_536)
        answer = await self.in_thread(peer.read_to_end)
        await writing
        await self.until(lambda: not relay.service.site.channels, "the channel's end")
        self.assertEqual((1, 0), relay.counts())
        self.assertEqual([], relay.recorder.of(Event.PHONE_REGISTERED))
        return answer

    async def test_block_of_a_mebibyte_is_refused(self) -> None:
        """A mebibyte of headers, in one line or in a thousand, ends the connection with at most
        a 400, long before the header timeout."""
        kib = b"x-pad-%d: " + b"p" * 1000 + b"\r\n"
        for lines in ([b"x-pad: " + b"p" * (1 << 20) + b"\r\n"], [kib % n for n in range(1048)]):
            answer = await self.send_too_much(lines)
            # The reset that follows may overtake it.
            self.assertIn(answer.split(b"\r\n")[0], {b"", b"HTTP/1.1 400 Bad Request"})
            self.assertLessEqual(answer.count(b"HTTP/1.1"), 1)

    async def test_more_than_500_lines_are_refused(self) -> None:
        """A request with 600 header lines gets one 400; one with 100 passes."""
        answer = await self.send_too_much([b"x-%d: y\r\n" % number for number in range(600)])
        self.assertTrue(answer.startswith(b"HTTP/1.1 400 Bad Request\r\n"), answer)
        self.assertEqual(1, answer.count(b"HTTP/1.1"))
        relay = self.relay()
        await self.binary(relay)
        extra = {f"x-{number}": "y" for number in range(100)}
        await self.upgrade(relay, "/v1/client", phone_fields("s") | extra)
        self.assertEqual((1, 1), relay.counts())


class Heartbeats(RelayCase):
    """Connections on which nothing happens."""

    async def test_peer_that_answers_pings_stays_and_one_that_does_not_goes(self) -> None:
        """A phone that answers its pings stays however long it is silent; its sibling, which
        does not, is closed 1011 and its binary is told."""
        relay = self.relay(heartbeat_interval=0.2, heartbeat_timeout=0.4)

        def answer_pings(peer: Peer) -> None:
            with contextlib.suppress(Exception):
                while True:
                    self.assertEqual(PING, peer.frame().opcode)
                    peer.send(b"", PONG)

        alive = await self.binary(relay, "alive")
        phone = await self.phone(relay, "alive")
        self.in_thread(answer_pings, phone)
        silent = await self.phone(relay, "alive")
        # message() answers pings, so the binary lives for as long as it waits for one.
        notice = await self.in_thread(alive.envelope)
        self.assertEqual({"conn_id": silent.conn_id, "close_code": 1011}, notice)
        before, code, reason = await self.in_thread(silent.closing)
        self.assertEqual(([], 1011, "heartbeat timeout"), (before, code, reason))
        waiting = self.in_thread(alive.envelope)
        await self.wait(1.5)
        self.assertFalse(waiting.called, "the phone that answers was closed too")
        self.assertEqual((1, 1), relay.counts())
        await self.in_thread(phone.release)
        await waiting
