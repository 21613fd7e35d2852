"""Returns memory to the system once the queues no longer need it.

The C library keeps freed memory for itself, unless it is at the end of the heap. The data of other
connections lies between a queue's messages. So after a backlog of 256 MiB, the process would stay
that large for ever.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime

_DELAY: Final = 5.0
"""Seconds after which memory is returned. The queues shrink further meanwhile, or need it again.
To return 256 MiB takes 6 ms."""


def _trim() -> None:
    """Return freed memory to the system; do nothing if the C library cannot (musl)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class HeapTrimmer:
    """Calls ``trim`` a few seconds after the queues have shrunk."""

    def __init__(self, clock: IReactorTime, trim: Callable[[], None] = _trim) -> None:
        self._clock = clock
        self._trim = trim
        self._planned: IDelayedCall | None = None

    def plan(self) -> None:
        """Note that the queues have shrunk."""
        if self._planned is None:
            self._planned = self._clock.callLater(_DELAY, self._run)

    def stop(self) -> None:
        """Call nothing from now on."""
        if self._planned is not None:
            self._planned.cancel()
            self._planned = None

    def _run(self) -> None:
        self._planned = None
        self._trim()
