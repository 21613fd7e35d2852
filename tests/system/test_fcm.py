"""Wakes through FCM: the relay as a process, and Google played by a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import re
import signal
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from tests import needs
from tests.fcm_server import (
    BAD_REQUEST,
    CONNECT,
    PROJECT,
    SEND,
    TOKEN,
    FcmServer,
    Step,
    error,
    fcm_error,
    misdeed,
)
from tests.peers.waiting import DEADLINE, soon
from tests.system.harness import (
    Relay,
    SystemTestCase,
    binary,
    bystanders,
    ending,
    phone,
    receive,
    send,
)

FINGERPRINT = re.compile(r"[0-9a-f]{8}")
SECRET = "device-hunter4"
"""A device's token. Every secret of these tests has the word hunter in it."""


def wake(number: int | str = 1, reply: str | None = "w") -> dict[str, Any]:
    """Return the envelope that asks for a wake of a device."""
    asked = {"platform": "fcm", "token": f"{SECRET}-{number}"}
    return {"push_wake": asked if reply is None else asked | {"reply": reply}}


class FcmTestCase(SystemTestCase):
    def setUp(self) -> None:
        super().setUp()
        needs.module("google.auth", "pyrycode-relay[push]")
        self.google = FcmServer(self.directory)
        self.addCleanup(self.google.close)

    def pushing(self, *options: str, **more: Any) -> Relay:
        """Start a relay that sends to the server."""
        return self.relay(*self.google.options, "--log-format=json", *options, **more)

    def events(self, relay: Relay, *names: str) -> list[dict[str, Any]]:
        """Return the log's lines about wakes."""
        lines = [json.loads(line) for line in relay.log().splitlines()]
        return [line for line in lines if line["event"] in (names or PUSH_EVENTS)]

    async def outcome(self, relay: Relay, number: int = 1) -> str:
        """Return what becomes of a wake."""
        async with binary(relay, f"home-{number}") as server:
            await send(server, wake(number))
            answer = await receive(server)
        assert answer["push_result"]["reply"] == "w"
        return str(answer["push_result"]["outcome"])

    def the_event(self, relay: Relay) -> dict[str, Any]:
        """Return the one line about wakes, and see that no secret is in the log."""
        [event] = self.events(relay)
        self.assertNotIn("hunter", relay.log() + relay.errors())
        return event


SHIFTED = """
import os, time
real = time.time

def shifted():
    with open(os.environ["SHIFT"]) as file:
        return real() + float(file.read() or 0)

time.time = shifted
"""
"""Sets a process's time of day by as many seconds as a file says."""

PUSH_EVENTS = ("push_wake_sent", "push_wake_failed", "push_wake_dropped")


class SentTests(FcmTestCase):
    def test_sent(self) -> None:
        """A wake is one message of high priority with nothing in it, and one line."""
        relay = self.pushing()

        async def scenario() -> None:
            self.assertEqual(await self.outcome(relay), "sent")

        self.perform(scenario())
        [sent] = self.google.requests(SEND)
        android = {"priority": "HIGH", "ttl": "300s", "collapse_key": "wake"}
        expected = {"message": {"token": f"{SECRET}-1", "android": android}}
        self.assertEqual(sent["body"], json.dumps(expected, separators=(",", ":")))
        self.assertEqual(sent["headers"]["content-type"], "application/json")
        self.assertEqual(self.google.refusals(), [])
        event = self.the_event(relay)
        self.assertEqual(event["event"], "push_wake_sent")
        self.assertTrue(event["message_id"].startswith(f"projects/{PROJECT}/messages/0:"))
        self.assertTrue(FINGERPRINT.fullmatch(event["token_fp"]))
        self.assertEqual(event["server_id"], "home-1")

    def test_one_token_for_many(self) -> None:
        """Many wakes at once need one access token, and later ones none."""
        relay = self.pushing()

        async def scenario() -> None:
            async with binary(relay, "a") as first, binary(relay, "b") as second:
                for round in range(2):
                    for number in range(3):
                        await send(first, wake(f"a{round}{number}"))
                        await send(second, wake(f"b{round}{number}"))
                    for server in (first, second):
                        for _ in range(3):
                            answer = await receive(server)
                            self.assertEqual(answer["push_result"]["outcome"], "sent")

        self.perform(scenario())
        self.assertEqual(len(self.google.requests(TOKEN)), 1)
        self.assertEqual(len(self.google.requests(SEND)), 12)

    def test_connections_are_kept(self) -> None:
        """Wakes that follow each other share a connection."""
        relay = self.pushing()

        async def scenario() -> None:
            for number in range(4):
                self.assertEqual(await self.outcome(relay, number), "sent")

        self.perform(scenario())
        self.assertLessEqual(self.google.connections(), 2)

    def test_without_an_answer(self) -> None:
        """The daemon of today expects none: it is sent nothing but its phones' frames."""
        relay = self.pushing()

        async def scenario() -> None:
            async with binary(relay, "home") as server, phone(relay, "home") as handset:
                await send(server, wake(reply=None))
                await soon("it is sent", lambda: self.events(relay))
                await send(handset, 7)
                self.assertEqual((await receive(server))["frame"], 7)

        self.perform(scenario())

    def test_the_binary_leaves(self) -> None:
        """A send outlives its binary's connection."""
        relay = self.pushing()
        self.google.next(SEND, misdeed("slow"))

        async def scenario() -> None:
            async with binary(relay, "home") as server:
                await send(server, wake())
            await soon("it is sent", lambda: self.events(relay))

        self.perform(scenario())
        self.assertEqual(self.the_event(relay)["event"], "push_wake_sent")


