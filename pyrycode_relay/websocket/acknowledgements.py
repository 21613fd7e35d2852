"""The bytes that a peer's kernel acknowledges, and whether a ping is among them.

A kernel also acknowledges data for a process that is frozen. So acknowledged bytes are a sign of
life only until the ping, which the process has to answer, is among them.
"""

from __future__ import annotations

from pyrycode_relay.websocket.transports import (
    Transport,
    blocked_bytes,
    tls_output,
    unacked_bytes,
)


class Acknowledgements:
    """Counts the bytes that a peer acknowledges, from one sample to the next."""

    __slots__ = ("_output", "_transport", "_unacked", "total", "written")

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.total = 0
        """Bytes acknowledged from the first sample to the last."""
        self.written = 0
        """Bytes written to the transport since the last sample."""
        self._output = tls_output(transport)
        self._unacked = unacked_bytes(transport)

    def since_sample(self) -> int:
        """Return how many bytes were acknowledged since the last sample, without taking one."""
        return self._unacked + self._written() - unacked_bytes(self._transport)

    def _written(self) -> int:
        if self._output is None:
            return self.written
        return (tls_output(self._transport) or 0) - self._output

    def sample(self) -> int:
        """Take a sample; return the total."""
        written = self._written()
        unacked = unacked_bytes(self._transport)
        self.total += self._unacked + written - unacked
        self._unacked = unacked
        self._output = tls_output(self._transport)
        self.written = 0
        return self.total

    def end(self) -> int:
        """Return the total at which everything written up to the last sample is acknowledged."""
        return self.total + self._unacked + blocked_bytes(self._transport)


class AwaitedPing:
    """A ping that the peer has to answer, written as the last bytes before ``now``.

    ``acknowledgements`` have just been sampled.
    """

    __slots__ = ("_end", "_seen", "sent", "since")

    def __init__(self, acknowledgements: Acknowledgements, now: float) -> None:
        self.sent = now
        self.since = now
        """When the peer's time for its answer began."""
        self._seen = acknowledgements.total
        self._end = acknowledgements.end()

    def is_waited_for(self, total: int, now: float, *, backlog: bool) -> bool:
        """Take note of a sample; return whether it shows that the peer still reads up to the ping.

        Then, and when the ping is among what is acknowledged for the first time, the peer's time
        begins anew. With a ``backlog`` that waits in the relay, everything acknowledged counts: a
        kernel takes no more than its buffer holds for a process that does not read.
        """
        if total <= self._seen:
            return False
        before, self._seen = self._seen, total
        if backlog or before < self._end:
            self.since = now
        return backlog or total < self._end
