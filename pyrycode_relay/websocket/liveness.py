"""Whether a peer is alive and keeps up: heartbeat, probe, write stall, message deadline.

Any byte from the peer is a sign of life. Acknowledged bytes are one only until the ping is among
them, because the ping may wait behind a long backlog. Source: "Flow control and liveness" in
``docs/protocol.md``.

Autobahn's timers are off. They round to whole seconds, run on the global reactor, and end
connections without a close frame.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.internet.interfaces import IDelayedCall

from pyrycode_relay.limits import Limits
from pyrycode_relay.protocol.close_codes import EndCause
from pyrycode_relay.registry.drain_time import Intake, Pace
from pyrycode_relay.websocket.acknowledgements import Acknowledgements, AwaitedPing
from pyrycode_relay.websocket.autobahn import AutobahnAdapter
from pyrycode_relay.websocket.factory import RelayFactory
from pyrycode_relay.websocket.stage import Stage
from pyrycode_relay.websocket.transports import Transport, descriptor_of, unsent_bytes

if TYPE_CHECKING:
    from twisted.python.failure import Failure


_HEARTBEAT_JITTER: Final = 0.1
"""Spread of the heartbeat interval, so that connections that came together do not ping together."""

_ROUNDING: Final = 0.001
"""Seconds by which a deadline may be early. Sums of floats are inexact, and a timer for the tiny
rest would fire in the same instant again."""

_STALL_CHECKS: Final = 4
"""Samples within the write-stall time of a peer that something waits for, at least."""

_SAMPLE_INTERVAL: Final = 2.5
"""Seconds between two of these samples, at most. What a peer has taken lately is what it has
taken since the last sample but one."""

_ANSWER_CHECKS: Final = 16
"""Samples within the time that a peer has for its answer to a ping."""


class Timer(enum.StrEnum):
    """The timers of a connection. A timer that is set says what the connection waits for."""

    HEARTBEAT = "heartbeat"
    """The next ping, if the peer stays silent."""
    PONG = "pong"
    """A sign of life after a ping."""
    PROBE = "probe"
    """A sign of life that a probe asks for."""
    STALL = "stall"
    """The next sample of a peer that something waits for."""
    MESSAGE = "message"
    """The end of a message that has begun."""
    ABORT = "abort"
    """The end of a connection that is closing."""


_OF_OUTPUT: Final = frozenset({Timer.STALL})
"""The timers whose calls do not depend on what the peer has sent."""


class WatchedProtocol(AutobahnAdapter):
    """Closes a peer that is silent, reads nothing of its backlog, or does not complete a message.

    A subclass calls `watch` when it begins to serve and `stop_watching` when it leaves service.
    It also sets the cause with which a stalled peer is closed.

    The slots stand with those of a frame's way (`AutobahnAdapter`), or last (`RelayProtocol`).
    """

    __slots__ = ()

    factory: RelayFactory[Any]
    transport: Transport  # type: ignore[assignment]
    writable: bool
    stalled_cause: ClassVar[EndCause]
    """Cause of the close if the peer reads nothing at all for the write-stall time."""
    _heartbeat_interval: float
    _timers: dict[Timer, IDelayedCall]

    def __init__(self, factory: RelayFactory[Any]) -> None:
        super().__init__(factory)
        self._timers = {}
        self._last_life = factory.seconds()
        self._ping_sent: float | None = None
        self._answered: Callable[[bool], None] | None = None
        self._acknowledgements: Acknowledgements | None = None
        """What the peer acknowledges; None while no timer needs it."""
        self._progress = 0.0
        """When a sample last showed that the peer had acknowledged something."""
        self._intake: Intake | None = None
        """What the peer has acknowledged lately; None while no backlog is watched."""
        self._reading = True

    # Hooks for the subclass

    def close(self, cause: EndCause, *, flush: bool = True) -> None:
        """Close the connection, after what is queued if ``flush`` is true."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write what was gathered."""
        raise NotImplementedError

    # Timers

    @property
    def _limits(self) -> Limits:
        return self.factory.limits

    def _later(self, timer: Timer, delay: float, call: Callable[[], None]) -> None:
        """Run ``call`` in ``delay`` seconds, in place of what was planned for ``timer``."""
        self._cancel(timer)
        self._timers[timer] = self.factory.clock.callLater(delay, self._fire, timer, call)

    def _fire(self, timer: Timer, call: Callable[[], None]) -> None:
        """Make a timer's call, unless what the peer has sent, and no one has read, changes that."""
        planned = self._timers[timer]
        if timer not in _OF_OUTPUT:
            self.factory.poller.read(descriptor_of(self.transport))
        if self._timers.get(timer) is planned:
            del self._timers[timer]
            call()

    def _cancel(self, timer: Timer) -> None:
        planned = self._timers.pop(timer, None)
        if planned is not None and planned.active():
            planned.cancel()

    def watch(self) -> None:
        """Begin the heartbeat."""
        self._rearm_heartbeat()

    def stop_watching(self) -> None:
        """End heartbeat and deadlines of a connection that leaves service; a pending probe fails.

        The stall timer is left running. It has no effect, because the close timeout has begun.
        """
        for timer in (Timer.HEARTBEAT, Timer.PONG, Timer.MESSAGE):
            self._cancel(timer)
        self._answer_probe(False)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Cancel every timer."""
        super().connectionLost(reason)
        for timer in [*self._timers]:
            self._cancel(timer)

    # Reading

    def dataReceived(self, data: bytes) -> None:
        """Take bytes from the socket: a sign of life."""
        poller = self.factory.poller
        self._last_life = poller.now if poller.busy else self.factory.seconds()
        if self._acknowledgements is not None:
            self._answer_waiters()
        if self.ignore_input:
            # TLS still reads, for the peer's close_notify.
            return
        try:
            incomplete = self.consume(data)
        except Exception:
            self.bug()
            return
        if incomplete and self.message_since is None:
            self._watch_message()

    def pause_reading(self) -> None:
        """Stop reading the socket. Nothing can be expected of the peer meanwhile."""
        if self._reading and self.stage is Stage.SERVING:
            self._reading = False
            self.message_since = None
            self.factory.tally.pauses.begin(self.factory.seconds())
            self.transport.pauseProducing()

    def resume_reading(self) -> None:
        """Read the socket again; the peer's deadlines start anew."""
        if not self._reading:
            self._reading = True
            self.factory.tally.pauses.end(self.factory.seconds())
            self._put_off_ping()
            self.transport.resumeProducing()
            self._watch_message()

    # The message deadline

    def _watch_message(self) -> None:
        """Start the deadline of a message that has begun; one timer serves many messages."""
        if not (self._reading and self.within_message and self.stage is Stage.SERVING):
            return
        if self.message_since is None:
            self.message_since = self.factory.clock.seconds()
        if Timer.MESSAGE not in self._timers:
            self._later(Timer.MESSAGE, self._limits.message_timeout, self._check_message)

    def _check_message(self) -> None:
        if self.message_since is None:
            return
        left = self.message_since + self._limits.message_timeout - self.factory.clock.seconds()
        if left <= _ROUNDING:
            self.close(EndCause.MESSAGE_TIMEOUT)
        else:
            self._later(Timer.MESSAGE, left, self._check_message)

    # Progress, and the write stall

    def _sample(self) -> int:
        """Sample what the peer has acknowledged; return its bytes since the first sample."""
        counted = self._acknowledgements
        if counted is None:
            counted = self._acknowledgements = Acknowledgements(self.transport)
        before = counted.total
        taken = counted.sample() - before
        if self._intake is not None:
            self._intake.add(taken)
        if taken > 0:
            self._progress = self.factory.clock.seconds()
        return counted.total

    def _stop_sampling(self) -> None:
        """Stop counting what is written, unless something is still waited for."""
        if not self._timers.keys() & {Timer.STALL, Timer.PONG, Timer.PROBE}:
            self._acknowledgements = None

    def _watch_stall(self) -> None:
        """Begin to sample a peer that did not take all that was written to it at once."""
        if Timer.STALL not in self._timers:
            self._sample()
            self._progress = self.factory.clock.seconds()
            self._intake = Intake(self._progress)
            self._rearm_stall()

    def _watch_stall_soon(self) -> None:
        """Begin to sample a peer after what is being written now.

        During a write, TLS keeps unencrypted data where no sample counts it, so the data would
        look acknowledged.
        """
        if Timer.STALL not in self._timers:
            self._later(Timer.STALL, 0, self._watch_stall)

    def _rearm_stall(self) -> None:
        """Plan the next sample; one timer serves everything that is written in the meantime."""
        interval = min(self._limits.write_stall / _STALL_CHECKS, _SAMPLE_INTERVAL)
        self._later(Timer.STALL, interval, self._check_stall)

    def _check_stall(self) -> None:
        """Close a peer that has read nothing of its backlog for the write-stall time."""
        self._sample()
        if not unsent_bytes(self.transport):
            self._intake = None
            self._stop_sampling()
            return
        now = self.factory.clock.seconds()
        if self._intake is not None:
            self._intake.next_period(now)
        idle = now - self._progress
        if idle < self._limits.write_stall - _ROUNDING:
            self._rearm_stall()
        else:
            self.close(self.stalled_cause, flush=False)

    # What the peer takes

    def pace(self) -> Pace:
        """Return what the peer has acknowledged lately. It is sampled now, without other effect."""
        if self._intake is None:
            return Pace()
        return self._intake.pace(self.factory.seconds(), self._acked_since_sample())

    def _restart_intake(self) -> None:
        """Forget what the peer acknowledged before: a queue begins."""
        if self._intake is not None:
            self._intake.restart(self.factory.seconds(), self._acked_since_sample())

    def _acked_since_sample(self) -> int:
        counted = self._acknowledgements
        return 0 if counted is None else counted.since_sample()

    # Heartbeat and probe

    def _answer_waiters(self) -> None:
        """Treat a sign of life as the answer to a pending ping and a pending probe."""
        if Timer.PONG in self._timers:
            self._rearm_heartbeat()
        if Timer.PROBE in self._timers:
            self._answer_probe(True)

    def _put_off_ping(self) -> None:
        """Count silence anew from now; a ping under way no longer needs an answer."""
        self._last_life = self.factory.seconds()
        if Timer.PONG in self._timers:
            self._rearm_heartbeat()

    def _rearm_heartbeat(self) -> None:
        self._cancel(Timer.PONG)
        self._stop_sampling()
        jitter = self.factory.random.uniform(1 - _HEARTBEAT_JITTER, 1 + _HEARTBEAT_JITTER)
        self._heartbeat_interval = self._limits.heartbeat_interval * jitter
        self._later(Timer.HEARTBEAT, self._heartbeat_interval, self._beat)

    def _beat(self) -> None:
        """Ping a peer that has been silent for the interval.

        A peer that is not being read gets no ping, because its pong could not be seen. Nor does
        a peer that does not read: the write stall covers it.
        """
        now = self.factory.seconds()
        silent = now - self._last_life
        if not self._reading or not self.writable:
            self._rearm_heartbeat()
        elif silent >= self._heartbeat_interval - _ROUNDING:
            self._ping_sent = now
            self._await_answer(Timer.PONG, self._limits.heartbeat_timeout, self._check_pong)
        else:
            self._later(Timer.HEARTBEAT, self._heartbeat_interval - silent, self._beat)

    def _await_answer(
        self, timer: Timer, timeout: float, check: Callable[[AwaitedPing], None]
    ) -> None:
        """Ping the peer, and ``check`` several times within ``timeout`` whether it is alive."""
        self.sendPing()
        self.flush()
        self._sample()
        assert self._acknowledgements is not None  # noqa: S101 - sampled just now
        ping = AwaitedPing(self._acknowledgements, self.factory.clock.seconds())
        self._later(timer, timeout / _ANSWER_CHECKS, partial(check, ping))

    def _check_pong(self, ping: AwaitedPing) -> None:
        """Close a peer that has not answered within the heartbeat timeout of getting the ping."""
        now = self.factory.clock.seconds()
        ping.is_waited_for(self._sample(), now, backlog=not self.writable)
        if not self._reading or not self.writable:
            ping.since = now
        timeout = self._limits.heartbeat_timeout
        left = ping.since + timeout - now
        if left <= _ROUNDING:
            self.close(EndCause.HEARTBEAT_TIMEOUT, flush=False)
        else:
            wait = min(left, timeout / _ANSWER_CHECKS)
            self._later(Timer.PONG, wait, partial(self._check_pong, ping))

    def onPong(self, payload: bytes) -> None:  # noqa: ARG002
        """Note how long the answer to a heartbeat took."""
        if self._ping_sent is not None:
            self.factory.tally.round_trips.observe(self.factory.seconds() - self._ping_sent)
            self._ping_sent = None

    def probe(self, answered: Callable[[bool], None]) -> None:
        """Ping the peer; call ``answered(True)`` at its first sign of life.

        Call ``answered(False)`` if there is none within the probe timeout of the peer's getting
        the ping, or if the connection ends before that.
        """
        self._answered = answered
        self._await_answer(Timer.PROBE, self._limits.probe_timeout, self._check_probe)

    def _check_probe(self, ping: AwaitedPing) -> None:
        """Decide a probe at its timeout; if the peer has got the ping meanwhile, after one more.

        A peer that still reads up to the ping is alive.
        """
        now = self.factory.clock.seconds()
        reads = ping.is_waited_for(self._sample(), now, backlog=not self.writable)
        timeout = self._limits.probe_timeout
        left = ping.since + timeout - now
        if reads and now >= ping.sent + timeout - _ROUNDING:
            self._answer_probe(True)
        elif left <= _ROUNDING:
            self._answer_probe(False)
        else:
            wait = min(left, timeout / _ANSWER_CHECKS)
            self._later(Timer.PROBE, wait, partial(self._check_probe, ping))

    def _answer_probe(self, alive: bool) -> None:
        self._cancel(Timer.PROBE)
        answered, self._answered = self._answered, None
        self._stop_sampling()
        if answered is not None:
            self._contained(answered, alive)
