"""How many connections fit into the files that the process may open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyrycode_relay.limits import Limits
from pyrycode_relay.startup_error import StartupError

SPARE_FILES: Final = 192
"""Open files kept for everything but peers: listeners, the log, certificates, the operator's
connections, and the sockets that one burst accepts before the oldest are dropped."""

LEAST_FILES: Final = 384
"""The smallest limit of open files that a relay starts with."""

MOST_CONNECTIONS: Final = 100_000
"""Default for ``max_connections`` where the limit of open files allows more.

So many connections take 400 MiB at 4 KiB each, and 2.7 GiB over TLS. Only an explicit setting
lets the relay take more.
"""

_MOST_WAITING: Final = 2048
"""Upper bound of the default for ``max_waiting``.

So many connections take 32 MiB if each has sent 16 KiB of headers, and 100 MiB if each is in a
TLS handshake.
"""

_WAITING_SHARE: Final = 8
"""The default for ``max_waiting`` is the limit of open files divided by this."""


_FILES_OF_CARRIED: Final = 2
"""Open files, in one process, of a connection that one worker accepted for another."""

_FILES_OF_WORKER: Final = 6
"""Open files kept for each worker beyond `SPARE_FILES`: a connection to it and one from it, and
two carried connections that it may let in at the same moment as others."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many connections of each kind the relay has room for, all of its workers together.

    Each process has its own limit of open files, but nothing spreads connections evenly: all may
    meet in one worker. So the limit of one process bounds those of all workers. A connection that
    another worker accepted may take two files in a process instead of one.
    """

    files: int
    """The limit of open files of one process."""
    ceiling: int
    """WebSocket connections that the open files suffice for."""
    connections: int
    """WebSocket connections allowed, at most `ceiling`."""
    reserved: int
    """How many of ``connections`` are reserved for binaries."""
    waiting: int
    """Connections allowed in each worker, in addition, that wait for a request or a response.

    All workers together have room for what is set, rounded up to the same number for each.
    """

    @classmethod
    def within(cls, files: int, limits: Limits, workers: int = 1) -> Capacity:
        """Return the capacity that ``limits`` set; what they leave open follows from ``files``.

        ``files`` is the process's limit of open files. Raises `StartupError` if it is too low.
        """
        if files < LEAST_FILES:
            raise StartupError(
                f"Only {files} files may be open, and a relay needs {LEAST_FILES}; raise the "
                "limit (ulimit -n, or LimitNOFILE= in a systemd unit)."
            )
        in_all = limits.max_waiting or min(_MOST_WAITING, files // _WAITING_SHARE)
        waiting = -(-in_all // workers)
        each, spare = 1, SPARE_FILES
        if workers > 1:
            each, spare = _FILES_OF_CARRIED, SPARE_FILES + _FILES_OF_WORKER * workers
        ceiling = (files - spare - waiting) // each
        connections = limits.max_connections or min(MOST_CONNECTIONS, ceiling)
        needed = max(connections, 1) * each + waiting + spare
        if needed > files:
            raise StartupError(
                f"--max-connections={limits.max_connections} and --max-waiting={in_all} need "
                f"{needed} open files, and {files} are allowed; lower them or raise the limit "
                "(ulimit -n, or LimitNOFILE= in a systemd unit)."
            )
        reserved = int(connections * limits.reserve_binaries)
        return cls(files, ceiling, connections, reserved, waiting)

    def __str__(self) -> str:
        """Return a sentence for the log."""
        return (
            f"room for {self.connections} connections, {self.reserved} of them reserved for "
            f"binaries; at most {self.files} open files"
        )
