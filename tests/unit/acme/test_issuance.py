"""The issuance: when it orders, when it waits, and that a certificate stays whatever fails.

The CA here is a script; the real one is in tests/system/test_acme.py.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from pyrycode_relay.acme.authority import Authority
from pyrycode_relay.acme.cache import CertCache
from pyrycode_relay.acme.client import AcmeError, Advice, Order
from pyrycode_relay.acme.issuance import Issuance, Timing
from pyrycode_relay.acme.schedule import DAY, HOUR, REFUSED, UNREACHABLE
from pyrycode_relay.events import Event
from tests import ca

NAMES = frozenset({"a.example", "b.example"})
PATH = b"/.well-known/acme-challenge/token"


class Ca:
    """A CA that does what its next line says: an exception to raise, or a lifetime in days."""

    def __init__(self, case: IssuanceTestCase) -> None:
        self.case = case
        self.script: list[Exception | float] = []
        self.names: list[str] = []
        self.orders = 0
        self.asked = 0
        self.advised: float | None = None
        self.again = 0.0
        self.unreachable = False
        self.stopped = False
        self.served: dict[bytes, bytes] = {}

    def __call__(self, key: bytes) -> Any:
        self.case.assertEqual(key, self.case.cache.account_key())
        return self

    def stop(self) -> None:
        self.stopped = True

    def order(self, names: frozenset[str], key: bytes) -> Order:
        self.orders += 1
        self.names = sorted(names)
        return Order(names, None, key, {PATH: b"content"}, ())  # type: ignore[arg-type]

    def complete(self, order: Order) -> bytes:
        self.served = dict(self.case.challenges)
        line = self.script.pop(0) if self.script else 90
        if isinstance(line, Exception):
            raise line
        return self.case.chain(order.key, sorted(order.names), line)

    def advice(self, certificate: object) -> Advice:
        self.asked += 1
        if self.unreachable:
            raise AcmeError("the CA cannot be reached", first_wait=UNREACHABLE)
        return Advice(self.advised, self.again)


class IssuanceTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        root = Path(tempfile.mkdtemp(prefix="certs-"))
        self.addCleanup(shutil.rmtree, root)
        self.cache = CertCache(root, "https://ca.example/directory")
        self.cache.prepare()
        self.authority = ca.Authority()
        self.clock = Clock()
        self.started = time.time()
        self.ca = Ca(self)
        self.challenges: dict[bytes, bytes] = {}
        self.issued = 0
        self.events: list[tuple[Event, dict[str, object]]] = []
        self.held: list[Callable[[], object]] | None = None

    def chain(self, key: bytes, names: list[str], days: float, age: float = 0) -> bytes:
        """Return a certificate of a lifetime of ``days``, of which ``age`` have passed by now."""
        passed = timedelta(seconds=self.now() - time.time()) - timedelta(days=age)
        return self.authority.issue(
            *names,
            key=load_pem_private_key(key, None),
            since=passed,
            until=passed + timedelta(days=days),
        ).pem

    def cached(self, *names: str, days: float = 90, age: float = 0) -> None:
        """Have a certificate in the cache."""
        pair = self.cache.begin()
        pair.complete(self.chain(pair.key, [*names], days, age))

    def now(self) -> float:
        return self.started + self.clock.seconds()

    def saw(self, event: Event, **fields: object) -> None:
        self.events.append((event, fields))

    def seen(self, event: Event) -> list[dict[str, object]]:
        return [fields for each, fields in self.events if each is event]

    def in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        """Run at once, or when it is let go."""
        if self.held is None:
            return maybeDeferred(work)
        done: Deferred[Any] = Deferred()
        self.held.append(lambda: maybeDeferred(work).chainDeferred(done))
        return done

    def count(self) -> None:
        self.issued += 1

    def start(self) -> Issuance:
        issuance = Issuance(
            NAMES,
            Authority(self.ca, self.cache, self.challenges, self.in_thread),
            self.count,
            self,
            Timing(self.clock, self.now, Random(1)),
        )
        issuance.start()
        self.clock.advance(0)
        return issuance

    def pass_by(self, seconds: float, step: float = 0) -> None:
        """Let time pass, in steps of ``step`` seconds or, by default, of an hour or more."""
        step = step or max(HOUR, seconds / 200)
        end = self.clock.seconds() + seconds
        while self.clock.seconds() < end:
            self.clock.advance(min(step, end - self.clock.seconds()))


class OrderTests(IssuanceTestCase):
    def test_first(self) -> None:
        """Without a certificate one is ordered at once, for all names, and is in use then.

        The challenge is served while the CA validates, and not a moment longer.
        """
        self.start()
        self.assertEqual((self.ca.orders, self.issued), (1, 1))
        self.assertEqual(self.ca.names, sorted(NAMES))
        self.assertEqual(self.ca.served, {PATH: b"content"})
        self.assertEqual(self.challenges, {})
        self.assertIsNotNone(self.cache.current())
        self.assertEqual(
            [event for event, _ in self.events], [Event.ACME_ORDERING, Event.ACME_ISSUED]
        )
        self.assertEqual(
            self.seen(Event.ACME_ORDERING), [{"reason": "there is no certificate yet"}]
        )

    def test_warm(self) -> None:
        """With a certificate for the names nothing is ordered until it is due."""
        self.cached(*NAMES)
        self.start()
        self.pass_by(56 * DAY)
        self.assertEqual(self.ca.orders, 0)
        self.pass_by(5 * DAY)
        self.assertEqual((self.ca.orders, self.issued), (1, 1))
        self.assertEqual(
            self.seen(Event.ACME_ORDERING), [{"reason": "the certificate is due for renewal"}]
        )

    def test_years(self) -> None:
        """Certificates follow each other for years, each at two thirds of the last one's life."""
        self.start()
        self.pass_by(3 * 365 * DAY, DAY)
        self.assertIn(self.ca.orders, range(18, 21))
        self.assertEqual(self.seen(Event.ACME_FAILED), [])

    def test_other_names(self) -> None:
        """A certificate for more names, for fewer, or for others is replaced at once."""
        for names in (("a.example",), (*NAMES, "c.example"), ("c.example", "d.example")):
            before = self.ca.orders
            self.cached(*names)
            self.start().stop()
            self.assertEqual(self.ca.orders, before + 1, names)

    def test_added_names(self) -> None:
        """A CA that adds names is not asked again and again."""
        self.ca.names = []
        order = self.ca.order
        self.ca.order = lambda names, key: order(names | {"www.example"}, key)  # type: ignore[method-assign]
        self.start()
        self.pass_by(50 * DAY)
        self.assertEqual(self.ca.orders, 1)

    def test_expired(self) -> None:
        """A certificate that ended while the relay was down is replaced at once."""
        self.cached(*NAMES, age=100)
        self.start()
        self.assertEqual(self.issued, 1)