class ErrorTests(FcmTestCase):
    """What FCM's errors mean. All kinds go through one relay, each from a server-id of its own."""

    def outcomes(self, steps: dict[str, tuple[Step, str, str]], *options: str) -> None:
        """See what becomes of wakes, and what the log says, by what the server does."""
        relay = self.pushing(*options)

        async def scenario() -> None:
            for number, (name, (step, outcome, _)) in enumerate(steps.items()):
                self.google.next(SEND, step)
                self.assertEqual(await self.outcome(relay, number), outcome, name)

        self.perform(scenario())
        events = self.events(relay)
        for event, (name, (_, outcome, err)) in zip(events, steps.items(), strict=True):
            self.assertEqual(event.get("err", ""), err, name)
            kind = "push_wake_sent" if outcome == "sent" else "push_wake_failed"
            self.assertEqual(event["event"], kind, name)
        self.assertNotIn("hunter", relay.log() + relay.errors())

    def test_classes(self) -> None:
        """Each class of error is told apart, and only its codes are kept."""
        bad_request = {"@type": BAD_REQUEST, "fieldViolations": [{"field": "hunter5"}]}
        self.outcomes(
            {
                "dead": (
                    error(404, "NOT_FOUND", fcm_error("UNREGISTERED")),
                    "unregistered",
                    "the token is no longer registered (404 NOT_FOUND UNREGISTERED)",
                ),
                "dead_without_detail": (
                    error(404, "NOT_FOUND"),
                    "unregistered",
                    "the token is no longer registered (404 NOT_FOUND)",
                ),
                "no_such_page": (
                    {"status": 404, "body": "<html>hunter2</html>"},
                    "failed",
                    "the provider refused (404)",
                ),
                "bad_token": (
                    error(400, "INVALID_ARGUMENT", fcm_error("INVALID_ARGUMENT")),
                    "failed",
                    "the token is invalid (400 INVALID_ARGUMENT INVALID_ARGUMENT)",
                ),
                "bad_request": (
                    error(400, "INVALID_ARGUMENT", bad_request),
                    "failed",
                    "the provider calls the request bad (400 INVALID_ARGUMENT)",
                ),
                "other_project": (
                    error(403, "PERMISSION_DENIED", fcm_error("SENDER_ID_MISMATCH")),
                    "failed",
                    "the provider refused (403 PERMISSION_DENIED SENDER_ID_MISMATCH)",
                ),
                "apple": (
                    error(401, "UNAUTHENTICATED", fcm_error("THIRD_PARTY_AUTH_ERROR")),
                    "failed",
                    "the provider refused (401 UNAUTHENTICATED THIRD_PARTY_AUTH_ERROR)",
                ),
                "internal": (
                    error(500, "INTERNAL", fcm_error("INTERNAL")),
                    "failed",
                    "the provider is unavailable (500 INTERNAL INTERNAL)",
                ),
                "odd_codes": (
                    error(400, "hunter2 says", fcm_error("A" * 65)),
                    "failed",
                    "the provider refused (400)",
                ),
                "redirect": (
                    {"status": 307, "headers": {"Location": f"{self.google.url}{SEND}"}},
                    "failed",
                    "the provider redirects (307)",
                ),
                "any_success": ({"status": 204, "headers": {}}, "sent", ""),
                "odd_success": ({"status": 200, "body": '{"name":"hunter 2"}'}, "sent", ""),
            }
        )
        self.assertEqual(len(self.google.requests(SEND)), 12)

    def test_bad_answers(self) -> None:
        """Answers that are huge, broken off or no HTTP cost that send and nothing else."""
        self.outcomes(
            {
                "slow": (misdeed("slow"), "sent", ""),
                "huge": (misdeed("huge"), "sent", ""),
                "huge_error": (
                    misdeed("huge_error"),
                    "failed",
                    "the provider is unavailable (500)",
                ),
                "good": ({}, "sent", ""),
                "garbage": (
                    misdeed("garbage"),
                    "failed",
                    "the provider's answer is malformed",
                ),
                "broken_off": (misdeed("reset_in_body"), "sent", ""),
                "closed_afterwards": (misdeed("close_afterwards"), "sent", ""),
                "after_a_close": ({}, "sent", ""),
            }
        )

    def test_hanging(self) -> None:
        """A server that hangs costs the time-out; of a success only the status is needed."""
        self.outcomes(
            {
                "no_answer": (
                    misdeed("hang"),
                    "failed",
                    "the provider did not answer in time",
                ),
                "in_headers": (
                    misdeed("hang_in_headers"),
                    "failed",
                    "the provider did not answer in time",
                ),
                "in_body": (misdeed("hang_in_body"), "sent", ""),
                "good": ({}, "sent", ""),
            },
            "--push-timeout=1",
        )

    def test_endless_headers(self) -> None:
        """Headers without end are cut off; the relay's memory does not show them."""
        relay = self.pushing()
        before = relay.peak()
        self.google.next(SEND, *[misdeed("huge_headers")] * 3)

        async def scenario() -> None:
            self.assertEqual(await self.outcome(relay), "failed")

        self.perform(scenario())
        self.assertLess(relay.peak() - before, 30 * 2**20)


