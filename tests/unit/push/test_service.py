"""Wakes through a provider that the test plays: checks, limits, tries, and what is said of them."""

from __future__ import annotations

import gc
import hashlib
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from pyrycode_relay.events import Event
from pyrycode_relay.monitoring.counters import Counters, EventCounter
from pyrycode_relay.protocol.push_wake import WakeOutcome, WakeRefusal, WakeRequest
from pyrycode_relay.push import service
from pyrycode_relay.push.breaker import BreakerState
from pyrycode_relay.push.provider import Failed, Outcome, SendFault, Sent
from pyrycode_relay.push.service import PushService
from tests.recorder import Recorder
from tests.unit.bench import Cases, cases

DOWN = Failed(SendFault.UNAVAILABLE, ("503",), retryable=True)


class Tries:
    """A provider that keeps each try, for the test to end it."""

    def __init__(self, is_one_server: bool = True) -> None:
        self.is_one_server = is_one_server
        self.ttls: list[float] = []
        self.pending: list[tuple[str, Deferred[Outcome]]] = []
        self.cancelled: list[str] = []
        self.closed = False

    async def send(self, token: str, ttl: float) -> Outcome:
        """Wait for the test's word."""
        self.ttls.append(ttl)
        outcome: Deferred[Outcome] = Deferred(lambda _: self.cancelled.append(token))
        self.pending.append((token, outcome))
        return await outcome

    async def close(self) -> None:
        """Take note."""
        self.closed = True

    def end(self, outcome: Outcome | Exception) -> None:
        """End the oldest try."""
        _, pending = self.pending.pop(0)
        if isinstance(outcome, Exception):
            pending.errback(outcome)
        else:
            pending.callback(outcome)


class PushTestCase(Cases):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)
        self.seen = Recorder()
        self.fcm = Tries()
        self.named = Tries(is_one_server=False)
        self.push = PushService(self.clock, self.seen, {"fcm": self.fcm, "named": self.named})
        self.answers: list[WakeOutcome] = []

    def wake(
        self, token: str = "t", server_id: str = "home", platform: str = "fcm", answer: bool = True
    ) -> None:
        """Have a binary ask for a wake, and let the send begin."""
        request = WakeRequest(platform, token, "r" if answer else None)
        self.push.wake(server_id, "192.0.2.1", request, self.answers.append if answer else None)
        self.clock.advance(0)

    def refusals(self) -> list[WakeRefusal]:
        """Return why wakes were refused."""
        return [fields["reason"] for fields in self.seen.of(Event.PUSH_WAKE_DROPPED)]

    def failures(self) -> list[SendFault]:
        """Return why sends failed."""
        return [fields["err"].fault for fields in self.seen.of(Event.PUSH_WAKE_FAILED)]


