"""Web Push: the relay as a process, and the push service of another one."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from tests.ca import Issued
from tests.peers.waiting import soon
from tests.system.harness import (
    ROOT,
    Relay,
    SystemTestCase,
    binary,
    bystanders,
    ending,
    fetch,
    receive,
    send,
)
from tests.unit.push.test_vapid import claims
from tests.web_push_server import HOST, WebPushServer, answering, response

LAUNCHER = ROOT / "tests" / "loopback_strangers.py"
KEY_COMMAND = Path(sys.executable).with_name("pyrycode-relay-webpush-key")
SUBJECT = "mailto:ops@example.org"
CREATED = response("201 Created", f"Location: https://{HOST}/m/message-1")
GUARDED = (
    *("https://127.0.0.1/hunter", "https://[::1]/hunter", "https://[::ffff:10.0.0.1]/hunter"),
    *("https://169.254.169.254/hunter", "https://0.0.0.0/hunter", "https://[64:ff9b::a]/hunter"),
)
"""URLs with a forbidden address; whatever of a URL is secret has the word hunter in it."""
ODD = (
    *("http://push.example/hunter", "https://push.example:8443/hunter", "hunter"),
    *("https://hunter@push.example/", "https://localhost/hunter", "https://127.1/hunter"),
)


def wake(url: str) -> dict[str, Any]:
    """Return the envelope that asks for a wake."""
    return {"push_wake": {"platform": "webpush", "token": url, "reply": "w"}}


class WebPushTestCase(SystemTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.server = WebPushServer(self.directory)
        self.addCleanup(self.server.close)
        self.key = self.directory / "webpush.pem"
        made = self.key_command(str(self.key))
        self.assertEqual((made.returncode, made.stderr), (0, ""))
        self.public = made.stdout.splitlines()[-1]
        self.options = (f"--webpush-key={self.key}", f"--webpush-subject={SUBJECT}")

    def key_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command that makes keys."""
        return subprocess.run(
            [str(KEY_COMMAND), *arguments], capture_output=True, text=True, timeout=60, check=False
        )

    def pushing(self, *options: str) -> Relay:
        """Start a relay for which every name is the test's push service."""
        return self.relay(
            *self.options,
            f"--push-ca-file={self.server.authority}",
            "--log-format=json",
            *options,
            launcher=(sys.executable, str(LAUNCHER), str(self.server.port)),
        )

    def events(self, relay: Relay) -> list[dict[str, Any]]:
        """Return the log's lines about wakes, and see that no secret is in the log."""
        text = relay.log() + relay.errors()
        self.assertNotIn("hunter", text)
        self.assertNotIn("eyJ", text, "the token of an Authorization header")
        lines = [json.loads(line) for line in relay.log().splitlines()]
        return [line for line in lines if line["event"].startswith("push_wake")]

    async def outcome(self, relay: Relay, url: str, server_id: str = "home") -> str:
        """Return what becomes of a wake."""
        async with binary(relay, server_id) as server:
            await send(server, wake(url))
            answer = await receive(server)
        return str(answer["push_result"]["outcome"])

    def outcomes(self, relay: Relay, *urls: str) -> list[str]:
        """Return what becomes of wakes, each of another server-id."""
        found = []

        async def scenario() -> None:
            for number, url in enumerate(urls):
                found.append(await self.outcome(relay, url, f"home-{number}"))

        self.perform(scenario())
        return found


