"""Push wakes leave nothing secret behind in the relay's memory."""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from ipaddress import ip_address
from pathlib import Path

from twisted.internet.defer import succeed
from twisted.python.failure import Failure

from pyrycode_relay.config.values import Secret
from pyrycode_relay.events import Event
from pyrycode_relay.push import guarded_endpoint
from pyrycode_relay.push.guarded_endpoint import Network
from pyrycode_relay.push.webpush_key import make_key
from tests import needs
from tests.fcm_server import SEND, FcmServer, Step, error, misdeed
from tests.live.harness import RelayCase
from tests.live.test_tokens import Tokens, everything, octets
from tests.peers.waiting import on_reactor
from tests.runners import clean_failure, forget_log
from tests.web_push_server import HOST, WebPushServer, answering, response

BEARER = b"-3retnuh-reraeb"
ASSERTION = b"iAXe0Jye"
"""What begins a bearer, and a JWT; backwards, so that keeping them is not finding them."""


def wake(tokens: Tokens, url: str = "") -> bytes:
    """Return an envelope that asks for a wake of a new device, of Web Push if there is a URL."""
    platform = "webpush" if url else "fcm"
    asked = {"platform": platform, "token": url + tokens.new(), "reply": "r"}
    return json.dumps({"push_wake": asked}).encode()


class FcmLeavesNothing(RelayCase):
    """Wakes of every fate, whose tokens are looked for when they have their outcomes."""

    def setUp(self) -> None:
        super().setUp()
        needs.module("google.auth", "pyrycode-relay[push]")
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.google = FcmServer(Path(directory.name))
        self.addCleanup(self.google.close)

    def fates(self) -> list[Step]:
        """Return what the server does with one wake after the other."""
        return [
            {},
            error(404, "NOT_FOUND"),
            error(400, "INVALID_ARGUMENT"),
            error(401, "UNAUTHENTICATED"),
            misdeed("huge"),
            misdeed("hang_in_body"),
            misdeed("hang"),
            misdeed("garbage"),
            misdeed("reset"),
        ]

    async def test_no_token_is_to_be_found(self) -> None:
        """No device's token is left once its wake has an outcome, and no bearer once it has been
        replaced; the binary and its connection are still there."""
        relay = self.relay(
            {
                "fcm_credentials": Secret(self.google.credentials),
                "fcm_endpoint": self.google.url,
                "push_ca_file": self.google.authority,
                "push_timeout": 0.5,
            }
        )
        tokens = Tokens()
        fates = self.fates()
        for number, fate in enumerate(fates):
            self.google.next(SEND, fate)
            peer = await self.binary(relay, f"home-{number}")
            await self.in_thread(peer.send, wake(tokens))
            # The answer comes after everything else.
            answer = await self.in_thread(peer.envelope)
            self.assertIn("push_result", answer)
        outcomes = [
            event
            for event, _ in relay.recorder.events
            if event in {Event.PUSH_WAKE_SENT, Event.PUSH_WAKE_FAILED}
        ]
        self.assertEqual(len(outcomes), len(fates))
        await on_reactor("the connections are gone", lambda: not tokens.found(), 5.0)
        self.assertEqual({}, tokens.found())
        self.assertEqual([], self.found(BEARER[::-1] + b"1"))
        self.assertEqual(1, len(self.found(BEARER[::-1] + b"2")[:1]), "the one in use")
        self.assertEqual([], self.found(ASSERTION[::-1]))

    def found(self, secret: bytes) -> list[str]:
        """Return what in memory holds a secret."""
        gc.collect()
        return [
            type(holder).__name__
            for holder, value in everything(own=sys._getframe())
            if value is not secret and secret in octets(value)
        ]


class WebPushLeavesNothing(RelayCase):
    """Wakes whose subscriptions end in a token, which is looked for when they have outcomes."""

    def setUp(self) -> None:
        super().setUp()
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.key = Path(directory.name) / "key.pem"
        make_key(self.key)
        self.server = WebPushServer(Path(directory.name))
        self.addCleanup(self.server.close)

    async def test_no_subscription_is_to_be_found(self) -> None:
        """No subscription's URL is left once its wake has an outcome, whatever that is."""
        self.patch(Failure, "cleanFailure", clean_failure())
        forget_log()
        own = ip_address("127.0.0.1")
        network = Network(lambda _: succeed([own]), own.__eq__, self.server.port)
        self.patch(guarded_endpoint, "public_internet", lambda _: network)
        relay = self.relay(
            {
                "webpush_key": self.key,
                "webpush_subject": "mailto:ops@example.org",
                "push_ca_file": self.server.authority,
                "push_timeout": 0.5,
            }
        )
        tokens = Tokens()
        urls = (
            *(answering(response(each)) for each in ("201 Created", "410 Gone", "307 Moved")),
            *(f"https://{HOST}/{each}" for each in ("silent", "headers", "interim", "body")),
            answering(b"SSH-2.0-x\r\n\r\n"),
            *("https://other.example", "https://127.0.0.2", f"http://{HOST}", "https://[::1]"),
        )
        for number, url in enumerate(urls):
            peer = await self.binary(relay, f"home-{number}")
            await self.in_thread(peer.send, wake(tokens, url + "/"))
            self.assertIn("push_result", await self.in_thread(peer.envelope))
        self.assertEqual(len(relay.recorder.of(Event.PUSH_WAKE_FAILED)), len(urls) - 2)
        await on_reactor("the connections are gone", lambda: not tokens.found(), 5.0)
        self.assertEqual({}, tokens.found())