class CheckTests(PushTestCase):
    @cases(
        {
            "malformed": (None, WakeRefusal.MALFORMED),
            "unknown": (WakeRequest("apns", "t"), WakeRefusal.PLATFORM),
            "no_platform": (WakeRequest("", "t"), WakeRefusal.PLATFORM),
            "not_configured": (WakeRequest("webpush", "t"), WakeRefusal.PLATFORM),
            "no_token": (WakeRequest("fcm", ""), WakeRefusal.TOKEN),
            "long_token": (WakeRequest("fcm", "t" * 4097), WakeRefusal.TOKEN),
            "long_in_bytes": (WakeRequest("fcm", "é" * 2049), WakeRefusal.TOKEN),
            "platform_first": (WakeRequest("apns", ""), WakeRefusal.PLATFORM),
        }
    )
    def test_refused(self, request: WakeRequest | None, refusal: WakeRefusal) -> None:
        """A wake that cannot be sent is one warning and nothing else."""
        self.push.wake("home", "192.0.2.1", request, self.answers.append)
        fields = {"server_id": "home", "remote": "192.0.2.1", "reason": refusal}
        self.assertEqual(self.seen.events, [(Event.PUSH_WAKE_DROPPED, fields)])
        self.assertEqual(self.answers, [WakeOutcome.DROPPED])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_order(self) -> None:
        """If several checks fail, the first of the contract's order is the reason."""
        for number in range(service.MAX_SENDS):
            self.wake(f"t{number}", server_id=f"s{number}")
        for number in range(service.BURST):
            self.wake(f"u{number}")
        self.assertEqual(self.refusals(), [WakeRefusal.BUSY] * service.BURST)
        self.seen.clear()
        wrong = (None, WakeRequest("apns", ""), WakeRequest("fcm", ""))
        for request in (*wrong, WakeRequest("fcm", "t")):
            self.push.wake("home", "192.0.2.1", request, None)
        Deferred.fromCoroutine(self.push.stop())
        for request in (*wrong, WakeRequest("fcm", "t")):
            self.push.wake("home", "192.0.2.1", request, None)
        first = [WakeRefusal.MALFORMED, WakeRefusal.PLATFORM, WakeRefusal.TOKEN]
        self.assertEqual(self.refusals(), [*first, WakeRefusal.RATE, *first, WakeRefusal.DRAINING])

    def test_longest_token(self) -> None:
        """A token of 4096 bytes is sent."""
        self.wake("é" * 2048)
        self.assertEqual(self.refusals(), [])

    def test_refused_wakes_do_not_count(self) -> None:
        """A wake that is refused before the rate takes nothing of it."""
        for _ in range(20):
            self.push.wake("home", "192.0.2.1", WakeRequest("fcm", ""), None)
        for number in range(service.BURST):
            self.wake(f"t{number}")
        self.assertEqual(set(self.refusals()), {WakeRefusal.TOKEN})

    def test_rate(self) -> None:
        """A server-id has six wakes at once and then one in ten seconds, and others have theirs."""
        for number in range(8):
            self.wake(f"t{number}")
        self.assertEqual(self.refusals(), [WakeRefusal.RATE] * 2)
        self.assertEqual(self.answers, [WakeOutcome.DROPPED] * 2)
        self.wake("other", server_id="office")
        self.clock.advance(10)
        self.wake("t8")
        self.wake("t9")
        self.assertEqual(self.refusals(), [WakeRefusal.RATE] * 3)
        self.assertEqual(len(self.fcm.ttls), 8)

    def test_named_servers(self) -> None:
        """Servers that binaries name have half of the sends at most, however slow they are."""
        for number in range(20):
            self.wake(f"t{number}", f"s{number}", "named")
        self.assertEqual(self.refusals(), [WakeRefusal.BUSY] * 4)
        self.assertEqual(len(self.named.pending), service.MAX_NAMED_SENDS)
        self.wake("t99", "s99")
        self.assertEqual(len(self.fcm.pending), 1)
        self.named.end(Sent())
        self.wake("t99", "s99", "named")
        self.assertEqual(len(self.refusals()), 4)

    def test_all_sends(self) -> None:
        """At most 32 wakes are under way, of all server-ids together."""
        for number in range(34):
            self.wake(f"t{number}", server_id=f"s{number}")
        self.assertEqual(self.refusals(), [WakeRefusal.BUSY] * 2)
        self.assertEqual(len(self.fcm.pending), service.MAX_SENDS)
        self.fcm.end(Sent())
        self.wake("t99", server_id="s99")
        self.assertEqual(self.push.under_way, service.MAX_SENDS)
        self.assertEqual(len(self.refusals()), 2)