class SendTests(WebPushTestCase):
    def test_sent(self) -> None:
        """A wake is one request that the relay's key has signed, and one line."""
        relay = self.pushing()
        url = answering(CREATED)
        self.assertEqual(self.outcomes(relay, url), ["sent"])
        [request] = self.server.requests
        authorization = request["headers"]["authorization"]
        self.assertEqual(claims(authorization)["sub"], SUBJECT)
        self.assertTrue(authorization.endswith(f", k={self.public}"))
        [event] = self.events(relay)
        self.assertEqual(event["event"], "push_wake_sent")
        self.assertEqual(event["message_id"], "message-1")
        self.assertEqual(event["token_fp"], hashlib.sha256(url.encode()).hexdigest()[:8])

    def test_dead(self) -> None:
        """404 and 410 are a dead subscription."""
        relay = self.pushing()
        urls = [answering(response(status)) for status in ("404 Not Found", "410 Gone")]
        self.assertEqual(self.outcomes(relay, *urls), ["unregistered"] * 2)
        self.assertEqual(
            [event["err"] for event in self.events(relay)],
            [f"the token is no longer registered ({status})" for status in (404, 410)],
        )

    def test_busy(self) -> None:
        """A service that is busy is asked twice more, after as long as it says."""
        relay = self.pushing()
        busy = answering(response("429 Slow", "Retry-After: 0"))
        long = answering(response("503 Busy", "Retry-After: 3600"))
        self.assertEqual(self.outcomes(relay, busy, long), ["failed"] * 2)
        paths = [request["path"] for request in self.server.requests]
        self.assertEqual([f"https://{HOST}{path}" for path in paths], [busy] * 3 + [long])

    def test_redirect(self) -> None:
        """A redirect is a failure, and is not followed."""
        relay = self.pushing()
        inside = response("307 Moved", "Location: https://127.0.0.1/hunter")
        self.assertEqual(self.outcomes(relay, answering(inside)), ["failed"])
        self.assertEqual(self.events(relay)[0]["err"], "the provider redirects (307)")
        self.assertEqual(len(self.server.connections), 1)

    def test_bad_services_switch_nothing_off(self) -> None:
        """Failures at hosts that one binary names do not stop the wakes of others."""
        relay = self.pushing()
        bad = [f"https://other-{number}.example/hunter" for number in range(8)]
        self.assertEqual(self.outcomes(relay, *bad, answering(CREATED)), ["failed"] * 8 + ["sent"])

    def test_allowed_hosts(self) -> None:
        """With hosts that are named, no other is connected to."""
        relay = self.pushing("--push-allow-host=.push.example", "--push-allow-host=127.0.0.1")
        urls = answering(CREATED), answering(CREATED, "127.0.0.1")
        self.assertEqual(self.outcomes(relay, *urls), ["failed", "sent"])
        self.assertEqual(len(self.server.connections), 1)

    def test_secret(self) -> None:
        """A subscription's URL is in no log, no metric and on no page, whatever comes of it."""
        relay = self.pushing(
            *("--admin-listen=127.0.0.1:0", "--admin-allow-remote"),
            *("--log-level=debug", "--push-timeout=1"),
        )
        own = f"{answering(response('201 Created', 'Location: /hunter'))}/hunter"
        urls = (
            *(own, f"https://{HOST}/silent/hunter", f"https://{HOST}/headers/hunter"),
            *(f"https://{HOST}/interim/hunter", f"https://{HOST}/body/hunter", *GUARDED, *ODD),
            *(f"https://{HOST}/{'hunter' * 900}", "https://other.example/hunter"),
        )
        self.outcomes(relay, *urls)
        events = self.events(relay)
        self.assertEqual(len(events), len(urls))
        started = next(
            line
            for line in map(json.loads, relay.log().splitlines())
            if line["event"] == "admin_listening"
        )
        port = int(started["listen"].rpartition(":")[2])
        for path in ("/", "/metrics", "/status.json"):
            status, body = fetch(("127.0.0.1", port), path)
            self.assertEqual(status, 200)
            self.assertNotIn(b"hunter", body)

    def test_drain(self) -> None:
        """A drain cancels what is under way, and the process ends at once."""
        relay = self.pushing("--push-timeout=60")

        async def scenario() -> None:
            async with bystanders(relay):
                pass
            async with binary(relay, "home") as server:
                await send(server, wake(f"https://{HOST}/silent"))
                await soon("the request arrives", lambda: self.server.requests)
                relay.signal(signal.SIGTERM)
                await ending(server)

        self.perform(scenario())
        self.assertEqual(relay.wait(), 0)
        [event] = self.events(relay)
        self.assertEqual(event["err"], "the relay shut down")


class GuardTests(WebPushTestCase):
    """With the relay as an operator starts it."""

    def test_guard(self) -> None:
        """No URL of a stranger leads into the relay's own network."""
        relay = self.relay(*self.options, "--log-format=json")
        self.assertEqual(
            self.outcomes(relay, *GUARDED, *ODD), ["failed"] * (len(GUARDED) + len(ODD))
        )
        self.assertEqual(
            [event["err"] for event in self.events(relay)],
            ["the host that the token names is not allowed"] * len(GUARDED)
            + ["the token is invalid"] * len(ODD),
        )
        self.assertEqual(self.server.connections, [])

    def test_environment(self) -> None:
        """No variable of the environment opens the guard or sends requests elsewhere."""
        proxy = f"http://127.0.0.1:{self.server.port}"
        names = ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY")
        relay = self.relay(
            *self.options, "--log-format=json", environment=dict.fromkeys(names, proxy)
        )
        self.assertEqual(self.outcomes(relay, "https://127.0.0.1/hunter"), ["failed"])
        self.assertEqual(self.server.connections, [])


class StartTests(WebPushTestCase):
    def refusal(self, *options: str) -> str:
        """Return the one sentence with which a relay does not start."""
        relay = Relay(self.directory, ["--insecure-listen=127.0.0.1:0", *options])
        self.addCleanup(relay.kill)
        self.assertEqual(relay.wait(), 2)
        [sentence] = relay.errors().splitlines()
        return sentence

    def test_wrong_keys(self) -> None:
        """A wrong key is one sentence, and nothing of the key is in it."""
        subject = f"--webpush-subject={SUBJECT}"
        option = f"--webpush-key={self.key}"
        self.assertIn("without --webpush-subject", self.refusal(option))
        self.key.chmod(0o644)
        self.assertIn(f"chmod 600 {self.key}", self.refusal(option, subject))
        self.key.chmod(0o600)
        self.key.write_bytes(Issued((), ec.generate_private_key(ec.SECP384R1())).key_pem())
        self.assertIn("not an ECDSA key on the curve P-256", self.refusal(option, subject))
        self.key.write_text("nothing")
        self.assertIn("no private key in PEM form", self.refusal(option, subject))
        self.key.unlink()
        self.assertIn("the path of an existing file", self.refusal(option, subject))

    def test_key_command(self) -> None:
        """The command shows the public half again, and never replaces a key."""
        shown = self.key_command("--show", str(self.key))
        self.assertEqual((shown.returncode, shown.stdout), (0, f"{self.public}\n"))
        again = self.key_command(str(self.key))
        self.assertEqual((again.returncode, again.stdout), (1, ""))
        self.assertIn("exists already", again.stderr)