class RetryTests(FcmTestCase):
    def retried(self, steps: list[Step], outcome: str, tries: int) -> Relay:
        """See what becomes of one wake, and how often it was tried; return the relay."""
        relay = self.pushing()
        self.google.next(SEND, *steps)

        async def scenario() -> None:
            self.assertEqual(await self.outcome(relay), outcome)

        self.perform(scenario())
        self.assertEqual(len(self.google.requests(SEND)), tries)
        self.the_event(relay)
        return relay

    def test_seconds(self) -> None:
        """A server that is busy says after how many seconds to try again."""
        self.retried([error(429, "RESOURCE_EXHAUSTED", Retry_After="1")], "sent", 2)

    def test_date(self) -> None:
        """Or at what time."""
        soon_after = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
        self.retried([error(503, "UNAVAILABLE", Retry_After=soon_after)], "sent", 2)

    def test_twice_at_most(self) -> None:
        """There are two more tries, and then the wake has failed."""
        busy = error(429, "RESOURCE_EXHAUSTED", fcm_error("QUOTA_EXCEEDED"), Retry_After="0")
        relay = self.retried([busy] * 3, "failed", 3)
        [event] = self.events(relay)
        words = "the provider limits the rate (429 RESOURCE_EXHAUSTED QUOTA_EXCEEDED)"
        self.assertEqual(event["err"], words)

    def test_too_late(self) -> None:
        """A try that would come after the wake's life is none."""
        self.retried([error(503, "UNAVAILABLE", Retry_After="301")], "failed", 1)

    def test_lost_connection(self) -> None:
        """A connection that is lost before the answer is another try."""
        self.retried([misdeed("reset"), misdeed("close")], "sent", 3)

    def test_lost_in_headers(self) -> None:
        """So is one that is lost within the headers."""
        self.retried([misdeed("reset_in_headers")], "sent", 2)

    def test_lost_before_the_request(self) -> None:
        """So is one that is lost before or in its TLS handshake."""
        relay = self.pushing()

        async def scenario() -> None:
            self.google.next(CONNECT, {}, misdeed("reset"), misdeed("reset_in_tls"))
            # The control's own connection takes the first of them.
            self.google.requests(SEND)
            self.assertEqual(await self.outcome(relay, 1), "failed")
            self.assertEqual(await self.outcome(relay, 2), "failed")
            self.assertEqual(await self.outcome(relay, 3), "sent")

        self.perform(scenario())
        errs = [event["err"] for event in self.events(relay, "push_wake_failed")]
        self.assertEqual(len(errs), 2)
        for err in errs:
            self.assertRegex(
                err, r"the relay got no access token \((disconnected|tls|unreachable)\)"
            )


