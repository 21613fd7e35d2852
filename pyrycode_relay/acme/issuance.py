"""Decides when a certificate is ordered, renewed and retried, as long as the relay runs.

Whatever fails, the certificate in use stays.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from pyrycode_relay.acme.authority import Authority
from pyrycode_relay.acme.cache import Issued
from pyrycode_relay.acme.client import AcmeError
from pyrycode_relay.acme.schedule import (
    LONGEST_WAIT,
    LOOK_EVERY,
    advice_due,
    due,
    retry_in,
    suggested,
)
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.startup_error import StartupError

_bugs = Logger()


@dataclass(frozen=True, slots=True)
class Timing:
    """Where an issuance takes time and chance from."""

    clock: IReactorTime
    """Wakes it up."""
    now: Callable[[], float]
    """Returns the time in POSIX seconds."""
    random: Random
    """Spreads renewals and retries."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """When the certificate in use is renewed, in POSIX seconds."""

    certificate: Issued
    due: float
    """The moment of renewal."""
    ask_at: float
    """The moment from which the CA is asked for its advice on the renewal."""
    for_other_names: bool = False
    """Whether the certificate is for other names than the settings, and so due at once."""


class Issuance:
    """Ensures that there is a certificate for ``names``.

    ``issued`` is called when a new certificate is in use.
    """

    def __init__(
        self,
        names: frozenset[str],
        authority: Authority,
        issued: Callable[[], None],
        observer: Observer,
        timing: Timing,
    ) -> None:
        self._names = names
        self._authority = authority
        self._issued = issued
        self._observer = observer
        self._clock = timing.clock
        self._now = timing.now
        self._random = timing.random
        self._plan: _Plan | None = None
        """None while there is no certificate."""
        self._failures = 0
        """Failures in a row."""
        self._wake: IDelayedCall | None = None
        self._stopped = False

    def start(self) -> None:
        """Begin. If there is no certificate for exactly these names, order one at once."""
        certificate = self._authority.current()
        if certificate is not None:
            # A new certificate may have more names: some CAs add some.
            differs = certificate.names != self._names
            self._plan = replace(self._planned(certificate), for_other_names=differs)
        self._sleep(0)

    def retry_now(self) -> None:
        """Try again now if the last attempt failed: an operator may have fixed the cause."""
        if self._failures and self._wake is not None:
            self._wake.reset(0)

    def stop(self) -> None:
        """End, without waiting for calls in threads."""
        self._stopped = True
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        self._authority.stop()

    def _planned(self, certificate: Issued) -> _Plan:
        lifetime = certificate.lifetime
        return _Plan(certificate, due(lifetime, self._random), advice_due(lifetime))

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
            plan = await self._work()
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
        return max(1.0, min(LOOK_EVERY, plan.due - self._now()))

    async def _work(self) -> _Plan:
        """Order a certificate if that is due; return the plan for the one in use."""
        if self._plan is None:
            return await self._order("there is no certificate yet")
        if self._plan.for_other_names:
            return await self._order("the certificate is for other names")
        if self._plan.due > self._now() >= self._plan.ask_at:
            self._plan = await self._advised(self._plan)
        if self._plan.due <= self._now():
            return await self._order("the certificate is due for renewal")
        return self._plan

    async def _advised(self, plan: _Plan) -> _Plan:
        """Return the plan with the CA's advice, or as it is if the CA gives none."""
        moment, ask_again = None, 0.0
        try:
            advice = await self._authority.advice(plan.certificate)
            moment, ask_again = advice.renew_at, advice.ask_again_at
        except AcmeError as error:
            if self._stopped:
                raise
            self._observer.saw(Event.ACME_NO_ADVICE, reason=error.reason, err=error.problem)
        return replace(
            plan,
            due=plan.due if moment is None else suggested(plan.certificate.lifetime, moment),
            ask_at=max(ask_again, self._now() + LOOK_EVERY),
        )

    async def _order(self, reason: str) -> _Plan:
        self._observer.saw(Event.ACME_ORDERING, reason=reason)
        began = self._clock.seconds()
        certificate = await self._authority.obtain(self._names)
        self._plan = plan = self._planned(certificate)
        if self._stopped:
            return plan
        self._observer.saw(Event.ACME_ISSUED, duration=round(self._clock.seconds() - began, 1))
        self._issued()
        if plan.due <= self._now():
            # An order right away would bring one that is no better.
            raise AcmeError("the new certificate is already due for renewal")
        return plan

    def _failed(self, error: AcmeError) -> float:
        """Report a failure; return the seconds until the next attempt."""
        if self._stopped:
            return 0
        self._failures += 1
        wait = retry_in(self._failures, error.first_wait, error.retry_after, self._random)
        self._observer.saw(
            Event.ACME_FAILED, reason=error.reason, err=error.problem, retry_in=round(wait)
        )
        return wait
