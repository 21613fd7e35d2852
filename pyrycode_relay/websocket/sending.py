"""Writing to a peer: frames are gathered for one system call, or queued while the peer is slow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from twisted.internet.interfaces import IPushProducer
from twisted.internet.tcp import Connection
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from pyrycode_relay.limits import ITEM_COST
from pyrycode_relay.protocol.close_codes import Close, EndCause
from pyrycode_relay.registry.queues import Outbox, Payload
from pyrycode_relay.websocket.factory import RelayFactory
from pyrycode_relay.websocket.frames import text_header
from pyrycode_relay.websocket.liveness import WatchedProtocol
from pyrycode_relay.websocket.stage import Stage
from pyrycode_relay.websocket.transports import (
    can_write_past,
    has_ended_below,
    join_pieces,
    plain_descriptor,
    write_tls,
)

if TYPE_CHECKING:
    from twisted.python.failure import Failure


_GATHERED: Final = 65_536
"""Bytes that are gathered for one peer before they are written: the transport's high water.

Each message counts `ITEM_COST` more, because nothing else accounts for what is gathered."""


@implementer(IPushProducer)
class SendingProtocol(WatchedProtocol):
    """Writes frames to a peer, or queues them in its outbox while its transport is full.

    The slots stand with those of a frame's way (`AutobahnAdapter`), or last (`RelayProtocol`).
    """

    __slots__ = ()

    backlog_cause: ClassVar[EndCause]
    """Cause of the close if the peer's backlog exceeds its limit."""

    def __init__(self, factory: RelayFactory[Any]) -> None:
        super().__init__(factory)
        self.writable = True
        self.outbox: Outbox = factory.no_outbox
        self._owed_pong: bytes | None = None
        self._out: list[Payload] | None = None
        self._out_size = 0
        self._out_payload = 0
        self._socket = None
        self._plain: Connection | None = None
        """The transport, if it owns the socket itself and nothing, such as TLS, is above it."""
        self._direct = False
        """Whether that transport has nothing to write, so that we may write to its socket."""

    # Hooks for the subclass

    def close(self, cause: EndCause, *, flush: bool = True, directive: Close | None = None) -> None:
        """Close the connection, after what is queued if ``flush`` is true."""
        raise NotImplementedError

    def abort(self) -> None:
        """Drop the socket at once."""
        raise NotImplementedError

    def drained(self) -> None:
        """Called when the queue is empty and the connection is writable again."""

    # The transport

    def connectionMade(self) -> None:
        """Find the socket, if it can be read and written directly."""
        self._plain = plain_descriptor(self.transport)
        if self._plain is not None:
            self._socket = self._plain.socket

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]
        """Drop what was to be written."""
        super().connectionLost(reason)
        self.outbox.retire()
        self._out = None
        self._out_size = self._out_payload = 0
        self._plain = self._socket = None
        self._direct = False

    # Writing

    def send(self, *parts: Payload) -> None:
        """Write one TEXT message, given in parts, while the connection is ``writable``.

        Autobahn's ``sendMessage`` would apply the limit for received messages, so that a frame at
        the cap would not fit into its envelope.
        """
        size = 0
        for part in parts:
            size += len(part)
        self._out_payload += size
        self._gather(size, text_header(size), *parts)

    def write(self, data: bytes) -> None:
        """Write a control frame after what was gathered, between messages."""
        self._gather(len(data), data)

    def _gather(self, size: int, *parts: Payload) -> None:
        """Gather ``parts``, about ``size`` bytes, to write them with the rest of this batch.

        If the transport already has something to write, pass them on at once: it gathers by itself.
        """
        if self._out is None:
            poller = self.factory.poller
            self._out = list(parts)
            if not poller.busy or (not self._direct and self._is_behind()):
                poller.run(self.flush)
                return
            poller.gather(self)
        else:
            self._out += parts
        self._out_size += size + ITEM_COST
        if self._out_size > _GATHERED:
            self.flush()

    def flush(self) -> None:
        """Write what was gathered, at once if nothing else waits.

        If the socket does not take all of it, the write stall is watched from then on.
        """
        if self._out is None:
            return
        data = b"".join(self._out)
        self._out = None
        self._out_size = 0
        payload, self._out_payload = self._out_payload, 0
        if self._acknowledgements is not None:
            self._acknowledgements.written += len(data)
        left = self._write_plain(data) if self._direct else self._write(data)
        if left:
            self._watch_stall()
        if payload and not self.writable:
            outbox = self._own_outbox()
            if not outbox.cost:
                self._restart_intake()
            outbox.writing(payload)

    def _write_plain(self, data: bytes) -> bool:
        """Write to the socket of a plain transport; return whether some of it has to wait.

        A transport would write in the reactor's next turn, after two system calls. It gets only
        what the socket does not accept at once.
        """
        try:
            taken = self._socket.send(data)  # type: ignore[union-attr]
        except OSError:
            # The socket is full, or broken: then the poller finds the same error.
            taken = 0
        if taken == len(data):
            return False
        self._direct = False
        self.transport.write(data[taken:])
        return True

    def _write(self, data: bytes) -> bool:
        """Write to any transport; return whether some of it has to wait."""
        transport = self.transport
        if self._plain is not None and not self._is_behind():
            return self._write_plain(data)
        if not isinstance(transport, TLSMemoryBIOProtocol):
            transport.write(data)
            if self._plain is not None:
                join_pieces(self._plain)
            return self._plain is not None
        return write_tls(transport, data)

    def _is_behind(self) -> bool:
        """Whether a plain transport has something to write, or is about to close.

        If not, its socket can be written to directly until it does not take everything.
        """
        plain = self._plain
        if plain is None:
            return False
        self._direct = can_write_past(plain)
        return not self._direct

    def deliver(self, frame: Payload) -> bool:
        """Send one frame, now or after the queue.

        Return False, after closing the connection, if that would exceed the outbox's budget.
        """
        if self.writable and not self.outbox:
            self.send(frame)
        elif self.outbox.would_pass_budget(frame):
            self.backlog_full()
        else:
            self._own_outbox().push(frame)
        return self.stage is Stage.SERVING

    def close_after_queue(self, close: Close) -> None:
        """Close the connection as its binary directs, after everything that is queued."""
        if self.writable and not self.outbox:
            self.close(EndCause.CLOSED_BY_BINARY, directive=close)
        else:
            self._own_outbox().push(close)

    def _own_outbox(self) -> Outbox:
        """Return the connection's outbox; it is made when something first goes into it."""
        if self.outbox is self.factory.no_outbox:
            budget, group = self._limits.outbox_bytes, self.factory.group
            self.outbox = Outbox(budget, group, self.backlog_full, self.pace)
        return self.outbox

    def close_when_drained(self, cause: EndCause) -> None:
        """Close the connection once everything queued or held for it has been sent."""
        self.close(cause)

    def backlog_full(self) -> None:
        """Close the connection: more waits to be written than its budget allows."""
        if self.stage is Stage.CLOSING:
            self.send_waiting_close()
        else:
            self.close(self.backlog_cause, flush=False)

    def send_waiting_close(self) -> None:
        """Send the close at the end of the queue, if there is one; drop what is before it."""
        waiting = self.outbox.close
        if waiting is not None:
            self.outbox.clear()
            self.send_close(waiting)

    def pauseProducing(self) -> None:
        """Stop writing; called by the transport, by TCP with every further write.

        TLS writes by itself too, so this may be the first sign that something waits.
        """
        self.writable = False
        self._watch_stall_soon()

    def resumeProducing(self) -> None:
        """Write again: everything has gone out. Called by the transport."""
        self.writable = True
        self.outbox.written()
        if has_ended_below(self.transport):
            # TLS has ended below, and its socket is closed once no producer is registered.
            self.unregisterProducer()
            return
        self.factory.poller.run(self._write_on)

    def _write_on(self) -> None:
        if self._owed_pong is not None:
            pong, self._owed_pong = self._owed_pong, None
            self.sendPong(pong)
        self._contained(self._pump)
        if self.writable and self.stage is Stage.SERVING:
            self._contained(self.drained)

    def stopProducing(self) -> None:
        """Do nothing; called by a transport that is about to lose its connection."""

    def _pump(self) -> None:
        """Write what is queued as long as the transport takes it."""
        while self.writable and self.outbox:
            item = self.outbox.pop()
            if not isinstance(item, Close):
                self.send(item)
            elif self.stage is Stage.SERVING:
                self.close(EndCause.CLOSED_BY_BINARY, directive=item)
            else:
                self.send_close(item)

    def onPing(self, payload: bytes) -> None:
        """Answer a ping; at most one pong waits for a peer that does not read.

        Autobahn's pongs would pile up in the transport of such a peer. A pong for the latest ping
        is enough (RFC 6455, section 5.5.3).
        """
        if self.writable:
            self.sendPong(payload)
        else:
            self._owed_pong = payload
