"""A bug costs one connection; and what is set on every socket that is accepted."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from typing import Any

from twisted.python.failure import Failure

from pyrycode_relay.events import Event
from pyrycode_relay.websocket.connection import RelayProtocol
from tests.live.harness import Peer, Relay, RelayCase, round_trip, server_end, server_ends
from tests.peers.blocking import Gone
from tests.peers.envelopes import numbered
from tests.peers.requests import binary_fields, phone_fields, upgrade_request

BROKEN = (1011, "internal error")


class Bug(Exception):
    """What a broken hook raises."""


def broken(*_: object, **__: object) -> Any:
    """Stand in for a hook that has a bug."""
    raise Bug("with the peer's secrets in its text")


class Containment(RelayCase):
    """Connections with a bug in them, and their neighbours."""

    async def neighbours(self, relay: Relay) -> Callable[[], Any]:
        """Connect a binary and a phone; return what checks that they go on."""
        binary = await self.binary(relay, "neighbour")
        phone = await self.phone(relay, "neighbour")
        return lambda: self.in_thread(round_trip, phone, binary, 0)

    def assert_traceback(self) -> None:
        """See that the bug has left its traceback, once."""
        [failure] = self.flushLoggedErrors(Bug)
        self.assertIsInstance(failure, Failure)
        self.assertIn("broken", failure.getTraceback())

    async def test_bug_in_a_phones_message(self) -> None:
        """An error at a phone's message closes that phone 1011 `internal error`, its binary
        gets a notice, and its siblings go on."""
        relay = self.relay()
        go_on = await self.neighbours(relay)
        binary = await self.binary(relay)
        phone, sibling = await self.phone(relay), await self.phone(relay)
        server_end(phone).message = broken  # type: ignore[method-assign]
        await self.in_thread(phone.send, numbered("phone", 0))
        self.assertEqual(BROKEN, await self.in_thread(phone.closed_with))
        notice = await self.in_thread(binary.envelope)
        self.assertEqual({"conn_id": phone.conn_id, "close_code": 1011}, notice)
        self.assert_traceback()
        await self.in_thread(round_trip, sibling, binary, 0)
        await go_on()

    async def test_bug_in_a_binarys_message(self) -> None:
        """An error at a binary's message closes that binary 1011, and its slot is held for it
        to come back."""
        relay = self.relay()
        go_on = await self.neighbours(relay)
        binary = await self.binary(relay)
        await self.phone(relay)
        server_end(binary).message = broken  # type: ignore[method-assign]
        await self.in_thread(binary.send, b"{}")
        self.assertEqual(BROKEN, await self.in_thread(binary.closed_with))
        self.assert_traceback()
        self.assertEqual((1, 2), relay.counts())
        self.assertEqual(1, relay.service.context.registry.in_grace)
        again = await self.binary(relay)
        phone = await self.phone(relay)
        await self.in_thread(round_trip, phone, again, 0)
        await go_on()

    async def test_bug_at_the_beginning_and_at_the_end(self) -> None:
        """An error while a connection is being opened closes it 1011, one while it is being
        taken leave of does not keep it, and one in the gate is a 500."""
        relay = self.relay()
        go_on = await self.neighbours(relay)
        await self.binary(relay)
        before = sum(1 for _ in server_ends())

        def break_next(name: str) -> None:
            factory = relay.service._phones[0]
            original = factory.connect

            def connect(path: str, headers: Mapping[str, str]) -> RelayProtocol:
                connection = original(path, headers)
                setattr(connection, name, broken)
                factory.connect = original  # type: ignore[method-assign]
                return connection

            factory.connect = connect  # type: ignore[method-assign,assignment]

        break_next("opened")
        peer = await self.upgrade(relay, "/v1/client", phone_fields("s"))
        self.assertEqual(BROKEN, await self.in_thread(peer.closed_with))
        self.assert_traceback()

        break_next("ended")
        peer = await self.upgrade(relay, "/v1/client", phone_fields("s"))
        await self.in_thread(peer.say_close, 1000)
        self.assertEqual((1000, ""), await self.in_thread(peer.closed_with))
        await self.until(lambda: sum(1 for _ in server_ends()) == before, "the end")
        self.assert_traceback()
        await go_on()

    async def test_bug_before_the_upgrade(self) -> None:
        """An error in the gate is a bare 500 for that request, without a word of it."""
        relay = self.relay()
        go_on = await self.neighbours(relay)
        factory = relay.service._phones[0]
        self.patch(factory, "gate", broken)
        peer = await self.dial(relay)
        await self.in_thread(peer.write, upgrade_request("/v1/client", phone_fields("s")))
        answer = await self.in_thread(peer.read_to_end)
        self.assertTrue(answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n"), answer)
        self.assertTrue(answer.endswith(b"\r\n\r\n"), answer)
        self.assertNotIn(b"secrets", answer)
        self.assert_traceback()
        await go_on()

    async def test_bug_in_an_observer(self) -> None:
        """An observer that raises loses that event; the connection is closed as without the bug."""
        relay = self.relay()
        go_on = await self.neighbours(relay)
        binary = await self.binary(relay)
        saw = relay.recorder.saw

        def saw_with_a_bug(event: Event, **fields: object) -> None:
            if event is Event.PHONE_FRAME_REFUSED:
                broken()
            saw(event, **fields)

        phone = await self.phone(relay)
        self.patch(relay.recorder, "saw", saw_with_a_bug)
        await self.in_thread(phone.send, b"not json")
        closed = await self.in_thread(phone.closed_with)
        self.assertEqual((1007, "frame is not valid JSON"), closed)
        notice = await self.in_thread(binary.envelope)
        self.assertEqual({"conn_id": phone.conn_id, "close_code": 1007}, notice)
        self.assert_traceback()
        await go_on()


class SendBuffers(RelayCase):
    """What the kernel may queue for one peer."""

    async def sizes(self, relay: Relay, peers: list[Peer]) -> list[int]:
        """Return the send buffers of the relay's ends of TCP peers."""
        return [
            server_end(peer).transport.socket.getsockopt(  # type: ignore[attr-defined]
                socket.SOL_SOCKET, socket.SO_SNDBUF
            )
            for peer in peers
        ]

    async def test_send_buffer_is_set_on_every_connection(self) -> None:
        """The send buffer of every upgraded socket is what the limits say; Linux keeps twice
        that, for its own book-keeping. Without a size the kernel's own stands."""
        relay = self.relay(send_buffer=20_000)
        binary, phone = await self.binary(relay), await self.phone(relay)
        self.assertEqual([40_000, 40_000], await self.sizes(relay, [binary, phone]))
        untouched = self.relay(send_buffer=0)
        peer = await self.upgrade(untouched, "/v1/server", binary_fields("s"))
        self.assertGreater((await self.sizes(untouched, [peer]))[0], 40_000)

    async def test_send_buffer_is_set_on_unix_sockets(self) -> None:
        """The same on a UNIX socket."""
        self.unix = True
        relay = self.relay(send_buffer=20_000)
        await self.binary(relay)
        [end] = server_ends()
        sock = end.transport.socket  # type: ignore[attr-defined]
        self.assertEqual(40_000, sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF))

    async def test_refused_peer_is_gone(self) -> None:
        """A refused request's socket is closed by the relay, whatever the peer does."""
        relay = self.relay(close_timeout=0.5)
        peer = await self.dial(relay)
        await self.in_thread(peer.write, upgrade_request("/v1/client", {"User-Agent": "x"}))
        self.assertEqual(400, (await self.in_thread(peer.head))[0])
        with self.assertRaises(Gone):
            await self.in_thread(peer.frame)