class TokenTests(FcmTestCase):
    def outcomes(self, *expected: str, options: tuple[str, ...] = ()) -> Relay:
        """See what becomes of wakes one after another; return the relay."""
        relay = self.pushing(*options)

        async def scenario() -> None:
            for number, outcome in enumerate(expected):
                self.assertEqual(await self.outcome(relay, number), outcome)

        self.perform(scenario())
        self.assertNotIn("hunter", relay.log() + relay.errors())
        return relay

    def test_refused(self) -> None:
        """A relay that gets no token says so, and asks again for the next wake."""
        self.google.next(TOKEN, {"status": 400, "body": '{"error":"hunter2"}'})
        relay = self.outcomes("failed", "sent")
        event = self.events(relay)[0]
        self.assertEqual(event["err"], "the relay got no access token (400)")
        self.assertEqual(len(self.google.requests(TOKEN)), 2)

    def test_malformed(self) -> None:
        """A grant that cannot be read is none."""
        self.google.next(
            TOKEN,
            {"status": 200, "body": '{"access_token":"hunter 2","expires_in":3600}'},
            {"status": 200, "body": '{"access_token":"hunter2"}'},
            {"status": 200, "body": "hunter2"},
            misdeed("huge"),
        )
        self.outcomes("failed", "failed", "failed", "failed", "sent")

    def test_redirect(self) -> None:
        """A token server that redirects is not followed."""
        self.google.next(TOKEN, {"status": 302, "headers": {"Location": self.google.url + TOKEN}})
        self.outcomes("failed")
        self.assertEqual(len(self.google.requests(TOKEN)), 1)

    def test_hanging(self) -> None:
        """A token server that hangs costs the time-out, of all who wait for it."""
        self.google.next(TOKEN, misdeed("hang"))
        relay = self.outcomes("failed", "sent", options=("--push-timeout=1",))
        event = self.events(relay)[0]
        self.assertEqual(event["err"], "the relay got no access token (timeout)")

    def test_expired(self) -> None:
        """A bearer near its end is replaced before the next wake."""
        self.google.set(lifetime=9)
        self.outcomes("sent", "sent")
        self.assertEqual(len(self.google.requests(TOKEN)), 2)
        self.assertEqual(self.google.refusals(), [])

    def test_revoked(self) -> None:
        """A bearer that FCM refuses is replaced once, and the wake is sent with the new one."""
        relay = self.pushing()

        async def scenario() -> None:
            self.assertEqual(await self.outcome(relay, 1), "sent")
            self.google.revoke()
            self.assertEqual(await self.outcome(relay, 2), "sent")

        self.perform(scenario())
        self.assertEqual(self.google.refusals(), ["bearer"])
        self.assertEqual(len(self.google.requests(TOKEN)), 2)
        self.assertEqual(len(self.google.requests(SEND)), 3)

    def test_never_accepted(self) -> None:
        """A bearer is replaced only once for a wake."""
        self.google.next(SEND, *[error(401, "UNAUTHENTICATED")] * 2)
        relay = self.outcomes("failed")
        words = "the provider does not accept the relay's credentials (401 UNAUTHENTICATED)"
        self.assertEqual(self.the_event(relay)["err"], words)
        self.assertEqual(len(self.google.requests(SEND)), 2)

    def test_clock_behind(self) -> None:
        """A server whose clock is a little behind the relay's accepts the assertion."""
        self.google.set(skew=-8)
        self.outcomes("sent")

    def test_clock_far_behind(self) -> None:
        """One far behind does not, and the relay says so."""
        self.google.set(skew=-600)
        relay = self.outcomes("failed")
        self.assertEqual(self.the_event(relay)["err"], "the relay got no access token (400)")
        [refusal] = self.google.refusals()
        self.assertIn("issued", refusal)


