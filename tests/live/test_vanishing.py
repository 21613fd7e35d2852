"""Peers that vanish, at any moment and in any way: counts go back, notices keep their rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from pyrycode_relay.events import Event
from pyrycode_relay.limits import OnReclaim
from tests.live.harness import Peer, RelayCase, round_trip, server_ends
from tests.peers.envelopes import directive, envelope, numbered
from tests.peers.frames import PING, TEXT, frame, text_frame
from tests.peers.requests import binary_fields, phone_fields, upgrade_request

End = Callable[[Peer], None]


def say_4001_and_reset(peer: Peer) -> None:
    """Say goodbye properly, then take the socket away once the answer is there."""
    peer.say_close(4001)
    peer.closing(answer=False)
    peer.reset()


def say_4001_and_finish(peer: Peer) -> None:
    """Say goodbye and send a FIN in the same breath."""
    peer.say_close(4001)
    peer.finish()


def say_nothing_in_particular(peer: Peer) -> None:
    """Say goodbye with an empty close frame."""
    peer.say_close(None)


ENDS: Final[dict[str, tuple[End, int]]] = {
    "reset": (Peer.reset, 1001),
    "half-close": (Peer.finish, 1001),
    "empty close": (say_nothing_in_particular, 1001),
    "close and half-close": (say_4001_and_finish, 4001),
    "close and reset": (say_4001_and_reset, 4001),
}
"""Ways for a phone to go, and the code that its binary is told."""

MESSAGE: Final = text_frame(b'{"pad":"' + b"x" * 300 + b'"}')
PARTS: Final = {
    "nothing": b"",
    "half a header": MESSAGE[:1],
    "a header": MESSAGE[:8],
    "half a frame": MESSAGE[:150],
    "a first fragment": text_frame(b'{"a":', fin=False),
    "half a ping": frame(PING, b"ping")[:4],
}
"""What a phone may be in the middle of."""


class VanishingPhones(RelayCase):
    """Phones that go."""

    async def test_every_end_of_a_phone_gives_one_notice(self) -> None:
        """However a phone goes, and in the middle of whatever, its binary gets exactly one
        notice with the right code, and the phone's place is free."""
        relay = self.relay()
        binary = await self.binary(relay)
        sibling = await self.phone(relay)
        number = 0
        for way, (end, code) in ENDS.items():
            for what, part in PARTS.items():
                if (part and code == 4001) or (part and way == "empty close"):
                    continue  # a close frame cannot stand in the middle of a frame
                phone = await self.phone(relay)
                await self.in_thread(phone.write, part)
                await self.in_thread(end, phone)
                notice = await self.in_thread(binary.envelope)
                expected = {"conn_id": phone.conn_id, "close_code": code}
                self.assertEqual(expected, notice, f"{way} during {what}")
                self.assertEqual((1, 1), relay.counts(), f"{way} during {what}")
                # A second notice would stand before the answer.
                number += 1
                await self.in_thread(sibling.send, numbered("sibling", number))
                got = await self.in_thread(binary.envelope)
                self.assertEqual(sibling.conn_id, got["conn_id"], f"{way} during {what}")
        ended = relay.recorder.of(Event.PHONE_UNREGISTERED)
        self.assertEqual(number, len(ended))

    async def test_close_between_fragments_counts(self) -> None:
        """A close frame between the fragments of a message ends the phone with its code, and
        the unfinished message reaches no one."""
        relay = self.relay()
        binary = await self.binary(relay)
        phone = await self.phone(relay)
        await self.in_thread(phone.send, b'{"a":', TEXT, False)
        await self.in_thread(phone.say_close, 3000)
        notice = await self.in_thread(binary.envelope)
        self.assertEqual({"conn_id": phone.conn_id, "close_code": 3000}, notice)

    async def test_frames_before_the_end_arrive_before_the_notice(self) -> None:
        """What a phone has sent before it goes reaches the binary, and then the notice."""
        relay = self.relay()
        binary = await self.binary(relay)
        for way, (end, code) in ENDS.items():
            if end is Peer.reset:
                continue  # a reset may take what is still unread with it
            phone = await self.phone(relay)
            frames = [numbered(phone.conn_id, number, 5000) for number in range(20)]
            await self.in_thread(phone.write, b"".join(map(text_frame, frames)))
            await self.in_thread(end, phone)
            for number in range(len(frames)):
                got = await self.in_thread(binary.envelope)
                self.assertEqual(number, got["frame"]["n"], way)
            notice = await self.in_thread(binary.envelope)
            self.assertEqual({"conn_id": phone.conn_id, "close_code": code}, notice, way)

    async def test_no_notice_for_a_phone_that_the_binary_closed(self) -> None:
        """A phone closed by directive gives no notice, whether it answers the close, resets,
        or goes while the frames before the directive still wait for it."""
        relay = self.relay(close_timeout=0.5)
        binary = await self.binary(relay)
        sibling = await self.phone(relay)
        ends: dict[str, Callable[[Peer], Any]] = {
            "an answer": Peer.closing,
            "a reset": Peer.reset,
            "a FIN": Peer.finish,
        }
        for way, end in ends.items():
            for backlog in (0, 12):
                phone = await self.phone(relay, receive_buffer=16_384)
                for n in range(backlog):
                    frame = numbered("binary", n, 200_000)
                    await self.in_thread(binary.send, envelope(phone.conn_id, frame))
                await self.in_thread(binary.send, directive(phone.conn_id, 4401))
                await self.in_thread(binary.send, envelope(sibling.conn_id, b"0"))
                await self.in_thread(sibling.message)  # the directive has been read before it
                await self.in_thread(end, phone)
                await self.until(lambda: relay.counts() == (1, 1), f"the phone's end by {way}")
                await self.in_thread(sibling.send, b"1")
                next_one = await self.in_thread(binary.envelope)
                self.assertEqual({"conn_id": sibling.conn_id, "frame": 1}, next_one, way)
        self.assertEqual(2 * len(ends), len(relay.recorder.of(Event.PHONE_UNREGISTERED)))

    async def test_vanishing_with_a_backlog(self) -> None:
        """A phone that resets its connection with megabytes waiting for it leaves nothing
        behind but its notice."""
        relay = self.relay()
        binary = await self.binary(relay)
        phone = await self.phone(relay, receive_buffer=16_384)
        for number in range(12):
            frame = numbered("binary", number, 250_000)
            await self.in_thread(binary.send, envelope(phone.conn_id, frame))
        await self.until(lambda: relay.queued > 1 << 20, "the backlog")
        await self.in_thread(phone.reset)
        notice = await self.in_thread(binary.envelope)
        self.assertEqual({"conn_id": phone.conn_id, "close_code": 1001}, notice)
        self.assertEqual(0, relay.queued)
        self.assertEqual((1, 0), relay.counts())


