"""Push wakes: the checks, the limits, the tries, and the report on each wake.

Source: "Push wake" in ``docs/protocol.md``.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Final, cast

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from pyrycode_relay.endpoints.waker import Answer
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.protocol.push_wake import MAX_TOKEN, WakeOutcome, WakeRefusal, WakeRequest
from pyrycode_relay.push.breaker import Breaker
from pyrycode_relay.push.provider import Failed, Outcome, Provider, SendFault, Sent
from pyrycode_relay.token_buckets import TokenBuckets

_bugs = Logger()

TTL: Final = 300.0
"""Seconds until a wake expires. A device that is offline for a few minutes still gets it. Later,
the user has looked at the app, or a newer wake has the same effect."""

MAX_SENDS: Final = 32
"""Wakes under way at a time, those that wait for another try included."""

MAX_NAMED_SENDS: Final = MAX_SENDS // 2
"""Wakes under way at a time of a platform whose tokens name their server."""

MAX_ANSWERS: Final = 16
"""Binaries' requests that wait for the outcome of one send."""

BURST: Final = 6
RATE: Final = 0.1
"""Wakes of one server-id: 6 at once, then one in 10 seconds."""

_MAX_SERVER_IDS: Final = 16_384
"""Maximum server-ids whose rate is remembered; some 500 bytes each."""

_PAUSES: Final = (1.0, 4.0)
"""Seconds before the second and the third try, if the provider does not say how long to wait."""

_THRESHOLD: Final = 5
_REST: Final = 30.0
"""Failures in a row after which a provider is paused, and the pause in seconds."""


class _Wake:
    """A wake under way. ``answers`` wait for its outcome.

    ``pause`` is the wait for another try; None while there is none. It fires with whether the wake
    still has its place.
    """

    __slots__ = ("answers", "key", "pause", "run", "server_id", "started")

    def __init__(self, key: tuple[str, str], server_id: str, started: float) -> None:
        self.key = key
        self.server_id = server_id
        self.started = started
        self.answers: list[Answer] = []
        self.pause: Deferred[bool] | None = None
        self.run: Deferred[None]


