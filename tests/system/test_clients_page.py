"""The conversations of ``docs/clients.md`` are held with a relay."""

from __future__ import annotations

import re
import signal

from websockets.asyncio.client import ClientConnection

from tests.clients_page import Turn, conversations
from tests.peers.waiting import soon
from tests.system.harness import Relay, SystemTestCase, binary, ending, phone, receive_text

CONN_ID = re.compile(r"client-home-[0-9a-f]{8}")


class Conversation:
    """The clients of a conversation, and the ids that stand for those of the page."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.peers: dict[str, ClientConnection] = {}
        self.ids: dict[str, str] = {}

    async def hold(self, turns: list[Turn]) -> None:
        """Take each turn."""
        for turn in turns:
            if turn.who == "relay":
                self.relay.signal(signal.SIGTERM)
            elif turn.what == "connect":
                connect = phone if turn.who == "phone" else binary
                self.peers[turn.who] = await connect(self.relay, "home")
            elif turn.sends:
                await self.send(turn)
            else:
                await self.receive(turn)
        for peer in self.peers.values():
            await peer.close()

    async def send(self, turn: Turn) -> None:
        peer = self.peers[turn.who]
        if turn.what == "drop":
            peer.transport.abort()
            await soon("the relay sees it", lambda: self.relay.counts()[0] == 0)
        elif turn.what.startswith("close "):
            await peer.close(int(turn.what.split()[1]))
        else:
            await peer.send(CONN_ID.sub(lambda found: self.ids.get(found[0], found[0]), turn.what))

    async def receive(self, turn: Turn) -> None:
        peer = self.peers[turn.who]
        if turn.what.startswith("close "):
            code, _, reason = turn.what.removeprefix("close ").partition(" ")
            ended = await ending(peer)
            assert ended == (int(code), reason), (turn, ended)
            return
        text = await receive_text(peer)
        for shown, real in zip(CONN_ID.findall(turn.what), CONN_ID.findall(text), strict=True):
            assert self.ids.setdefault(shown, real) == real, (turn, text)
            text = text.replace(real, shown)
        assert text == turn.what, (turn, text)


class PageTests(SystemTestCase):
    def test_conversations(self) -> None:
        """Each goes as the page shows it, byte for byte but for the random part of an id."""
        held = [*conversations()]
        self.assertGreater(len(held), 6)
        for turns in held:
            relay = self.relay()
            self.perform(Conversation(relay).hold(turns))