class FailureTests(IssuanceTestCase):
    def test_old_one_stays(self) -> None:
        """While renewals fail the old certificate is in use, and the next attempt is announced."""
        self.cached(*NAMES, age=80)
        old = self.cache.fullchain.read_bytes()
        self.ca.script = [AcmeError("the CA refused", problem="urn:x")] * 3
        self.start()
        self.pass_by(4 * 60, 1)
        self.assertEqual((self.ca.orders, self.issued), (2, 0))
        self.assertEqual(self.cache.fullchain.read_bytes(), old)
        self.assertEqual(self.challenges, {})
        failures = self.seen(Event.ACME_FAILED)
        self.assertEqual(failures[0]["reason"], "the CA refused")
        self.assertEqual(failures[0]["err"], "urn:x")
        self.assertTrue(REFUSED <= float(str(failures[0]["retry_in"])) <= 1.25 * REFUSED)
        self.pass_by(HOUR, 1)
        self.assertEqual(self.issued, 1)
        self.assertNotEqual(self.cache.fullchain.read_bytes(), old)

    def test_never_a_tight_loop(self) -> None:
        """A CA that always refuses is asked some thirty times a day."""
        self.ca.script = [AcmeError("no")] * 1000
        self.start()
        self.pass_by(DAY, 10)
        self.assertLess(self.ca.orders, 5 + 24)
        self.assertGreater(self.ca.orders, 20)

    def test_unreachable(self) -> None:
        """One that cannot be reached is tried again within seconds, at first."""
        self.ca.script = [AcmeError("cannot be reached", first_wait=UNREACHABLE)] * 3
        self.start()
        self.pass_by(45, 0.5)
        self.assertEqual((self.ca.orders, self.issued), (4, 1))

    def test_retry_after(self) -> None:
        """A CA that asks for two hours of patience is not asked in the next two."""
        self.ca.script = [AcmeError("limits", retry_after=2 * HOUR)]
        self.start()
        self.pass_by(2 * HOUR, 10)
        self.assertEqual(self.ca.orders, 1)
        self.pass_by(HOUR, 10)
        self.assertEqual((self.ca.orders, self.issued), (2, 1))

    def test_success_forgives(self) -> None:
        """After a success, failures count from one again."""
        self.ca.script = [*[AcmeError("no")] * 4, 90.0, AcmeError("no")]
        self.start()
        self.pass_by(HOUR, 10)
        self.assertEqual(self.issued, 1)
        self.pass_by(55 * DAY)
        self.assertEqual(self.issued, 1)
        self.pass_by(6 * DAY, 60)
        self.assertEqual(self.issued, 2)
        waits = [float(str(each["retry_in"])) for each in self.seen(Event.ACME_FAILED)]
        self.assertLess(waits[-1], 1.3 * REFUSED)

    def test_a_certificate_that_is_due_at_once(self) -> None:
        """A CA whose clock or whose certificates are wrong is not asked one after another."""
        self.chain = lambda key, names, days, age=0, make=self.chain: make(key, names, 1, 0.9)  # type: ignore[method-assign, misc]
        self.start()
        self.pass_by(DAY, 10)
        self.assertLess(self.ca.orders, 5 + 24)
        self.assertEqual(self.ca.orders, self.issued)

    def test_the_disk(self) -> None:
        """A cache that cannot be written costs no order; when it can be, there is one."""
        [home] = self.cache.fullchain.parents[2].glob("ca.example-*")
        moved = home.with_name("moved")
        home.rename(moved)
        self.start()
        self.assertEqual(self.ca.orders, 0)
        self.assertEqual(
            self.seen(Event.ACME_FAILED)[0]["reason"], "the certificate cache cannot be written"
        )
        moved.rename(home)
        self.pass_by(HOUR, 10)
        self.assertEqual(self.issued, 1)

    def test_a_bug(self) -> None:
        """A bug leaves a traceback and costs an hour, not the renewal for ever."""
        self.ca.script = [ZeroDivisionError()]
        self.start()
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.pass_by(HOUR + 10, 10)
        self.assertEqual(self.issued, 1)