class TrustTests(FcmTestCase):
    def test_unknown_authority(self) -> None:
        """A server whose certificate no authority vouches for gets no request."""
        relay = self.relay(*self.google.options[:2], "--log-format=json")

        async def scenario() -> None:
            self.assertEqual(await self.outcome(relay), "failed")

        self.perform(scenario())
        words = "the relay got no access token (tls)"
        self.assertEqual(self.the_event(relay)["err"], words)
        self.assertEqual(self.google.requests(TOKEN), [])

    def test_another_name(self) -> None:
        """So does one whose certificate is for another name."""
        account = self.google.account(token_uri=f"https://127.0.0.1:{self.google.port}{TOKEN}")
        self.google.credentials.write_text(json.dumps(account))
        relay = self.pushing()

        async def scenario() -> None:
            self.assertEqual(await self.outcome(relay), "failed")

        self.perform(scenario())
        words = "the relay got no access token (tls)"
        self.assertEqual(self.the_event(relay)["err"], words)
        self.assertEqual(self.google.requests(TOKEN), [])


class StatusTests(FcmTestCase):
    def test_status(self) -> None:
        """The status page's data and the metrics show what became of wakes, and no secret."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            admin = free.getsockname()
        relay = self.pushing(f"--admin-listen=127.0.0.1:{admin[1]}")
        self.google.next(SEND, {}, error(500, "HUNTER"), error(404, "NOT_FOUND"))

        async def scenario() -> None:
            for number, outcome in enumerate(("sent", "failed", "unregistered")):
                self.assertEqual(await self.outcome(relay, number), outcome)

        before = self.metrics(admin)
        self.perform(scenario())
        after = self.metrics(admin)
        for name in ("sent", "unregistered", "send_failed", "token_fetch_failed", "dropped"):
            counter = f'wakes_total{{outcome="{name}"}}'
            self.assertEqual(before[counter], 0)
            expected = name in {"sent", "unregistered", "send_failed"}
            self.assertEqual(after[counter], expected, name)
        self.assertEqual(after['breaker_open{platform="fcm"}'], 0)
        push = self.ask(admin, "/status.json")
        document = json.loads(push)["push"]
        self.assertEqual(document["last_failure"]["fault"], "unavailable")
        self.assertEqual(document["breakers"], {"fcm": "closed"})
        self.assertNotIn("hunter", push.lower())

    def ask(self, admin: tuple[str, int], path: str) -> str:
        """Return a page of the operator's side."""
        way = http.client.HTTPConnection(*admin, timeout=DEADLINE)
        with contextlib.closing(way):
            way.request("GET", path)
            return way.getresponse().read().decode()

    def metrics(self, admin: tuple[str, int]) -> dict[str, float]:
        """Return the metrics of push."""
        found = re.findall(r"^pyrycode_relay_push_(\S+) (\S+)$", self.ask(admin, "/metrics"), re.M)
        return {name: float(value) for name, value in found}


