"""The thresholds of the status page's verdict, each with its reason.

Where Prometheus has an alert for the same thing, ``deploy/prometheus/pyrycode-relay.rules.yml`` has
the same number, and a test compares the two. The alerts also wait (``for``), so that nobody is
woken for a moment. The page does not wait: somebody looks at it now, and sees since when.
"""

from __future__ import annotations

from typing import Final

MINUTE: Final = 60
DAY: Final = 86_400

LONGEST_WINDOW: Final = 15 * MINUTE
"""Seconds that the longest window below looks back."""

# Shares of a limit

CONNECTIONS_SHARE: Final = 0.9
"""Of ``--max-connections``: the last tenth lasts minutes when everybody reconnects."""
FILES_SHARE: Final = 0.9
"""Of the limit of open files: beyond it, the relay can neither accept nor open a file."""
QUEUES_SHARE: Final = 0.8
"""Of ``--memory-budget``: over it connections are closed, and a burst takes a fifth of it."""
MEMORY_SHARE: Final = 0.9
"""Of the memory that the process may use: over it the kernel kills the process."""

# Certificates

CERTIFICATE_SOON: Final = 7 * DAY
"""Seconds before the end of a certificate: every renewal should have happened, and a week is left
to find out why it has not."""
CERTIFICATE_NOW: Final = DAY
"""Seconds before the end of a certificate: after it no client can connect."""

# The event loop

LAG: Final = 0.1
"""Seconds of lag that people notice."""
LATE_SHARE: Final = 0.01
"""Share of timers that may be later than `LAG`: above it, the 99th percentile is."""
LAG_WINDOW: Final = 5 * MINUTE
LEAST_BEATS: Final = 100
"""Timers without which there is no 99th percentile: 50 seconds of them."""
STALL: Final = 1.0
"""Seconds of lag that stop everybody's traffic for all to see, even if it happens once."""

# Things that are counted over a window: attention is due above the number

BACKLOG_CLOSES: Final = 0
"""Each is a person whose connection the relay closed with frames still queued."""
BACKLOG_WINDOW: Final = 10 * MINUTE
SHED: Final = 0
"""Each is a connection closed because all queues together were too large."""
SHED_WINDOW: Final = 10 * MINUTE
ACCEPT_FAILURES: Final = 0
"""Each is a client that did not get in because files or memory ran out."""
ACCEPT_WINDOW: Final = 10 * MINUTE
REFUSED_AT_LIMIT: Final = 0
"""503: each is a client that did not get in because of a limit on the number of connections."""
REFUSED_WINDOW: Final = 10 * MINUTE
RATE_LIMITED: Final = 1.0
"""429, per second: a redialling client causes a few in a minute, a flood far more than this."""
RATE_WINDOW: Final = 5 * MINUTE
BAD_REQUESTS: Final = 1.0
"""400, per second: scanners cause a few in a minute, a client with a bug far more than this."""
BAD_WINDOW: Final = 5 * MINUTE
CONFLICTS: Final = 10
"""4409: a daemon that redials before its old connection is gone causes a few. Two daemons with one
server-id cause one with every retry, without end."""
CONFLICTS_WINDOW: Final = 15 * MINUTE
PROBES: Final = 1.0
"""A probe's connections that it has refused, per second; a probe makes two."""
PROBES_WINDOW: Final = 5 * MINUTE
RECONNECTS: Final = 50
"""Phones that connect, per second: everybody comes back at once."""
RECONNECTS_WINDOW: Final = 1 * MINUTE
HEARTBEATS_SHARE: Final = 0.2
"""Share of all connections that ended by heartbeat time-out: above it, a network drops them."""
HEARTBEATS_LEAST: Final = 50
"""Connections below which such a share is one household."""
HEARTBEATS_WINDOW: Final = 10 * MINUTE
BINARIES_SHARE: Final = 0.5
"""Share of the binaries of the last quarter of an hour that must still be there."""
BINARIES_QUANTILE: Final = 0.9
"""Which of its numbers counts: not the highest, because a probe is a binary for a moment."""
BINARIES_WINDOW: Final = 15 * MINUTE

# Push

PUSH_FAILED_SHARE: Final = 0.2
"""Share of wakes that may fail: single devices and timeouts stay far below it."""
PUSH_LEAST: Final = 10
"""Wakes below which such a share is chance."""
PUSH_REFUSED: Final = 30
"""Wakes refused over a limit: more than a daemon that means well asks for in vain."""
PUSH_WINDOW: Final = 15 * MINUTE
