"""The CA as coroutines: what is in use after an order, and what is left of one that fails."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.trial.unittest import SynchronousTestCase

from pyrycode_relay.acme.authority import Authority
from pyrycode_relay.acme.cache import CertCache, Issued
from pyrycode_relay.acme.client import AcmeError, Advice, Order
from tests import ca

NAMES = frozenset({"a.example"})
PATH = b"/.well-known/acme-challenge/token"


class Script:
    """A conversation that succeeds, or fails at ``fails_at``."""

    def __init__(self, case: AuthorityTests) -> None:
        self.case = case
        self.fails_at = ""
        self.served: dict[bytes, bytes] = {}
        self.stopped = False

    def _step(self, name: str) -> None:
        if self.fails_at == name:
            raise AcmeError(f"no {name}")

    def order(self, names: frozenset[str], key: bytes) -> Order:
        self._step("order")
        return Order(names, None, key, {PATH: b"content"}, ())  # type: ignore[arg-type]

    def complete(self, order: Order) -> bytes:
        self.served = dict(self.case.challenges)
        self._step("complete")
        key = load_pem_private_key(order.key, None)
        return self.case.issuer.issue(*order.names, key=key).pem

    def advice(self, certificate: Issued) -> Advice:
        self._step("advice")
        return Advice(certificate.lifetime.end, 1.0)

    def stop(self) -> None:
        self.stopped = True


class AuthorityTests(SynchronousTestCase):
    def setUp(self) -> None:
        root = Path(tempfile.mkdtemp(prefix="certs-"))
        self.addCleanup(shutil.rmtree, root)
        self.cache = CertCache(root, "https://ca.example/directory")
        self.cache.prepare()
        self.issuer = ca.Authority()
        self.challenges: dict[bytes, bytes] = {b"/another": b""}
        self.script = Script(self)
        self.keys: list[bytes] = []
        self.held: list[Callable[[], object]] | None = None
        self.authority = Authority(self.converse, self.cache, self.challenges, self.in_thread)

    def converse(self, key: bytes) -> Any:
        """Begin a conversation."""
        self.keys.append(key)
        return self.script

    def in_thread(self, work: Callable[[], Any]) -> Deferred[Any]:
        """Run at once, or when it is let go."""
        if self.held is None:
            return maybeDeferred(work)
        done: Deferred[Any] = Deferred()
        self.held.append(lambda: maybeDeferred(work).chainDeferred(done))
        return done

    def begin(self, call: Coroutine[Deferred[Any], Any, Any]) -> Deferred[Any]:
        """Run a coroutine."""
        return Deferred.fromCoroutine(call)

    def files(self) -> set[str]:
        """Return the names in the CA's folder."""
        return {path.name for path in self.cache.fullchain.parents[1].iterdir()}

    def test_obtain(self) -> None:
        """A new certificate is in use; its challenges were served while the CA validated."""
        certificate = self.successResultOf(self.begin(self.authority.obtain(NAMES)))
        self.assertEqual(certificate.names, NAMES)
        self.assertEqual(self.authority.current(), certificate)
        self.assertEqual(self.script.served, {PATH: b"content", b"/another": b""})
        self.assertEqual(self.challenges, {b"/another": b""})
        self.assertEqual(self.keys, [self.cache.account_key()])

    def test_nothing_yet(self) -> None:
        """Before that there is none."""
        self.assertIsNone(self.authority.current())

    def test_failure(self) -> None:
        """An order that fails leaves nothing behind: no challenge, no file but the account's."""
        for step in ("order", "complete"):
            self.script.fails_at = step
            failure = self.failureResultOf(self.begin(self.authority.obtain(NAMES)), AcmeError)
            self.assertEqual(str(failure.value), f"no {step}")
            self.assertEqual(self.challenges, {b"/another": b""})
            self.assertEqual(self.files(), {"account.pem"})

    def test_failure_afterwards(self) -> None:
        """It leaves the certificate in use as well."""
        before = self.successResultOf(self.begin(self.authority.obtain(NAMES)))
        self.script.fails_at = "complete"
        self.failureResultOf(self.begin(self.authority.obtain(NAMES)), AcmeError)
        self.assertEqual(self.authority.current(), before)

    def test_advice(self) -> None:
        """Advice is the CA's."""
        certificate = self.successResultOf(self.begin(self.authority.obtain(NAMES)))
        advice = self.successResultOf(self.begin(self.authority.advice(certificate)))
        self.assertEqual(advice, Advice(certificate.lifetime.end, 1.0))
        self.script.fails_at = "advice"
        self.failureResultOf(self.begin(self.authority.advice(certificate)), AcmeError)

    def test_stop(self) -> None:
        """A stop ends the conversation, and one that has not begun is not begun."""
        for steps in range(5):
            self.script, self.keys, self.held = Script(self), [], []
            self.authority = Authority(self.converse, self.cache, self.challenges, self.in_thread)
            done = self.begin(self.authority.obtain(NAMES))
            for _ in range(steps):
                self.held.pop(0)()
            self.authority.stop()
            begun, stopped = steps >= 2, steps in {2, 3}
            while self.held:
                self.held.pop(0)()
            self.assertEqual((len(self.keys), self.script.stopped), (begun, stopped), steps)
            if not begun:
                self.failureResultOf(done, AcmeError)
            self.assertEqual(self.challenges, {b"/another": b""}, steps)

    def test_stop_afterwards(self) -> None:
        """A conversation that is over is not stopped."""
        self.successResultOf(self.begin(self.authority.obtain(NAMES)))
        self.authority.stop()
        self.assertFalse(self.script.stopped)