class ClockTests(FcmTestCase):
    def test_set(self) -> None:
        """If the time of day is set, by an hour either way, time-outs and drains are in time."""
        shift = self.directory / "shift"
        (self.directory / "sitecustomize.py").write_text(SHIFTED)
        for seconds in (3600, -3600):
            shift.write_text("0")
            relay = self.pushing(
                "--push-timeout=1",
                environment={"PYTHONPATH": str(self.directory), "SHIFT": str(shift)},
            )

            async def scenario(relay: Relay = relay, seconds: int = seconds) -> None:
                self.assertEqual(await self.outcome(relay, 1), "sent")
                self.google.next(SEND, misdeed("hang"))
                hanging = self.google.waiting()
                async with binary(relay, "home") as server:
                    await send(server, wake(2))
                    await soon("it hangs", lambda: self.google.waiting() > hanging)
                    shift.write_text(str(seconds))
                    answer = await receive(server)
                    self.assertEqual(answer["push_result"]["outcome"], "failed")
                    await send(server, wake(3))
                    answer = await receive(server)
                    self.assertEqual(answer["push_result"]["outcome"], "sent")
                    relay.signal(signal.SIGTERM)
                    await ending(server)

            self.perform(scenario())
            self.assertEqual(relay.wait(), 0)
            [failed] = self.events(relay, "push_wake_failed")
            self.assertLess(failed["duration"], 60)


class OtherPeersTests(FcmTestCase):
    def test_nobody_else_notices(self) -> None:
        """While sends hang or bring 10 MB, phones and binaries talk."""
        relay = self.pushing("--push-timeout=2")
        self.google.next(SEND, *[misdeed("hang"), misdeed("huge"), misdeed("huge_headers")] * 2)

        async def scenario() -> None:
            async with bystanders(relay), binary(relay, "home") as server:
                for number in range(6):
                    await send(server, wake(number))
                for _ in range(6):
                    await receive(server)

        self.perform(scenario())

    def test_drain(self) -> None:
        """A drain cancels what is under way, and waits for it; each send has its line."""
        relay = self.pushing("--push-timeout=60")
        self.google.next(SEND, misdeed("hang"), misdeed("hang_in_body"))

        async def scenario() -> None:
            async with binary(relay, "home") as server:
                await send(server, wake(1))
                await send(server, wake(2))
                await soon("it hangs", lambda: self.google.waiting() == 2)
                relay.signal(signal.SIGTERM)
                await ending(server)

        self.perform(scenario())
        self.assertEqual(relay.wait(), 0)
        errs = [event["err"] for event in self.events(relay, "push_wake_failed")]
        self.assertEqual(errs, ["the relay shut down"] * 2)
        self.assertNotIn("hunter", relay.log() + relay.errors())

    def test_drain_without_a_token(self) -> None:
        """So does one while the token server hangs, with all wakes that wait for the token."""
        relay = self.pushing("--push-timeout=60", "--drain-timeout=10")
        self.google.next(TOKEN, misdeed("hang"))

        async def scenario() -> None:
            async with binary(relay, "home") as server:
                await send(server, wake(1))
                await send(server, wake(2))
                await soon("it hangs", lambda: self.google.waiting() == 1)
                relay.signal(signal.SIGTERM)
                await ending(server)

        self.perform(scenario())
        self.assertEqual(relay.wait(), 0)
        errs = [event["err"] for event in self.events(relay, "push_wake_failed")]
        self.assertEqual(errs, ["the relay shut down"] * 2)
        self.assertEqual(self.google.requests(SEND), [])

    def test_frozen(self) -> None:
        """A provider that freezes holds up neither a frame nor the drain, with all places taken."""
        relay = self.pushing("--push-timeout=60", "--drain-timeout=10")
        names = [f"home-{number}" for number in range(7)]

        async def scenario() -> None:
            async with contextlib.AsyncExitStack() as stack:
                servers = [await stack.enter_async_context(binary(relay, each)) for each in names]
                for server in servers:
                    await send(server, wake(id(server)))
                for server in servers:
                    self.assertEqual((await receive(server))["push_result"]["outcome"], "sent")
                self.google.freeze()
                for server in servers:
                    for number in range(6):
                        await send(server, wake(f"{id(server)}-{number}", str(number)))
                    # The rate refuses the last one.
                    while (await receive(server))["push_result"]["reply"] != "5":
                        pass
                async with bystanders(relay):
                    pass
                relay.signal(signal.SIGTERM)
                began = time.monotonic()
                self.assertEqual(await asyncio.to_thread(relay.wait), 0)
                self.assertLess(time.monotonic() - began, 5)

        self.perform(scenario())
        failed = self.events(relay, "push_wake_failed")
        self.assertEqual({each["err"] for each in failed}, {"the relay shut down"})
        self.assertEqual(len(failed), 32)