class PlaceTests(PushTestCase):
    """Sends that are put off hold places for minutes; wakes whose first try is due come first."""

    LATER = Failed(SendFault.RATE_LIMITED, retryable=True, retry_after=200.0)

    def put_off(self, number: int, provider: Tries | None = None) -> None:
        """Have the provider put off the sends under way."""
        for _ in range(number):
            (provider or self.fcm).end(self.LATER)

    def test_gives_way(self) -> None:
        """A wake that waits for another try gives its place to a new one, and has failed."""
        for number in range(service.MAX_SENDS):
            self.wake(f"t{number}", server_id=f"s{number}")
        self.put_off(service.MAX_SENDS - 1)
        self.wake("new", server_id="new")
        self.assertEqual(self.refusals(), [])
        self.assertEqual(self.failures(), [SendFault.RATE_LIMITED])
        self.assertEqual(self.answers, [WakeOutcome.SEND_FAILED])
        self.assertEqual(self.push.under_way, service.MAX_SENDS)
        [fields] = self.seen.of(Event.PUSH_WAKE_FAILED)
        self.assertEqual(fields["server_id"], "s0")
        self.clock.advance(200)
        self.assertEqual(len(self.fcm.pending), service.MAX_SENDS)

    def test_of_most(self) -> None:
        """The one that gives way is of the server-id with most sends."""
        self.wake("quiet", server_id="quiet")
        for number in range(6):
            self.wake(f"greedy{number}", server_id="greedy")
        for number in range(service.MAX_SENDS - 7):
            self.wake(f"t{number}", server_id=f"s{number}")
        self.put_off(service.MAX_SENDS)
        for number in range(4):
            self.wake(f"new{number}", server_id="new")
        failed = [fields["server_id"] for fields in self.seen.of(Event.PUSH_WAKE_FAILED)]
        self.assertEqual(failed, ["greedy"] * 4)

    def test_of_the_platform(self) -> None:
        """If only the part of a platform is full, it is one of that platform."""
        self.wake("fcm")
        self.put_off(1)
        for number in range(service.MAX_NAMED_SENDS):
            self.wake(f"t{number}", f"s{number}", "named")
        self.put_off(service.MAX_NAMED_SENDS, self.named)
        self.wake("new", "new", "named")
        [fields] = self.seen.of(Event.PUSH_WAKE_FAILED)
        self.assertEqual(fields["server_id"], "s0")

    def test_tries_go_on(self) -> None:
        """A try under way gives no place: the new wake is refused."""
        for number in range(service.MAX_SENDS):
            self.wake(f"t{number}", server_id=f"s{number}")
        self.put_off(1)
        self.clock.advance(200)
        self.wake("new", server_id="new")
        self.assertEqual(self.refusals(), [WakeRefusal.BUSY])
        self.assertEqual(self.failures(), [])


class SendTests(PushTestCase):
    def test_sent(self) -> None:
        """A wake that is sent is one line, with the token's fingerprint."""
        self.wake("secret")
        self.clock.advance(1.5)
        self.fcm.end(Sent("projects/p/messages/1"))
        fields = {
            "server_id": "home",
            "token_fp": hashlib.sha256(b"secret").hexdigest()[:8],
            "duration": 1.5,
            "message_id": "projects/p/messages/1",
        }
        self.assertEqual(self.seen.events, [(Event.PUSH_WAKE_SENT, fields)])
        self.assertEqual(self.answers, [WakeOutcome.SENT])
        self.assertEqual(self.push.under_way, 0)

    def test_no_message_id(self) -> None:
        """The line has no message id if the provider gave none."""
        self.wake()
        self.fcm.end(Sent())
        [fields] = self.seen.of(Event.PUSH_WAKE_SENT)
        self.assertNotIn("message_id", fields)

    @cases(
        {
            fault.name: (fault,)
            for fault in SendFault
            if fault not in {SendFault.CANCELLED, SendFault.BUG, SendFault.BREAKER}
        }
    )
    def test_failed(self, fault: SendFault) -> None:
        """A wake that fails is one warning; its binary gets the outcome."""
        self.wake()
        self.fcm.end(Failed(fault, ("400", "INVALID_ARGUMENT")))
        [(event, fields)] = self.seen.events
        self.assertIs(event, Event.PUSH_WAKE_FAILED)
        self.assertEqual(set(fields), {"server_id", "token_fp", "duration", "err"})
        self.assertEqual(str(fields["err"]), f"{fault} (400 INVALID_ARGUMENT)")
        self.assertEqual(self.answers, [fault.outcome])

    def test_nothing_is_sent_within_the_call(self) -> None:
        """The call only checks: the provider is asked after the batch."""
        self.push.wake("home", "192.0.2.1", WakeRequest("fcm", "t"), None)
        self.assertEqual(self.fcm.pending, [])
        self.clock.advance(0)
        self.assertEqual(len(self.fcm.pending), 1)

    def test_no_answer(self) -> None:
        """A binary that asks for no answer gets none."""
        self.wake(answer=False)
        self.fcm.end(Sent())
        self.assertEqual(self.answers, [])

    def test_bug(self) -> None:
        """A bug of a provider costs that wake, and its text is not shown."""
        self.wake()
        self.fcm.end(ZeroDivisionError("secret"))
        self.assertEqual(self.failures(), [SendFault.BUG])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.wake()
        self.fcm.end(Sent())
        self.assertEqual(self.answers, [WakeOutcome.SEND_FAILED, WakeOutcome.SENT])

    def test_bug_of_an_answer(self) -> None:
        """A bug of one who is told the outcome costs nobody else the outcome."""

        def broken(_: WakeOutcome) -> None:
            raise ZeroDivisionError("secret")

        self.push.wake("home", "192.0.2.1", WakeRequest("fcm", "t"), broken)
        self.wake()
        self.fcm.end(Sent())
        self.assertEqual(self.answers, [WakeOutcome.SENT])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_nothing_remains(self) -> None:
        """Once a wake has its outcome, nothing refers to its token."""
        token = "".join(["to", "ken", "-1"])
        self.wake(token)
        self.fcm.end(DOWN)
        self.clock.advance(1)
        self.fcm.end(Sent())
        self.seen.clear()
        gc.collect()
        holders = [each for each in gc.get_referrers(token) if each is not vars()]
        self.assertEqual([each for each in holders if not _is_frame(each)], [])