class VanishingRequests(RelayCase):
    """Peers that go before they are anyone."""

    async def test_ends_within_a_request(self) -> None:
        """A connection that ends within its request, however far it came, is forgotten: no
        count, no event, no open channel."""
        relay = self.relay(header_timeout=60.0)
        binary = await self.binary(relay)
        head = upgrade_request("/v1/client", phone_fields("s"))
        events = len(relay.recorder.events)
        ends: dict[str, End] = {"a reset": Peer.reset, "a FIN": Peer.finish}
        for way, end in ends.items():
            for size in (0, 1, 20, len(head) - 1):
                peer = await self.dial(relay)
                await self.in_thread(peer.write, head[:size])
                await self.until(lambda: relay.service.site.channels, "the channel")
                await self.in_thread(end, peer)
                await self.until(
                    lambda: not relay.service.site.channels, f"{way} after {size} bytes"
                )
        self.assertEqual(events, len(relay.recorder.events))
        self.assertEqual((1, 0), relay.counts())
        phone = await self.phone(relay)
        await self.in_thread(round_trip, phone, binary, 0)

    async def test_request_and_fin(self) -> None:
        """A peer that sends its request and a FIN at once is registered at most for a moment;
        nothing of it stays."""
        relay = self.relay(grace=0.2)
        binary = await self.binary(relay)
        requests = {
            "/v1/client": phone_fields("s"),
            "/v1/server": binary_fields("t"),
            "/healthz": {},
            "/nowhere": {},
        }
        for path, headers in requests.items():
            for end in (Peer.finish, Peer.reset):
                peer = await self.dial(relay)
                await self.in_thread(peer.write, upgrade_request(path, headers))
                await self.in_thread(end, peer)
        await self.until(lambda: not relay.service.site.channels, "the channels' end")
        await self.until(lambda: relay.counts() == (1, 0), "the counts")
        await self.until(lambda: relay.service.context.registry.in_grace == 0, "the grace's end")
        phone = await self.phone(relay)
        registered = relay.recorder.of(Event.PHONE_REGISTERED)
        self.assertEqual(
            len(registered) - 1, len(relay.recorder.of(Event.PHONE_UNREGISTERED)), "a leak"
        )
        await self.in_thread(round_trip, phone, binary, 0)


