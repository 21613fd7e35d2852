"""The drain on a clock, with connections that go when they are asked in a certain way."""

from __future__ import annotations

from enum import Enum
from itertools import pairwise
from random import Random
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from pyrycode_relay.drain import PACE, Connections, Drain
from pyrycode_relay.protocol.close_codes import EndCause
from tests.unit.bench import Cases

TIMEOUT, CLOSE_TIMEOUT = 10.0, 2.0


class Asked(Enum):
    """What a connection is asked to do."""

    TO_PART = "send what is queued, and close"
    TO_CLOSE = "discard what is queued, and close"
    TO_ABORT = "be gone"


class Connection:
    """Stands in for a connection: notes what it is asked, and is gone once asked ``goes_on``.

    One that goes on None never goes.
    """

    def __init__(self, clock: Clock, home: set[Connection], goes_on: Asked | None) -> None:
        self.log: list[tuple[Asked, float]] = []
        self._clock = clock
        self._home = home
        self._goes_on = goes_on
        home.add(self)

    def _note(self, asked: Asked, cause: EndCause = EndCause.SHUTTING_DOWN) -> None:
        assert cause is EndCause.SHUTTING_DOWN
        self.log.append((asked, self._clock.seconds()))
        if asked is self._goes_on:
            self._home.discard(self)

    def close_when_drained(self, cause: EndCause) -> None:
        self._note(Asked.TO_PART, cause)

    def close(self, cause: EndCause, *, flush: bool = True) -> None:
        assert not flush
        self._note(Asked.TO_CLOSE, cause)

    def abort(self) -> None:
        self._note(Asked.TO_ABORT)

    forceAbortClient = abort

    def first(self, asked: Asked) -> float:
        """Return when this was asked of it first."""
        return next(when for each, when in self.log if each is asked)


class Buggy(Connection):
    """A connection with a bug in every method."""

    def _note(self, asked: Asked, cause: EndCause = EndCause.SHUTTING_DOWN) -> None:
        super()._note(asked, cause)
        raise ZeroDivisionError


class DrainTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()
        self.phones: set[Connection] = set()
        self.binaries: set[Connection] = set()
        self.requests: set[Connection] = set()

    def connection(
        self, home: set[Connection], goes_on: Asked | None = Asked.TO_PART
    ) -> Connection:
        """Open a connection."""
        return Connection(self.clock, home, goes_on)

    def drain(self, **timeouts: Any) -> Deferred[int]:
        """Begin to drain."""
        drain = Drain(
            self.clock,
            Random(1),
            Connections([self.phones, set()], [self.binaries], [self.requests]),
            **{"timeout": TIMEOUT, "close_timeout": CLOSE_TIMEOUT} | timeouts,
        )
        return Deferred.fromCoroutine(drain.run())

    def pass_time(self, seconds: float) -> None:
        """Let time pass."""
        self.clock.pump([1 / 64] * round(seconds * 64))

    def assert_over(self, drained: Deferred[int], aborted: int) -> None:
        """Check that a drain is over, and how many peers it aborted."""
        self.assertEqual(self.successResultOf(drained), aborted)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_nobody(self) -> None:
        """Without connections a drain is over at once."""
        self.assert_over(self.drain(), 0)

    def test_few(self) -> None:
        """With few connections it does not take the whole window."""
        phone, binary = self.connection(self.phones), self.connection(self.binaries)
        drained = self.drain()
        self.pass_time(2 * PACE + 0.1)
        self.assert_over(drained, 0)
        self.assertEqual([len(phone.log), len(binary.log)], [1, 1])

    def test_order(self) -> None:
        """The last phone is asked to go before the first binary."""
        phones = [self.connection(self.phones) for _ in range(30)]
        binaries = [self.connection(self.binaries) for _ in range(10)]
        drained = self.drain()
        self.pass_time(1)
        self.assert_over(drained, 0)
        last, first = (
            pick(each.first(Asked.TO_PART) for each in peers)
            for pick, peers in ((max, phones), (min, binaries))
        )
        self.assertLessEqual(last, first)

    def test_spread(self) -> None:
        """Many peers go one by one, over half the window at most."""
        peers = [self.connection(self.phones) for _ in range(300)]
        peers += [self.connection(self.binaries) for _ in range(300)]
        drained = self.drain(timeout=1.0)
        self.pass_time(0.6)
        self.assert_over(drained, 0)
        moments = sorted(each.first(Asked.TO_PART) for each in peers)
        self.assertLess(moments[0], 0.05)
        self.assertGreater(moments[-1], 0.45)
        self.assertLess(max(b - a for a, b in pairwise(moments)), 0.05)

    def test_pace(self) -> None:
        """A hundred peers do not take half the window."""
        peers = [self.connection(self.phones) for _ in range(100)]
        drained = self.drain()
        self.pass_time(100 * PACE + 0.1)
        self.assert_over(drained, 0)
        self.assertGreater(max(each.first(Asked.TO_PART) for each in peers), 80 * PACE)

    def test_backlog(self) -> None:
        """Queued frames may flow until the close timeout before the deadline, and are discarded
        then."""
        slow = self.connection(self.phones, Asked.TO_CLOSE)
        drained = self.drain()
        self.pass_time(TIMEOUT - CLOSE_TIMEOUT - 0.1)
        self.assertNoResult(drained)
        self.assertEqual([asked for asked, _ in slow.log], [Asked.TO_PART])
        self.pass_time(0.3)
        self.assert_over(drained, 0)

    def test_long_close_timeout(self) -> None:
        """A close timeout beyond the window leaves its first half for what is queued."""
        slow = self.connection(self.binaries, Asked.TO_CLOSE)
        drained = self.drain(close_timeout=60.0)
        self.pass_time(TIMEOUT / 2 + 0.1)
        self.assert_over(drained, 0)
        self.assertGreaterEqual(slow.first(Asked.TO_CLOSE), TIMEOUT / 2)

    def test_deadline(self) -> None:
        """Peers that do not go are aborted at the deadline, and counted."""
        self.connection(self.phones)
        stuck = [self.connection(home, Asked.TO_ABORT) for home in (self.phones, self.binaries)]
        drained = self.drain()
        self.pass_time(TIMEOUT - 0.1)
        self.assertNoResult(drained)
        self.pass_time(0.3)
        self.assert_over(drained, 2)
        for each in stuck:
            self.assertGreaterEqual(each.first(Asked.TO_ABORT), TIMEOUT)

    def test_no_end(self) -> None:
        """Even connections that cannot be aborted do not hold up the end."""
        for home in (self.phones, self.binaries, self.requests):
            self.connection(home, None)
        drained = self.drain()
        self.pass_time(TIMEOUT + 0.2)
        self.assert_over(drained, 2)

    def test_no_time(self) -> None:
        """A drain without a window aborts everybody at once."""
        for home in (self.phones, self.binaries, self.requests):
            self.connection(home, Asked.TO_ABORT)
        drained = self.drain(timeout=0.0)
        self.pass_time(0.1)
        self.assert_over(drained, 2)

    def test_requests(self) -> None:
        """Connections without an upgrade are dropped when all peers have gone, not before."""
        phone = self.connection(self.phones, Asked.TO_CLOSE)
        request = self.connection(self.requests, Asked.TO_ABORT)
        drained = self.drain()
        self.pass_time(TIMEOUT)
        self.assert_over(drained, 0)
        self.assertGreater(request.first(Asked.TO_ABORT), phone.first(Asked.TO_CLOSE))

    def test_requests_alone(self) -> None:
        """Without peers, nobody waits for a request."""
        self.connection(self.requests, Asked.TO_ABORT)
        drained = self.drain()
        self.pass_time(0.1)
        self.assert_over(drained, 0)

    def test_requests_at_the_deadline(self) -> None:
        """At the deadline they are dropped together with the peers."""
        self.connection(self.phones, Asked.TO_ABORT)
        self.connection(self.requests, Asked.TO_ABORT)
        drained = self.drain()
        self.pass_time(TIMEOUT + 0.2)
        self.assert_over(drained, 1)

    def test_gone_before(self) -> None:
        """A peer that has gone by itself is not waited for, and its close is cancelled."""
        for _ in range(100):
            self.connection(self.phones)
        drained = self.drain()
        self.pass_time(0.1)
        self.phones.clear()
        self.pass_time(0.1)
        self.assert_over(drained, 0)

    def test_bug(self) -> None:
        """A bug while one connection is closed is logged and does not stop the drain."""
        for home in (self.phones, self.binaries, self.requests):
            Buggy(self.clock, home, None)
        mute = self.connection(self.phones, Asked.TO_ABORT)
        drained = self.drain()
        self.pass_time(TIMEOUT + 0.2)
        self.assert_over(drained, 3)
        self.assertGreaterEqual(mute.first(Asked.TO_ABORT), TIMEOUT)
        self.assertGreater(len(self.flushLoggedErrors(ZeroDivisionError)), 3)
