"""The threads in which the ACME library blocks."""

from __future__ import annotations

from typing import Any, Final

from pyrycode_relay.acme.client import DEADLINE, AcmeError
from pyrycode_relay.acme.schedule import UNREACHABLE
from pyrycode_relay.daemon_threads import Bounds, DaemonThreads

BOUNDS: Final = Bounds(
    most=4,
    # A conversation ends earlier, unless the operating system holds it up.
    deadline=DEADLINE + 30.0,
    busy=lambda: AcmeError("earlier requests to the CA still hang"),
    late=lambda: AcmeError("the CA did not answer in time", first_wait=UNREACHABLE),
)


def acme_threads(reactor: Any) -> DaemonThreads:
    """Return the threads for the conversations with the CA."""
    return DaemonThreads(reactor, "acme", BOUNDS)