class VanishingBinaries(RelayCase):
    """Binaries that go."""

    async def test_every_end_of_a_binary_starts_grace(self) -> None:
        """However a binary goes, its slot is held for the grace, in which the count excludes
        it and its phones stay; then they are closed 1000."""
        for way, (end, _) in ENDS.items():
            relay = self.relay(grace=0.3)
            binary = await self.binary(relay)
            phone = await self.phone(relay)
            await self.in_thread(end, binary)
            await self.until(lambda: relay.counts() == (0, 1), f"grace after {way}")  # noqa: B023
            self.assertEqual((1000, ""), await self.in_thread(phone.closed_with), way)
            self.assertEqual((0, 0), relay.counts(), way)
            self.assertEqual([{"server_id": "s"}], relay.recorder.of(Event.SERVER_EXPIRED), way)

    async def test_frames_before_a_binary_goes_arrive(self) -> None:
        """What a binary has sent before it goes reaches its phone."""
        relay = self.relay()
        binary = await self.binary(relay)
        phone = await self.phone(relay)
        frames = [numbered("binary", number, 20_000) for number in range(50)]
        sent = b"".join(text_frame(envelope(phone.conn_id, frame)) for frame in frames)
        await self.in_thread(binary.write, sent)
        await self.in_thread(binary.finish)
        self.assertEqual(frames, await self.in_thread(phone.messages, len(frames)))
        await self.until(lambda: relay.counts() == (0, 1), "grace")

    async def test_incumbent_that_vanishes_during_a_probe_is_succeeded(self) -> None:
        """A newcomer that waits for an incumbent's answer takes the slot when the incumbent's
        connection ends instead, long before the probe's deadline."""
        for end in (Peer.reset, Peer.finish):
            relay = self.relay(probe_timeout=60.0, on_reclaim=OnReclaim.KEEP)
            incumbent = await self.binary(relay)
            phone = await self.phone(relay)
            newcomer = await self.binary(relay)
            self.assertEqual(PING, (await self.in_thread(incumbent.frame)).opcode)
            await self.in_thread(end, incumbent)
            await self.until(
                lambda: len(relay.recorder.of(Event.SERVER_CLAIMED)) == 2,  # noqa: B023
                "the claim",
            )
            self.assertEqual((1, 1), relay.counts())
            await self.in_thread(round_trip, phone, newcomer, 0)

    async def test_newcomer_that_vanishes_during_a_probe_changes_nothing(self) -> None:
        """A newcomer that goes while the incumbent is being probed leaves no trace, and the
        incumbent stays."""
        relay = self.relay(probe_timeout=60.0)
        incumbent = await self.binary(relay)
        phone = await self.phone(relay)
        before = sum(1 for _ in server_ends())
        for end in (Peer.reset, Peer.finish, say_nothing_in_particular):
            newcomer = await self.binary(relay)
            self.assertEqual(before + 1, sum(1 for _ in server_ends()))
            await self.in_thread(end, newcomer)
            await self.until(lambda: sum(1 for _ in server_ends()) == before, "its end")
            self.assertEqual(PING, (await self.in_thread(incumbent.frame)).opcode)
            await self.in_thread(round_trip, phone, incumbent, 0)
        self.assertEqual((1, 1), relay.counts())
        self.assertEqual(1, len(relay.recorder.of(Event.SERVER_CLAIMED)))
        self.assertEqual([], relay.recorder.of(Event.SERVER_RELEASED))

    async def test_what_a_newcomer_says_early_is_not_lost(self) -> None:
        """What a newcomer sends while its claim is undecided, more than is held in memory, is
        done in order when it succeeds, and by no one when it does not."""
        relay = self.relay(probe_timeout=60.0, hold_bytes=65_536, on_reclaim=OnReclaim.KEEP)
        incumbent = await self.binary(relay)
        phone = await self.phone(relay)
        frames = [numbered("newcomer", number, 4000) for number in range(200)]
        stream = b"".join(text_frame(envelope(phone.conn_id, frame)) for frame in frames)

        loser = await self.binary(relay)
        sending = self.in_thread(loser.write, stream)
        self.assertEqual(PING, (await self.in_thread(incumbent.frame)).opcode)
        await self.until(lambda: relay.queued, "what is held of the newcomer")
        await self.in_thread(round_trip, phone, incumbent, 0)
        self.assertEqual(
            (4409, "server-id already claimed"), await self.in_thread(loser.closed_with)
        )
        await sending
        await self.in_thread(loser.release)
        await self.until(lambda: relay.queued == 0, "what was held of the newcomer")

        winner = await self.binary(relay)
        sending = self.in_thread(winner.write, stream)
        await self.until(lambda: relay.queued >= 65_536, "what is held of the newcomer")
        self.assertLess(relay.queued_at_most, 3 * 65_536)
        await self.in_thread(incumbent.reset)
        self.assertEqual(frames, await self.in_thread(phone.messages, len(frames)))
        await sending
        await self.in_thread(round_trip, phone, winner, 1)

    async def test_silent_incumbent_gives_way(self) -> None:
        """An incumbent that does not answer its probe is closed 1011 and loses the slot, and
        its going afterwards starts no grace."""
        relay = self.relay(probe_timeout=0.3, on_reclaim=OnReclaim.KEEP)
        incumbent = await self.binary(relay)
        phone = await self.phone(relay)
        newcomer = await self.binary(relay)
        await self.until(lambda: relay.recorder.of(Event.SERVER_ID_TAKEOVER), "the takeover")
        self.assertEqual(PING, (await self.in_thread(incumbent.frame)).opcode)
        self.assertEqual((1011, "heartbeat timeout"), await self.in_thread(incumbent.closed_with))
        await self.in_thread(incumbent.release)
        await self.in_thread(round_trip, phone, newcomer, 0)
        self.assertEqual((1, 1), relay.counts())
        self.assertEqual([], relay.recorder.of(Event.SERVER_RELEASED))

    async def test_busy_incumbent_is_not_displaced(self) -> None:
        """An incumbent in the middle of a long message answers no ping but is alive: the
        newcomer gets 4409."""
        relay = self.relay(probe_timeout=5.0)
        incumbent = await self.binary(relay)
        phone = await self.phone(relay)
        frame = numbered("binary", 0, 200_000)
        sent = text_frame(envelope(phone.conn_id, frame))
        await self.in_thread(incumbent.write, sent[:1000])
        newcomer = await self.binary(relay)
        losing = self.in_thread(newcomer.closed_with)
        for start in range(1000, len(sent), 1000):
            await self.in_thread(incumbent.write, sent[start : start + 1000])
        self.assertEqual((4409, "server-id already claimed"), await losing)
        self.assertEqual(frame, await self.in_thread(phone.message))

    async def test_no_notice_of_phones_that_the_next_binary_does_not_know(self) -> None:
        """Under evict, phones of the time before, and those that came and went in grace, are
        not told of to the binary that comes back."""
        relay = self.relay()
        binary = await self.binary(relay)
        old = await self.phone(relay)
        await self.in_thread(binary.reset)
        await self.until(lambda: relay.counts() == (0, 1), "grace")
        await self.in_thread(old.reset)
        await self.until(lambda: relay.counts() == (0, 0), "the phone's end")
        in_grace = await self.phone(relay)
        new = await self.binary(relay)
        self.assertEqual(
            (4404, "binary reclaimed server-id"), await self.in_thread(in_grace.closed_with)
        )
        phone = await self.phone(relay)
        question = numbered("phone", 0)
        await self.in_thread(phone.send, question)
        first = await self.in_thread(new.envelope)
        self.assertEqual(phone.conn_id, first["conn_id"], "something stood before it")
        self.assertIn("frame", first)

    async def test_notice_follows_a_phone_to_the_binary_it_was_handed_to(self) -> None:
        """Under keep, a phone that goes in grace leaves its frames and its notice to the binary
        that comes back; one that stays is that binary's from then on."""
        relay = self.relay(on_reclaim=OnReclaim.KEEP)
        binary = await self.binary(relay)
        leaving, staying = await self.phone(relay), await self.phone(relay)
        await self.in_thread(binary.reset)
        await self.until(lambda: relay.counts() == (0, 2), "grace")
        await self.in_thread(leaving.send, numbered("leaving", 0))
        await self.in_thread(leaving.say_close, 4007)
        await self.until(lambda: relay.counts() == (0, 1), "the phone's end")
        new = await self.binary(relay)
        got = await self.in_thread(new.envelope)
        self.assertEqual((leaving.conn_id, 0), (got["conn_id"], got["frame"]["n"]))
        notice = {"conn_id": leaving.conn_id, "close_code": 4007}
        self.assertEqual(notice, await self.in_thread(new.envelope))
        await self.in_thread(staying.reset)
        notice = {"conn_id": staying.conn_id, "close_code": 1001}
        self.assertEqual(notice, await self.in_thread(new.envelope))

    async def test_everybody_goes_at_once(self) -> None:
        """When all peers reset their connections together, all counts and queues go to 0."""
        relay = self.relay(grace=0.2)
        peers = []
        for name in ("a", "b"):
            peers.append(await self.binary(relay, name))
            peers += [await self.phone(relay, name) for _ in range(5)]
        self.assertEqual((2, 10), relay.counts())

        def reset_all() -> None:
            for peer in peers:
                peer.reset()

        await self.in_thread(reset_all)
        await self.until(lambda: relay.counts() == (0, 0), "the counts")
        await self.until(lambda: relay.service.context.registry.in_grace == 0, "the grace's end")
        self.assertEqual(0, relay.queued)
        self.assertEqual(10, len(relay.recorder.of(Event.PHONE_UNREGISTERED)))


class VanishingPhonesOverUnix(VanishingPhones):
    """The same on a UNIX socket."""

    unix = True