def _is_frame(each: Any) -> bool:
    return type(each).__name__ == "frame"


class AbsorbTests(PushTestCase):
    def test_absorbed(self) -> None:
        """A wake for a token that is under way has the outcome of that send, and no line."""
        self.wake()
        self.wake()
        self.wake(server_id="office")
        self.assertEqual(len(self.fcm.pending), 1)
        self.fcm.end(Sent())
        self.assertEqual(self.answers, [WakeOutcome.SENT] * 3)
        self.assertEqual(len(self.seen.events), 1)

    def test_before_the_send_begins(self) -> None:
        """So has one in the same batch."""
        for _ in range(2):
            self.push.wake("home", "192.0.2.1", WakeRequest("fcm", "t"), None)
        self.clock.advance(0)
        self.assertEqual(len(self.fcm.pending), 1)

    def test_afterwards(self) -> None:
        """A wake after the outcome is sent anew."""
        self.wake()
        self.fcm.end(Sent())
        self.wake()
        self.fcm.end(Sent())
        self.assertEqual(len(self.seen.of(Event.PUSH_WAKE_SENT)), 2)

    def test_other_tokens(self) -> None:
        """Another token is another wake."""
        self.wake("t")
        self.wake("u")
        self.assertEqual(len(self.fcm.pending), 2)

    def test_when_all_are_under_way(self) -> None:
        """An absorbed wake takes no place of its own."""
        for number in range(service.MAX_SENDS):
            self.wake(f"t{number}", server_id=f"s{number}")
        self.wake("t0", server_id="office")
        self.assertEqual(self.refusals(), [])

    def test_answers_are_bounded(self) -> None:
        """A send has a bounded number of answers to give; wakes without one are always absorbed."""
        for number in range(service.MAX_ANSWERS + 1):
            self.wake(server_id=f"s{number}")
        self.assertEqual(self.refusals(), [WakeRefusal.BUSY])
        self.wake(server_id="quiet", answer=False)
        self.assertEqual(len(self.refusals()), 1)


