"""A WebSocket library of its own on both sides of the relay: what it sees is as it should be."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from twisted.internet.defer import Deferred
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect, unix_connect

from tests.live.harness import DEADLINE, Relay, RelayCase
from tests.peers.requests import binary_fields, phone_fields

CAP = 262_144


class LibraryClients(RelayCase):
    """Phones and binaries on TCP that speak through a library."""

    def setUp(self) -> None:
        """Begin without connections."""
        super().setUp()
        self._open = contextlib.ExitStack()
        self.addCleanup(self.hang_up)

    async def hang_up(self) -> None:
        """Close what is open; the library's own threads end with it."""
        await self.in_thread(self._open.close)

    def _connect(self, relay: Relay, path: str, headers: dict[str, str]) -> ClientConnection:
        options: dict[str, Any] = {
            "additional_headers": headers,
            "user_agent_header": None,
            "open_timeout": DEADLINE,
            "close_timeout": DEADLINE,
            "max_size": 2 * CAP,
        }
        if self.unix:
            connecting = unix_connect(relay.path, f"ws://relay.test{path}", **options)
        else:
            connecting = connect(relay.uri + path, **options)
        client: ClientConnection = self._open.enter_context(connecting)
        return client

    def client(
        self, relay: Relay, path: str, headers: dict[str, str]
    ) -> Deferred[ClientConnection]:
        """Connect."""
        return self.in_thread(self._connect, relay, path, headers)

    def receive(self, client: ClientConnection) -> Deferred[Any]:
        """Return the next message, as bytes."""
        return self.in_thread(client.recv, DEADLINE, False)

    async def closed(self, client: ClientConnection) -> tuple[int, str]:
        """Return the code and the reason with which a client was closed."""
        with self.assertRaises(ConnectionClosed) as caught:
            while True:
                await self.receive(client)
        received = caught.exception.rcvd
        assert received is not None, "no close frame"
        return received.code, received.reason

    async def test_conversation(self) -> None:
        """Frames of all sizes up to the cap go both ways, byte for byte, with fragments, binary
        messages and pings among them; the phone's goodbye reaches the binary."""
        relay = self.relay()
        binary = await self.client(relay, "/v1/server", binary_fields("s"))
        phone = await self.client(relay, "/v1/client", phone_fields("s"))
        for size in (2, 125, 126, 127, 65_535, 65_536, CAP):
            frame = b'"' + b"x" * (size - 2) + b'"'
            await self.in_thread(phone.send, frame.decode())
            wrapped = await self.receive(binary)
            conn_id = json.loads(wrapped)["conn_id"]
            self.assertTrue(wrapped == b'{"conn_id":"%s","frame":%s}' % (conn_id.encode(), frame))
            await self.in_thread(binary.send, wrapped)
            self.assertTrue(frame == await self.receive(phone), f"{size} bytes")
        await self.in_thread(phone.send, [b'{"in"', b': "three', b' pieces"}'])
        self.assertIn(b'"frame":{"in": "three pieces"}}', await self.receive(binary))
        pong = await self.in_thread(phone.ping)
        self.assertTrue(await self.in_thread(pong.wait, DEADLINE))
        await self.in_thread(phone.close, 4000, "bye")
        notice = json.loads(await self.receive(binary))
        self.assertEqual({"conn_id": conn_id, "close_code": 4000}, notice)

    async def test_refusals_after_the_upgrade(self) -> None:
        """4404, 4409, 4429, 1007 and 1009 reach the library's user with their reasons."""
        relay = self.relay(max_phones=1)
        binary = await self.client(relay, "/v1/server", binary_fields("s"))
        phone = await self.client(relay, "/v1/client", phone_fields("s"))
        again = await self.client(relay, "/v2/server", binary_fields("s"))
        self.assertEqual((4409, "server-id already claimed"), await self.closed(again))
        second = await self.client(relay, "/v1/client", phone_fields("s"))
        self.assertEqual((4429, "too many phones for server-id"), await self.closed(second))
        stray = await self.client(relay, "/v1/client", phone_fields("nobody"))
        self.assertEqual((4404, "no server with that id"), await self.closed(stray))
        await self.in_thread(phone.send, "{} {}")
        self.assertEqual((1007, "frame is not valid JSON"), await self.closed(phone))
        self.assertEqual(1007, json.loads(await self.receive(binary))["close_code"])
        long = await self.client(relay, "/v1/client", phone_fields("s"))
        await self.in_thread(long.send, '"' + "x" * CAP + '"')
        self.assertEqual(1009, (await self.closed(long))[0])
        self.assertEqual(1009, json.loads(await self.receive(binary))["close_code"])

    async def test_refusal_before_the_upgrade(self) -> None:
        """A request without a required header is refused with 400 and an empty body."""
        relay = self.relay()
        headers = phone_fields("s")
        del headers["X-Pyrycode-Token"]
        with self.assertRaises(InvalidStatus) as caught:
            await self.client(relay, "/v1/client", headers)
        answer = caught.exception.response
        self.assertEqual((400, b""), (answer.status_code, bytes(answer.body or b"")))
        self.assertNotIn("Server", answer.headers)

    async def test_directive_and_drain(self) -> None:
        """A binary's close directive, with a frame before it, and the drain's 1001 reach the
        library's user."""
        relay = self.relay()
        binary = await self.client(relay, "/v1/server", binary_fields("s"))
        phone = await self.client(relay, "/v1/client", phone_fields("s"))
        await self.in_thread(phone.send, "1")
        conn_id = json.loads(await self.receive(binary))["conn_id"]
        last = {"conn_id": conn_id, "frame": {"last": True}, "close_code": 4421}
        await self.in_thread(binary.send, json.dumps(last))
        self.assertEqual({"last": True}, json.loads(await self.receive(phone)))
        self.assertEqual((4421, ""), await self.closed(phone))
        stopping = relay.service.stopService()
        self.assertEqual((1001, "shutting down"), await self.closed(binary))
        await stopping


class LibraryClientsOverUnix(LibraryClients):
    """The same on a UNIX socket."""

    unix = True