class PushService:
    """The `Waker` of a relay with push: sends wakes through ``providers``, by platform.

    While a wake is under way, another for the same platform and token is absorbed: both have the
    outcome of the one send. A send goes on when its binary leaves.
    """

    faults: ClassVar = tuple(fault.label for fault in SendFault)
    """The labels of all classes of failures."""

    def __init__(
        self, clock: IReactorTime, observer: Observer, providers: Mapping[str, Provider]
    ) -> None:
        self.breakers: Mapping[str, Breaker] = {
            platform: Breaker(
                clock.seconds,
                threshold=_THRESHOLD if provider.is_one_server else math.inf,
                pause=_REST,
            )
            for platform, provider in providers.items()
        }
        self._clock = clock
        self._observer = observer
        self._providers = providers
        self._rates = TokenBuckets(RATE, BURST, clock.seconds, _MAX_SERVER_IDS)
        self._under_way: dict[tuple[str, str], _Wake] = {}
        self._draining = False

    @property
    def under_way(self) -> int:
        """The number of wakes that have no outcome yet."""
        return len(self._under_way)

    def breaker_states(self) -> Mapping[str, str]:
        """Return the state of each platform's breaker, as a word."""
        return {platform: each.state.value for platform, each in self.breakers.items()}

    def wake(
        self, server_id: str, remote: str, request: WakeRequest | None, answer: Answer | None
    ) -> None:
        """Send a wake, or refuse it.

        This runs within a batch of frames, so it only checks; the send begins after the batch.
        """
        refusal = self._refusal(server_id, request, asks=answer is not None)
        if refusal is not None or request is None:
            self._observer.saw(
                Event.PUSH_WAKE_DROPPED, server_id=server_id, remote=remote, reason=refusal
            )
            if answer is not None:
                answer(WakeOutcome.DROPPED)
            return
        key = (request.platform, request.token)
        wake = self._under_way.get(key)
        if wake is None:
            wake = self._under_way[key] = _Wake(key, server_id, self._clock.seconds())
            start: Deferred[None] = deferLater(cast(Any, self._clock), 0)
            wake.run = Deferred.fromCoroutine(self._run(wake, start))
        if answer is not None:
            wake.answers.append(answer)

    def _refusal(
        self, server_id: str, request: WakeRequest | None, *, asks: bool
    ) -> WakeRefusal | None:
        """Return why a wake is refused; the checks have the contract's order.

        ``asks`` is true if the binary waits for the outcome.
        """
        if request is None:
            return WakeRefusal.MALFORMED
        if request.platform not in self._providers:
            return WakeRefusal.PLATFORM
        token = request.token
        if not token or len(token) > MAX_TOKEN or len(token.encode()) > MAX_TOKEN:
            return WakeRefusal.TOKEN
        if self._draining:
            return WakeRefusal.DRAINING
        if not self._rates.take(server_id):
            return WakeRefusal.RATE
        wake = self._under_way.get((request.platform, token))
        if wake is None:
            full = not self._has_place(request.platform)
        else:
            full = asks and len(wake.answers) >= MAX_ANSWERS
        return WakeRefusal.BUSY if full else None

    def _has_place(self, platform: str) -> bool:
        """Whether another wake may begin. If not, one that waits for another try gives way.

        Otherwise a few binaries whose sends are put off could hold all places for minutes.
        """
        if self._has_its_part(platform):
            rivals = [each for each in self._under_way.values() if each.key[0] == platform]
        elif self.under_way >= MAX_SENDS:
            rivals = [*self._under_way.values()]
        else:
            return True
        numbers = Counter(each.server_id for each in rivals)
        waiting = [each for each in rivals if each.pause is not None]
        if not waiting:
            return False
        # The oldest one of the server-id with most sends, so no binary can crowd out others.
        first = max(waiting, key=lambda each: numbers[each.server_id])
        cast(Deferred[bool], first.pause).callback(False)
        return True

    def _has_its_part(self, platform: str) -> bool:
        """Whether a platform has its part of the sends: servers that strangers name may be slow."""
        if self._providers[platform].is_one_server:
            return False
        return sum(key[0] == platform for key in self._under_way) >= MAX_NAMED_SENDS

    async def _run(self, wake: _Wake, start: Deferred[None]) -> None:
        outcome: Outcome
        try:
            await start
            outcome = await self._tries(wake)
        except CancelledError:
            outcome = Failed(SendFault.CANCELLED)
        except Exception:
            _bugs.failure("a bug costs one push wake")
            outcome = Failed(SendFault.BUG)
        del self._under_way[wake.key]
        self._report(wake, outcome)
        word = WakeOutcome.SENT if isinstance(outcome, Sent) else outcome.outcome
        for answer in wake.answers:
            try:
                answer(word)
            except Exception:
                _bugs.failure("a bug costs one binary the outcome of a wake")

    async def _tries(self, wake: _Wake) -> Outcome:
        """Try until there is a final outcome, or the wake expires."""
        platform, token = wake.key
        provider, breaker = self._providers[platform], self.breakers[platform]
        expires = wake.started + TTL
        outcome: Outcome = Failed(SendFault.BREAKER)
        for pause in (*_PAUSES, None):
            if not breaker.allows():
                return outcome
            # The bounds matter if the clock was set.
            ttl = min(TTL, max(0.0, expires - self._clock.seconds()))
            outcome = await self._try(provider, breaker, token, ttl)
            if isinstance(outcome, Sent) or not outcome.retryable or pause is None:
                return outcome
            wait = pause if outcome.retry_after is None else outcome.retry_after
            if self._draining or self._clock.seconds() + wait >= expires:
                return outcome
            if not await self._pause(wake, wait):
                return outcome
        return outcome

    async def _pause(self, wake: _Wake, seconds: float) -> bool:
        """Wait for another try; return whether the wake still has its place."""
        wake.pause = Deferred()
        late = self._clock.callLater(seconds, wake.pause.callback, True)
        try:
            return await wake.pause
        finally:
            wake.pause = None
            if late.active():
                late.cancel()

    async def _try(self, provider: Provider, breaker: Breaker, token: str, ttl: float) -> Outcome:
        try:
            outcome = await provider.send(token, ttl)
        except BaseException:
            breaker.undecided()
            raise
        if isinstance(outcome, Failed) and outcome.fault.blames_provider:
            breaker.failed()
        else:
            breaker.succeeded()
        return outcome

    def _report(self, wake: _Wake, outcome: Outcome) -> None:
        fingerprint = hashlib.sha256(wake.key[1].encode()).hexdigest()[:8]
        duration = round(self._clock.seconds() - wake.started, 3)
        if isinstance(outcome, Failed):
            self._observer.saw(
                Event.PUSH_WAKE_FAILED,
                server_id=wake.server_id,
                token_fp=fingerprint,
                duration=duration,
                err=outcome,
            )
        elif outcome.message_id:
            self._observer.saw(
                Event.PUSH_WAKE_SENT,
                server_id=wake.server_id,
                token_fp=fingerprint,
                duration=duration,
                message_id=outcome.message_id,
            )
        else:
            self._observer.saw(
                Event.PUSH_WAKE_SENT,
                server_id=wake.server_id,
                token_fp=fingerprint,
                duration=duration,
            )

    async def stop(self) -> None:
        """Refuse new wakes, cancel those under way, and wait until they have ended."""
        self._draining = True
        for wake in [*self._under_way.values()]:
            wake.run.cancel()
        for wake in [*self._under_way.values()]:
            await wake.run
        for provider in self._providers.values():
            try:
                await provider.close()
            except Exception:
                _bugs.failure("a bug while a push provider is closed")