class AdviceTests(IssuanceTestCase):
    def test_honoured(self) -> None:
        """A CA that wants an earlier renewal gets it."""
        self.cached(*NAMES, age=10)
        self.ca.advised = self.now() - 1
        self.start()
        self.assertEqual((self.ca.asked, self.issued), (1, 1))

    def test_later(self) -> None:
        """One that suggests a moment gets the renewal then, and not at two thirds."""
        self.cached(*NAMES, age=10)
        self.ca.advised = self.now() + 60 * DAY
        self.start()
        self.pass_by(59.9 * DAY)
        self.assertEqual(self.issued, 0)
        self.pass_by(0.2 * DAY)
        self.assertEqual(self.issued, 1)

    def test_too_late(self) -> None:
        """One that suggests the impossible does not make a certificate end."""
        self.cached(*NAMES, age=10)
        self.ca.advised = self.now() + 1000 * DAY
        self.start()
        self.pass_by(76 * DAY)
        self.assertEqual(self.issued, 1)

    def test_always_at_once(self) -> None:
        """One that always says "now" gets an order a day at most."""
        self.cached(*NAMES, age=10)
        self.ca.advised = 0.0
        self.start()
        self.pass_by(10 * DAY)
        self.assertIn(self.ca.orders, range(9, 12))

    def test_how_often(self) -> None:
        """It is asked every six hours, or as often as it wants if that is less often."""
        self.cached(*NAMES, age=10)
        issuance = self.start()
        self.pass_by(10 * DAY)
        self.assertIn(self.ca.asked, range(38, 42))
        issuance.stop()
        self.ca.asked, self.ca.again = 0, self.now() + 9 * DAY
        self.start()
        self.pass_by(8 * DAY)
        self.assertEqual(self.ca.asked, 1)

    def test_unreachable(self) -> None:
        """When it cannot be asked, two thirds it is, and that is no failure."""
        self.cached(*NAMES, age=10)
        self.ca.unreachable = True
        self.start()
        self.pass_by(45 * DAY)
        self.assertEqual(self.issued, 0)
        self.pass_by(6 * DAY)
        self.assertEqual(self.issued, 1)
        self.assertEqual(self.seen(Event.ACME_FAILED), [])
        self.assertIn("the CA cannot be reached", str(self.seen(Event.ACME_NO_ADVICE)))


class StopTests(IssuanceTestCase):
    def test_asleep(self) -> None:
        """Stopped between looks, nothing is left to happen."""
        issuance = self.start()
        issuance.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_at_every_step(self) -> None:
        """Stopped at any call in a thread, a conversation ends, and nothing happens after that."""
        for steps in range(6):
            self.events.clear()
            self.held, self.issued, self.ca = [], 0, Ca(self)
            issuance = self.start()
            for _ in range(steps):
                self.held.pop(0)()
            issuance.stop()
            self.assertEqual(self.ca.stopped, steps in {2, 3}, steps)
            while self.held:
                self.held.pop(0)()
            self.assertEqual(self.clock.getDelayedCalls(), [], steps)
            self.assertEqual((self.issued, self.challenges), (0, {}), steps)
            self.assertEqual([event for event, _ in self.events], [Event.ACME_ORDERING])
            shutil.rmtree(self.cache.fullchain.parent.parent)
            self.cache.prepare()