class RetryTests(PushTestCase):
    def test_retries(self) -> None:
        """There are at most two more tries, and one line in the end."""
        self.wake()
        for pause in (1.0, 4.0):
            self.fcm.end(DOWN)
            self.clock.advance(pause - 0.1)
            self.assertEqual(self.fcm.pending, [])
            self.clock.advance(0.1)
            self.assertEqual(len(self.fcm.pending), 1)
        self.fcm.end(DOWN)
        self.assertEqual(self.failures(), [SendFault.UNAVAILABLE])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_success_in_the_end(self) -> None:
        """Only the outcome of the last try counts."""
        self.wake()
        self.fcm.end(DOWN)
        self.clock.advance(1)
        self.fcm.end(Sent())
        self.assertEqual([event for event, _ in self.seen.events], [Event.PUSH_WAKE_SENT])

    def test_retry_after(self) -> None:
        """The provider says when; what is left of the wake's life goes with each try."""
        self.wake()
        self.fcm.end(Failed(SendFault.RATE_LIMITED, retryable=True, retry_after=60.0))
        self.clock.advance(59)
        self.assertEqual(self.fcm.pending, [])
        self.clock.advance(1)
        self.fcm.end(Sent())
        self.assertEqual(self.fcm.ttls, [service.TTL, service.TTL - 60])

    def test_never_past_the_life(self) -> None:
        """A try that would come after the wake's life is not waited for."""
        self.wake()
        self.fcm.end(Failed(SendFault.RATE_LIMITED, retryable=True, retry_after=service.TTL))
        self.assertEqual(self.failures(), [SendFault.RATE_LIMITED])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    @cases({"ahead": (3600, 0), "back": (-3600, service.TTL)})
    def test_clock_is_set(self, seconds: float, ttl: float) -> None:
        """Whatever the clock does between two tries, a try's TTL is from 0 to the wake's life."""
        self.clock.advance(10_000)
        self.wake()
        self.fcm.end(DOWN)
        self.clock.rightNow += seconds
        [waiting] = self.clock.getDelayedCalls()
        waiting.reset(0)
        self.clock.advance(0)
        self.assertEqual(self.fcm.ttls, [service.TTL, ttl])
        self.fcm.end(Sent())

    def test_not_retryable(self) -> None:
        """Any other failure is the last word."""
        self.wake()
        self.fcm.end(Failed(SendFault.UNREGISTERED))
        self.assertEqual(self.answers, [WakeOutcome.UNREGISTERED])
        self.assertEqual(self.clock.getDelayedCalls(), [])


class BreakerTests(PushTestCase):
    def down(self, times: int, fault: SendFault = SendFault.TIMEOUT) -> None:
        """Have sends fail."""
        for number in range(times):
            self.wake(server_id=f"down-{fault.name}-{number}")
            self.fcm.end(Failed(fault))

    def test_opens(self) -> None:
        """A provider that fails repeatedly is left alone, and wakes fail at once."""
        self.down(5)
        self.wake()
        self.assertEqual(self.fcm.pending, [])
        self.assertEqual(self.failures()[-1], SendFault.BREAKER)
        self.assertIs(self.push.breakers["fcm"].state, BreakerState.OPEN)

    def test_closes(self) -> None:
        """After a pause one wake is tried, and its success lets the others through."""
        self.down(5)
        self.clock.advance(30)
        self.wake()
        self.wake("other")
        self.assertEqual(self.failures()[-1], SendFault.BREAKER)
        self.fcm.end(Sent())
        self.wake("other")
        self.fcm.end(Sent())
        self.assertIs(self.push.breakers["fcm"].state, BreakerState.CLOSED)

    @cases({fault.name: (fault,) for fault in SendFault if not fault.blames_provider})
    def test_tokens_cannot_open_it(self, fault: SendFault) -> None:
        """What a binary's own tokens cause does not switch push off for others."""
        self.down(20, fault)
        self.assertIs(self.push.breakers["fcm"].state, BreakerState.CLOSED)

    @cases({fault.name: (fault,) for fault in SendFault})
    def test_named_servers(self, fault: SendFault) -> None:
        """Servers that binaries name cannot switch their platform off for others."""
        for number in range(20):
            self.wake(f"t{number}", f"s{number}", "named")
            self.named.end(Failed(fault))
        self.assertEqual(self.failures(), [fault] * 20)
        self.assertIs(self.push.breakers["named"].state, BreakerState.CLOSED)

    def test_tries_count(self) -> None:
        """Each try counts; a wake whose next try is not allowed has the outcome of its last."""
        self.down(4)
        self.wake()
        self.fcm.end(DOWN)
        self.clock.advance(1)
        self.assertEqual(self.fcm.pending, [])
        self.assertEqual(self.failures()[-1], SendFault.UNAVAILABLE)


