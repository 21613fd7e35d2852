"""Deadlines on peers, which a peer must not miss because the relay itself was not running.

The process may be stopped, the machine suspended or busy. When it runs again, the reactor fires
timers before it reads sockets. Without this module, the relay would close peers whose data waits
in the kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from zope.interface import implementer

_PROMPT: Final = 0.05
"""Seconds by which a deadline may fire late and still count."""

_LONGEST: Final = 30.0
"""Seconds by which a deadline is put off at most: enough for a peer to send again what was lost."""

_TIMES: Final = 3
"""How often a deadline is put off, so that a relay that is always late still closes dead peers."""


@implementer(IDelayedCall)
class Deadline:
    """A call at a certain time; if it fires late, it is put off by as long as it was late."""

    __slots__ = ("_args", "_call", "_clock", "_planned", "_times")

    _planned: IDelayedCall | None

    def __init__(
        self,
        clock: IReactorTime,
        delay: float,
        call: Callable[..., object],
        args: tuple[object, ...],
    ) -> None:
        self._clock = clock
        self._call = call
        self._args = args
        self._times = 0
        self._planned = clock.callLater(delay, self)

    def __call__(self) -> None:
        """Make the call, or put it off; called by the clock."""
        late = self._clock.seconds() - self.getTime()
        if late > _PROMPT and self._times < _TIMES:
            self._times += 1
            self._planned = self._clock.callLater(min(late, _LONGEST), self)
        else:
            self._planned = None
            self._call(*self._args)

    def _pending(self) -> IDelayedCall:
        assert self._planned is not None, "the deadline has passed"  # noqa: S101 - a caller's bug
        return self._planned

    def getTime(self) -> float:
        """Return when the call is due."""
        return self._pending().getTime()

    def cancel(self) -> None:
        """Do not make the call."""
        self._pending().cancel()

    def delay(self, secondsLater: float) -> None:
        """Make the call later."""
        self._pending().delay(secondsLater)

    def reset(self, secondsFromNow: float) -> None:
        """Make the call at another time, counted from now."""
        self._pending().reset(secondsFromNow)

    def active(self) -> bool:
        """Whether the call is still to be made."""
        return self._planned is not None and bool(self._planned.active())


@implementer(IReactorTime)
class Deadlines:
    """A clock that gives every peer the time in which the relay was not running."""

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self.seconds = clock.seconds

    def callLater(
        self,
        delay: float,
        callable: Callable[..., object],
        *args: object,
        **kwargs: object,
    ) -> IDelayedCall:
        """Plan a call that is put off if it fires late."""
        call = partial(callable, **kwargs) if kwargs else callable
        return Deadline(self._clock, delay, call, args)

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """Return the calls that the clock below has planned."""
        return list(self._clock.getDelayedCalls())
