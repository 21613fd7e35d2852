"""What SIGTERM and SIGINT do."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType


def handle_signals(stop: Callable[[], None], later: Callable[..., object]) -> None:
    """Make SIGTERM and SIGINT drain the relay, and a second one end the process at once.

    Twisted's own handlers end the process by the same signal even after a clean drain, which a
    service manager takes for a failure. With these handlers the exit status is 0.

    Args:
        stop: Stops the reactor.
        later: Runs a function in the reactor's thread.

    """

    def drain(_number: int, _frame: FrameType | None) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_DFL)
        later(stop)

    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, drain)