class StopTests(PushTestCase):
    def test_cancelled(self) -> None:
        """At a stop, sends and waits between tries are cancelled; each has its line and answer."""
        self.wake("trying")
        self.wake("waiting")
        self.fcm.pending.reverse()
        self.fcm.end(DOWN)
        self.push.wake("home", "192.0.2.1", WakeRequest("fcm", "new"), None)
        self.successResultOf(Deferred.fromCoroutine(self.push.stop()))
        self.assertEqual(self.failures(), [SendFault.CANCELLED] * 3)
        self.assertEqual(self.fcm.cancelled, ["trying"])
        self.assertEqual(self.answers, [WakeOutcome.SEND_FAILED] * 2)
        self.assertTrue(self.fcm.closed)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_awaited(self) -> None:
        """The stop ends when the last send has ended."""
        held: Deferred[Outcome] = Deferred(lambda _: None)
        held.addErrback(lambda failure: failure)
        gate: Deferred[None] = Deferred()

        async def send(token: str, ttl: float) -> Outcome:
            try:
                return await held
            finally:
                await gate

        self.fcm.send = send  # type: ignore[method-assign]
        self.wake()
        stopping = Deferred.fromCoroutine(self.push.stop())
        self.assertNoResult(stopping)
        gate.callback(None)
        self.successResultOf(stopping)
        self.assertEqual(self.failures(), [SendFault.CANCELLED])

    def test_refused_then(self) -> None:
        """While the relay drains, wakes are refused."""
        Deferred.fromCoroutine(self.push.stop())
        self.wake()
        self.assertEqual(self.refusals(), [WakeRefusal.DRAINING])

    def test_no_retry_then(self) -> None:
        """A try that ends in spite of the stop is not repeated."""

        async def send(token: str, ttl: float) -> Outcome:
            try:
                await Deferred()
            except BaseException:
                return DOWN
            return Sent()

        self.fcm.send = send  # type: ignore[method-assign]
        self.wake()
        self.successResultOf(Deferred.fromCoroutine(self.push.stop()))
        self.assertEqual(self.failures(), [SendFault.UNAVAILABLE])


class MetricTests(PushTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.counters = Counters()
        counter = EventCounter(self.counters)
        self.push = PushService(self.clock, counter, {"fcm": self.fcm})

    def counts(self) -> dict[str, int]:
        """Return the outcomes counted so far."""
        return {cell[0]: count for cell, count in self.counters.push_wakes.counts.items()}

    def test_at_zero_from_the_start(self) -> None:
        """Each outcome has a cell."""
        names = ("sent", "unregistered", "send_failed", "token_fetch_failed", "dropped")
        self.assertEqual(self.counts(), dict.fromkeys(names, 0))

    def test_outcomes(self) -> None:
        """Each wake counts once, by its outcome; of refusals only those for too many do."""
        for number in range(5):
            self.wake(f"t{number}")
        for outcome in (
            Sent(),
            Failed(SendFault.UNREGISTERED),
            Failed(SendFault.TOKEN_FETCH),
            Failed(SendFault.INVALID_TOKEN),
            Failed(SendFault.TIMEOUT),
        ):
            self.fcm.end(outcome)
        self.wake("")
        self.wake(platform="apns")
        for number in range(3):
            self.wake(f"t{number}")
        expected = {"sent": 1, "unregistered": 1, "token_fetch_failed": 1, "send_failed": 2}
        self.assertEqual(self.counts(), {**expected, "dropped": 2})
        reasons = {cell[0]: count for cell, count in self.counters.push_refusals.counts.items()}
        self.assertEqual(reasons["rate"], 2)
        self.assertEqual((reasons["token"], reasons["platform"], reasons["off"]), (1, 1, 0))
