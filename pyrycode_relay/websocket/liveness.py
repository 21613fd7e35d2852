"""Whether a peer is alive and keeps up: heartbeat, probe, write stall, message deadline.

Any byte from the peer is a sign of life. So is progress in acknowledging a backlog, because the
ping waits behind it. Source: "Flow control and liveness" in ``docs/protocol.md``.

Autobahn's timers are off. They round to whole seconds, run on the global reactor, and end
connections without a close frame.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.internet.interfaces import IDelayedCall

from pyrycode_relay.limits import Limits
from pyrycode_relay.protocol.close_codes import EndCause
from pyrycode_relay.registry.drain_time import Intake, Pace
from pyrycode_relay.websocket.autobahn import AutobahnAdapter
from pyrycode_relay.websocket.factory import RelayFactory
from pyrycode_relay.websocket.stage import Stage
from pyrycode_relay.websocket.transports import Transport, unacked_bytes, unsent_bytes

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
        self._unacked: int | None = None
        """Bytes that the peer had not acknowledged at the last sample, plus those written since.

        None while no timer needs this sign of life."""
        self._progress = 0.0
        """When a sample last showed that the peer had read some of its backlog."""
        self._intake: Intake | None = None
        """What the peer has acknowledged lately; None while no backlog is watched."""
        self._reading = True

    # Hooks for the subclass

    def close(self, cause: EndCause, *, flush: bool = True) -> None:
        """Close the connection, after what is queued if ``flush`` is true."""
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
        del self._timers[timer]
        call()

    def _cancel(self, timer: Timer) -> None:
        planned = self._timers.pop(timer, None)
        if planned is not None:
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
        if self._unacked is not None:
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

    def _sample_progress(self) -> bool:
        """Sample what the peer has acknowledged; return whether that proves it alive.

        Progress is proof only while some data is left: then the ping may still wait behind a long
        backlog. If nothing is left, the peer has got the ping too and must answer it.
        """
        unacked = unacked_bytes(self.transport)
        took_some = self._unacked is not None and unacked < self._unacked
        if self._intake is not None and self._unacked is not None:
            self._intake.add(self._unacked - unacked)
        if took_some:
            self._progress = self.factory.clock.seconds()
            if unacked:
                self._show_life()
        self._unacked = unacked
        return took_some and unacked > 0

    def _stop_sampling(self) -> None:
        """Stop counting what is written, unless something is still waited for."""
        if not self._timers.keys() & {Timer.STALL, Timer.PONG, Timer.PROBE}:
            self._unacked = None

    def _watch_stall(self) -> None:
        """Begin to sample a peer that did not take all that was written to it at once."""
        if Timer.STALL not in self._timers:
            self._sample_progress()
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
        self._sample_progress()
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
        return 0 if self._unacked is None else self._unacked - unacked_bytes(self.transport)

    # Heartbeat and probe

    def _show_life(self) -> None:
        """Note a sign of life: the peer reads its backlog."""
        self._last_life = self.factory.seconds()
        self._answer_waiters()

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
        silent = self.factory.clock.seconds() - self._last_life
        if not self._reading or not self.writable:
            self._rearm_heartbeat()
        elif silent >= self._heartbeat_interval - _ROUNDING:
            self._sample_progress()
            self._ping_sent = self.factory.seconds()
            self._later(Timer.PONG, self._limits.heartbeat_timeout, self._check_pong)
            self.sendPing()
        else:
            self._later(Timer.HEARTBEAT, self._heartbeat_interval - silent, self._beat)

    def _check_pong(self) -> None:
        if self._sample_progress() or not self._reading or not self.writable:
            self._rearm_heartbeat()
        else:
            self.close(EndCause.HEARTBEAT_TIMEOUT, flush=False)

    def onPong(self, payload: bytes) -> None:  # noqa: ARG002
        """Note how long the answer to a heartbeat took."""
        if self._ping_sent is not None:
            self.factory.tally.round_trips.observe(self.factory.seconds() - self._ping_sent)
            self._ping_sent = None

    def probe(self, answered: Callable[[bool], None]) -> None:
        """Ping the peer; call ``answered(True)`` at its first sign of life.

        Call ``answered(False)`` if there is none within the probe timeout, or if the connection
        ends before that.
        """
        self._sample_progress()
        self._answered = answered
        self._later(Timer.PROBE, self._limits.probe_timeout, self._end_probe)
        self.sendPing()

    def _end_probe(self) -> None:
        self._answer_probe(self._sample_progress())

    def _answer_probe(self, alive: bool) -> None:
        self._cancel(Timer.PROBE)
        answered, self._answered = self._answered, None
        self._stop_sampling()
        if answered is not None:
            self._contained(answered, alive)
