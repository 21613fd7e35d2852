"""Phones' tokens leave nothing behind in the relay's memory."""

from __future__ import annotations

import gc
import io
import os
import re
import socket
import sys
import types
from collections.abc import Iterator
from typing import Any

from tests.live.harness import Peer, Relay, RelayCase
from tests.peers.frames import text_frame
from tests.peers.requests import binary_fields, phone_fields, upgrade_request


class Tokens:
    """Random tokens, kept backwards so that keeping them is not finding them."""

    def __init__(self) -> None:
        self._mark = os.urandom(8).hex()[::-1]
        self._count = 0

    def new(self) -> str:
        """Return a token that was never there before."""
        self._count += 1
        return f"{self._mark[::-1]}-{self._count}-{os.urandom(8).hex()}"

    def found(self) -> dict[int, str]:
        """Look for the tokens in everything there is; return which were found, and in what.

        The mark stands in every token, so that one search finds them all.
        """
        gc.collect()
        pattern = re.compile(rf"{self._mark[::-1]}-(\d+)-".encode())
        holders = {}
        for holder, value in everything(own=sys._getframe()):
            for match in pattern.finditer(octets(value)):
                holders[int(match[1])] = f"{type(value).__name__} in {type(holder).__name__}"
        return holders


def everything(own: types.FrameType) -> Iterator[tuple[Any, Any]]:
    """Yield everything that holds bytes or text, with one of its holders.

    That is, whatever any object that the garbage collector knows refers to, and what those
    objects refer to that it does not know. ``own`` frames and what they hold are left out.
    """
    skipped = set()
    frame: types.FrameType | None = own
    while frame is not None:
        skipped.add(id(frame))
        frame = frame.f_back
    seen: set[int] = set()
    todo = [(None, each) for each in gc.get_objects() if id(each) not in skipped]
    skipped |= {id(todo), id(seen)}
    while todo:
        holder, value = todo.pop()
        if id(value) in seen or id(value) in skipped:
            continue
        seen.add(id(value))
        yield holder, value
        referents = gc.get_referents(value)
        if isinstance(value, dict):
            # The collector does not look at keys when all of them are text.
            referents += dict.keys(value)
        todo += [(value, each) for each in referents if not gc.is_tracked(each)]


def octets(value: object) -> bytes:
    """Return what a value holds as text or bytes; nothing for one that holds neither."""
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if isinstance(value, io.StringIO | io.BytesIO):
        return b"" if value.closed else octets(value.getvalue())
    try:
        # bytes, bytearray, msgspec.Raw, memoryview: whatever shows its bytes.
        return bytes(memoryview(value))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):
        return b""


