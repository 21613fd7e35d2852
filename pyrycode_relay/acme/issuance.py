"""Obtains a certificate from an ACME CA and renews it, for as long as the relay runs.

The conversation itself is ``client.py``'s and blocks, so it has a thread; all that is remembered
here is touched in the reactor's thread alone. Whatever fails, the certificate in use stays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine, MutableMapping
from random import Random
from typing import Any, Final, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from pyrycode_relay.acme.cache import CertCache, Issued
from pyrycode_relay.acme.client import DEADLINE, AcmeError, Conversation
from pyrycode_relay.acme.schedule import (
    LONGEST_WAIT,
    LOOK_EVERY,
    UNREACHABLE,
    advice_due,
    due,
    retry_in,
    suggested,
)
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.startup_error import StartupError

_bugs = Logger()

CALL_DEADLINE: Final = DEADLINE + 30.0
"""Seconds for one call in a thread: a conversation ends itself, unless the system holds it up."""

_GIVEN_UP: Final = 4
"""Threads that may hang in the system past their deadline; with so many, no more are begun."""

_Result = TypeVar("_Result")


class Thread:
    """Runs blocking calls, each in a thread of its own that nobody waits for longer than told.

    Not Twisted's thread pool: its end waits for every call, so that a CA that says nothing could
    hold up the process's. Daemon threads are simply left behind.
    """

    def __init__(self, reactor: Any, deadline: float) -> None:
        self._reactor: IReactorFromThreads = reactor
        self._clock: IReactorTime = reactor
        self._deadline = deadline
        self._running = 0

    def run(self, work: Callable[[], _Result]) -> Deferred[_Result]:
        """Return what ``work`` returns; fails with `AcmeError` at the deadline."""
        done: Deferred[_Result] = Deferred()
        if self._running >= _GIVEN_UP:
            done.errback(AcmeError("the CA still holds up earlier attempts"))
            return done
        self._running += 1

        def settle(outcome: Any) -> None:
            self._running -= 1
            # For a call that is over its deadline, it is Deferred that ignores this.
            done.callback(outcome)

        def call() -> None:
            try:
                outcome: Any = work()
            except BaseException:
                outcome = Failure()
            self._reactor.callFromThread(settle, outcome)

        def late(_: object, __: float) -> _Result:
            raise AcmeError("the CA did not answer in time", first=UNREACHABLE)

        threading.Thread(target=call, name="acme", daemon=True).start()
        return done.addTimeout(self._deadline, cast(Any, self._clock), late)


class Issuance:
    """Sees to it that there is a certificate for ``names``.

    ``converse`` begins a conversation with the CA, given the account's key; ``challenges`` is
    what port 80 serves; ``issued`` is called when ``cache`` has a new pair;
    ``in_thread`` runs a blocking call; ``now`` is the time in POSIX seconds.
    """

    def __init__(
        self,
        converse: Callable[[bytes], Conversation],
        names: frozenset[str],
        cache: CertCache,
        challenges: MutableMapping[bytes, bytes],
        issued: Callable[[], None],
        observer: Observer,
        clock: IReactorTime,
        in_thread: Callable[[Callable[[], Any]], Deferred[Any]],
        now: Callable[[], float],
        random: Random,
    ) -> None:
        self._begin = converse
        self._names = names
        self._cache = cache
        self._challenges = challenges
        self._issued = issued
        self._observer = observer
        self._clock = clock
        self._in_thread = in_thread
        self._now = now
        self._random = random
        self._failures = 0
        self._certificate: Issued | None = None
        self._renamed = False
        self._due = 0.0
        self._ask_at = 0.0
        self._wake: IDelayedCall | None = None
        self._conversation: Conversation | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin: at once with an order when there is no certificate for these very names."""
        self._use(self._cache.current())
        # Of a new one it is enough that it has them: some CAs add names.
        self._renamed = self._certificate is not None and self._certificate.names != self._names
        self._sleep(0)

    def hurry(self) -> None:
        """Try again now, if the last attempt failed: an operator may have mended its cause."""
        if self._failures and self._wake is not None:
            self._wake.reset(0)

    def stop(self) -> None:
        """End. What a thread is at is not waited for."""
        self._stopped = True
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if self._conversation is not None:
            self._conversation.stop()

    def _use(self, certificate: Issued | None) -> None:
        self._certificate = certificate
        if certificate is None:
            self._due = 0.0
            return
        self._due = due(certificate.lifetime, self._random)
        self._ask_at = advice_due(certificate.lifetime)

    def _sleep(self, seconds: float) -> None:
        if not self._stopped:
            self._wake = self._clock.callLater(seconds, self._look)

    def _look(self) -> None:
        self._wake = None
        turn: Coroutine[Deferred[Any], Any, float] = self._turn()
        Deferred.fromCoroutine(turn).addCallback(self._sleep)

    async def _turn(self) -> float:
        """Do what is due; return the seconds until the next look."""
        try:
            reason = self._reason()
            if not reason and self._ask_at <= self._now():
                await self._ask()
                reason = self._reason()
            if reason:
                await self._renew(reason)
            self._failures = 0
        except AcmeError as error:
            return self._failed(error)
        except StartupError as error:
            return self._failed(AcmeError(str(error)))
        except OSError:
            return self._failed(AcmeError("the certificate cache cannot be written"))
        except Exception:
            _bugs.failure("a bug costs this attempt at a certificate")
            return LONGEST_WAIT
        finally:
            self._conversation = None
        return max(1.0, min(LOOK_EVERY, self._due - self._now()))

    def _failed(self, error: AcmeError) -> float:
        if self._stopped:
            return 0
        self._failures += 1
        wait = retry_in(self._failures, error.first, error.retry_after, self._random)
        self._observer.saw(
            Event.ACME_FAILED, reason=error.reason, err=error.problem, retry_in=round(wait)
        )
        return wait

    def _reason(self) -> str:
        """Return why a certificate is to be ordered; empty when it is not."""
        if self._certificate is None:
            return "there is no certificate yet"
        if self._renamed:
            return "the certificate is for other names"
        if self._due <= self._now():
            return "the certificate is due for renewal"
        return ""

    async def _ask(self) -> None:
        """Ask the CA when it wants the certificate renewed; if it does not say, nothing changes."""
        certificate = cast(Issued, self._certificate)
        conversation = await self._converse()
        try:
            moment, again = await self._in_thread(lambda: conversation.advice(certificate))
        except AcmeError as error:
            self._observer.saw(Event.ACME_NO_ADVICE, reason=error.reason, err=error.problem)
            moment, again = None, 0.0
        self._ask_at = max(again, self._now() + LOOK_EVERY)
        if moment is not None:
            self._due = suggested(certificate.lifetime, moment)

    async def _converse(self) -> Conversation:
        key = await self._in_thread(self._cache.account_key)
        self._conversation = self._begin(key)
        return self._conversation

    async def _renew(self, reason: str) -> None:
        self._observer.saw(Event.ACME_ORDERING, reason=reason)
        began = self._clock.seconds()
        # Before anything is ordered: a full disk shall not cost one certificate after another.
        pair = await self._in_thread(self._cache.begin)
        try:
            chain = await self._obtain(pair.key)
            await self._in_thread(lambda: pair.complete(chain))
        finally:
            await self._in_thread(pair.discard)
        self._use(Issued.of(chain, pair.key))
        self._renamed = False
        if self._stopped:
            return
        self._observer.saw(Event.ACME_ISSUED, duration=round(self._clock.seconds() - began, 1))
        self._issued()
        if self._due <= self._now():
            # Ordered again at once, the next would be no better.
            raise AcmeError("the new certificate is already due for renewal")

    async def _obtain(self, key: bytes) -> bytes:
        conversation = await self._converse()
        order = await self._in_thread(lambda: conversation.order(self._names, key))
        self._challenges.update(order.challenges)
        try:
            chain: bytes = await self._in_thread(lambda: conversation.complete(order))
        finally:
            for path in order.challenges:
                self._challenges.pop(path, None)
        return chain