class TokensLeaveNothing(RelayCase):
    """Phones of every fate, each with a token of its own, looked for while they are there."""

    def present(self, peer: Peer, path: str, headers: dict[str, str]) -> int:
        """Send a request with its headers; return the status. The socket stays open."""
        peer.write(upgrade_request(path, headers))
        return peer.head()[0]

    async def request(self, relay: Relay, path: str, headers: dict[str, str], status: int) -> Peer:
        """Return a peer whose request was answered with ``status``."""
        peer = await self.dial(relay)
        self.assertEqual(status, await self.in_thread(self.present, peer, path, headers))
        return peer

    async def come_and_be_refused(self, relay: Relay, path: str, tokens: Tokens) -> None:
        """Have one phone accepted at a path, and others refused for every reason."""
        await self.request(relay, path, phone_fields("s", tokens.new()), 101)
        # By close frames: over the cap, and without a binary.
        for server_id in ("full", "nobody"):
            peer = await self.request(relay, path, phone_fields(server_id, tokens.new()), 101)
            _, code, _ = await self.in_thread(peer.closing, False)
            self.assertIn(code, {4404, 4429})
        # By the gate, and by what comes before it.
        token = tokens.new()
        wrong = [
            {"User-Agent": ""},
            {"X-Pyrycode-Server": "\x01"},
            {"X-Pyrycode-Server": "x" * 300},
            {"X-Extra": "\x0b"},
            {"X-Pyrycode-Token": token + "x" * 5000},
            {"x-pyrycode-token": token},
        ]
        for headers in wrong:
            await self.request(relay, path, phone_fields("s", tokens.new()) | headers, 400)
        old = {"Sec-WebSocket-Version": "12"}
        await self.request(relay, path, phone_fields("s", tokens.new()) | old, 426)

    async def go_elsewhere(self, relay: Relay, tokens: Tokens) -> None:
        """Send tokens to paths that have no use for them."""
        await self.request(relay, "/nowhere", phone_fields("s", tokens.new()), 404)
        await self.request(relay, "/v1/server", phone_fields("s", tokens.new()), 400)
        extra = {"X-Pyrycode-Token": tokens.new()}
        await self.request(relay, "/v1/server", binary_fields("t") | extra, 101)
        await self.send_credentials(relay, tokens)
        await self.request(relay, "/healthz", phone_fields("s", tokens.new()), 200)

    async def send_credentials(self, relay: Relay, tokens: Tokens) -> None:
        """Send an ``Authorization`` header, which has no meaning here, on every path."""
        for scheme in ("Basic", "Bearer"):
            credential = {"Authorization": f"{scheme} {tokens.new()}"}
            server_id = f"with-{scheme}"
            binary = binary_fields(server_id) | credential
            await self.request(relay, "/v1/server", binary, 101)
            phone = phone_fields(server_id, tokens.new()) | credential
            await self.request(relay, "/v1/client", phone, 101)
            await self.request(relay, "/v1/server", binary | {"X-Pyrycode-Version": ""}, 400)
            await self.request(relay, "/healthz", binary, 200)

    async def test_no_token_is_to_be_found(self) -> None:
        """No token of any phone, accepted or refused for whatever reason, is in the process's
        memory while its connection is still open; nor is one that came to another path."""
        relay = self.relay(max_phones=2, close_timeout=60.0, drain_timeout=1.0, header_timeout=60.0)
        tokens = Tokens()
        await self.binary(relay)
        await self.binary(relay, "full")
        for _ in range(2):
            await self.phone(relay, "full")
        for path in ("/v1/client", "/v2/client"):
            await self.come_and_be_refused(relay, path, tokens)
        await self.go_elsewhere(relay, tokens)
        self.assertEqual((5, 6), relay.counts())
        self.assertEqual({}, tokens.found())

    async def test_requests_in_pieces(self) -> None:
        """A token that comes in two pieces, with a frame behind its request, or with one for
        the health, is gone too."""
        relay = self.relay(header_timeout=60.0)
        binary = await self.binary(relay)
        tokens = Tokens()

        def in_pieces(peer: Peer) -> None:
            head = upgrade_request("/v1/client", phone_fields("s", tokens.new()))
            middle = head.index(b"Token") + 20
            peer.write(head[:middle])
            peer.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(middle, len(head), 7):
                peer.write(head[start : start + 7])
            peer.head()

        def with_a_frame(peer: Peer) -> None:
            head = upgrade_request("/v1/client", phone_fields("s", tokens.new()))
            peer.write(head + text_frame(b'"hello"') + text_frame(b"4" * 300)[:100])
            peer.head()

        def elsewhere(peer: Peer) -> None:
            headers = phone_fields("s", tokens.new())
            ask = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
            peer.write(f"GET /healthz HTTP/1.1\r\nHost: x\r\n{ask}\r\n".encode())
            peer.head()

        for how in (in_pieces, with_a_frame, elsewhere):
            peer = await self.dial(relay)
            await self.in_thread(how, peer)
        self.assertEqual("hello", (await self.in_thread(binary.envelope))["frame"])
        self.assertEqual((1, 2), relay.counts())
        self.assertEqual({}, tokens.found())

    def test_the_search_finds(self) -> None:
        """The search itself works: a token planted as text, as bytes, in a buffer, in a closure,
        in an object with slots, or deep in containers is found."""

        class Slotted:
            __slots__ = ("value",)

        class Plain:
            value: object

        slotted, plain = Slotted(), Plain()

        plants: dict[str, Any] = {
            "text": lambda token: [token],
            "bytes": lambda token: {"k": token.encode()},
            "dictionary key": lambda token: {token: 1},
            "bytearray": lambda token: [bytearray(token.encode())],
            "memoryview": lambda token: [memoryview(token.encode())],
            "stream": lambda token: [io.BytesIO(token.encode())],
            "nested": lambda token: [({"a": ((token.encode() + b" and more",),)},)],
            "closure": lambda token: lambda: token,
            "slot": lambda token: setattr(slotted, "value", token),
            "attribute": lambda token: setattr(plain, "value", token.encode()),
            "exception": ValueError,
        }
        tokens = Tokens()
        self.assertEqual({}, tokens.found())
        planted = [plant(tokens.new()) for plant in plants.values()]
        found = tokens.found()
        missed = [what for number, what in enumerate(plants, 1) if number not in found]
        self.assertEqual([], missed)
        planted.clear()

    async def test_the_search_finds_in_a_connection(self) -> None:
        """A token left on a connection's object, or in its request, would be found."""
        relay = self.relay()
        await self.binary(relay)
        await self.phone(relay)
        tokens = Tokens()
        [phone] = [peer for factory in relay.service._phones for peer in factory.connections]
        phone.http_headers = {"x-pyrycode-token": tokens.new()}
        self.assertEqual({1}, set(tokens.found()))
        del phone.http_headers
        self.assertEqual({}, tokens.found())
