"""One WebSocket connection: the only module that knows what Autobahn and its transports do.

`RelayProtocol` is Autobahn's server protocol with everything that faces a hostile peer taken in
hand: closes that always end, writes that are bounded, reading that can be paused, heartbeat,
deadlines, and errors that cost one connection. Every deviation from the library stands beside
its reason.

Autobahn's own timers are all off. They round to whole seconds, run on a clock of their own and
end connections without a close frame; what they did is done here on the clock that is passed in.
"""

from __future__ import annotations

import enum
import functools
import socket
from collections.abc import Callable, Mapping
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, cast

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import FrameHeader, WebSocketProtocol
from autobahn.websocket.types import ConnectionRequest
from autobahn.websocket.utf8validator import Utf8Validator
from autobahn.websocket.xormasker import create_xor_masker  # type: ignore[attr-defined]
from twisted.internet.interfaces import (
    IDelayedCall,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.main import CONNECTION_DONE, CONNECTION_LOST
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from pyrycode_relay.limits import ITEM_COST, Limits
from pyrycode_relay.protocol import close_codes
from pyrycode_relay.protocol.close_codes import Close, EndCause
from pyrycode_relay.registry.queues import Account, Frame, NoOutbox, Outbox
from pyrycode_relay.tally import LegTally
from pyrycode_relay.websocket.frames import (
    MASKED,
    MAX_7_BIT,
    MAX_16_BIT,
    TEXT_FINAL,
    PartialFrame,
    apply_mask,
    is_utf8,
    text_header,
)
from pyrycode_relay.websocket.poller import Poller, SocketReader
from pyrycode_relay.websocket.transports import (
    Transport,
    can_write_past,
    descriptor_of,
    half_close,
    has_ended_below,
    join_pieces,
    move,
    plain_descriptor,
    prepare_socket,
    take_from_channel,
    unacked_bytes,
    unsent_bytes,
    write_tls,
)

if TYPE_CHECKING:
    from twisted.web.http import HTTPChannel

_bugs = Logger()

_HEARTBEAT_JITTER: Final = 0.1
"""Spread of the heartbeat interval, so that connections that came together do not ping together."""

_ROUNDING: Final = 0.001
"""Seconds by which a deadline may be early: sums of floats are, and a timer for the rest of one
that is next to nothing would go off again in the same instant."""

_STALL_CHECKS: Final = 4
"""How often within the write-stall time a connection that was written to is looked at."""

_GATHERED: Final = 65_536
"""Bytes that are gathered for one peer before they are written: the transport's high water.

Each message counts `ITEM_COST` more, because nothing else accounts for what is gathered."""

_READ_SIZE: Final = 65_536
"""Bytes that are read at once: as many as a transport of Twisted's reads."""

_MORE_CODES: Final = frozenset({1014})
"""Close codes that IANA has registered and Autobahn does not know."""


class Place(Protocol):
    """A connection's place within the limits on connections."""

    def leave(self) -> None:
        """Free the place."""


class Life(enum.Enum):
    """The stages of a connection; it only moves forward."""

    OPENING = enum.auto()
    SERVING = enum.auto()
    CLOSING = enum.auto()
    GONE = enum.auto()


class _Mute:
    """Stands where Autobahn wants its logger.

    It logs peers' addresses and, at debug, payloads; and a peer could flood it at will.
    """

    def _nothing(self, *args: object, **kwargs: object) -> None:
        pass

    debug = info = warn = error = critical = trace = failure = _nothing


class _Nobody:
    """Stands where Autobahn keeps Deferreds of every connection, for whoever waits for them."""

    def callback(self, _: object) -> None:
        """Tell nobody."""


class _FramePath(SocketReader, WebSocketServerProtocol):  # type: ignore[misc]
    """What every frame uses, in slots that lie together: three cache lines instead of six."""

    __slots__ = (
        "_direct",
        "_last_life",
        "_message_since",
        "_on_life",
        "_out",
        "_out_payload",
        "_out_size",
        "_partial",
        "_pinged",
        "_socket",
        "_stall_watched",
        "_unacked",
        "current_frame",
        "data",
        "factory",
        "failedByMe",
        "inside_message",
        "life",
        "outbox",
        "state",
        "writable",
    )


@implementer(IPushProducer)
class RelayProtocol(_FramePath):
    """One connection, from the upgrade on. Its two subclasses are the relay's endpoints.

    A subclass validates the request's headers in ``onConnect`` (raising
    ``ConnectionDeny(400)``), starts in ``onOpen``, gets messages through ``onMessage``, and
    hears in `ended`, exactly once, that the connection serves no more, which is before its
    socket is gone. An error in any of them costs this connection and leaves a traceback.
    """

    # What is not on the class for all (`_settled`) lies in slots: quicker than the dictionary
    # besides, and a tenth of its size.
    __slots__ = (
        "_heartbeat_interval",
        "_message",
        "_owed_pong",
        "_ping_sent",
        "_plain",
        "_progress",
        "_reading",
        "_timers",
        "accepted",
        "device_name",
        "place",
        "remote",
        "transport",
    )

    log = _Mute()
    is_open = is_closed = _Nobody()
    websocket_version = 13
    maxMessagePayloadSize: int
    factory: RelayFactory
    transport: Transport  # type: ignore[assignment]
    _heartbeat_interval: float
    _message: bytes | bytearray
    backlog_cause: ClassVar[EndCause]
    """Cause of the close if the peer's backlog exceeds its limit."""
    stalled_cause: ClassVar[EndCause]
    """Cause of the close if the peer reads nothing at all for the write-stall time."""

    def __init__(self, factory: RelayFactory) -> None:
        # Autobahn's own would make two Deferreds and three containers that nobody uses.
        self.factory = factory
        self.life = Life.OPENING
        self.remote = ""
        """The peer's address, without port, for the log."""
        self.place: Place | None = None
        """What it takes up of the number of connections, until its socket is gone."""
        self.accepted = 0.0
        """When its socket was accepted, by the factory's clock."""
        self.device_name = ""
        self.writable = True
        self.outbox: Outbox = factory.no_outbox
        self.state = self.STATE_CONNECTING
        self.data = b""
        self.current_frame: FrameHeader | None = None  # type: ignore[assignment]
        self.inside_message = False
        self.failedByMe = False
        self._reading = True
        self._owed_pong: bytes | None = None
        self._partial: PartialFrame | None = None
        self._message = b""
        self._message_since: float | None = None
        self._out: list[Frame] | None = None
        self._out_size = 0
        self._out_payload = 0
        self._unacked: int | None = None
        """What a peer had not taken at the last look, with all that was written since."""
        self._direct = False
        self._plain: Connection | None = None
        self._socket: socket.socket | None = None
        self._stall_watched = False
        self._progress = 0.0
        self._last_life = factory.seconds()
        self._pinged = False
        self._ping_sent: float | None = None
        self._on_life: Callable[[bool], None] | None = None
        self._timers: dict[str, IDelayedCall] = {}

    @functools.cached_property
    def utf8validator(self) -> Utf8Validator:  # type: ignore[override]
        """Autobahn's validator, for text messages that it parses; most connections have none."""
        return Utf8Validator()

    # What a subclass fills in

    def ended(self, close_code: int, cause: EndCause) -> None:
        """Take note that the connection no longer serves; called once, whoever ended it.

        ``close_code`` is the code that the peer sent, else the relay's, else 1001.
        """

    def drained(self) -> None:
        """Take note that everything queued has gone out and the connection takes more."""

    # The factory's limits, and its clock

    @property
    def _limits(self) -> Limits:
        return self.factory.limits

    def _later(self, name: str, delay: float, call: Callable[..., None], *args: object) -> None:
        """Run ``call`` in ``delay`` seconds, in place of what was planned under ``name``."""
        self._cancel(name)
        self._timers[name] = self.factory.clock.callLater(delay, self._fire, name, call, *args)

    def _fire(self, name: str, call: Callable[..., None], *args: object) -> None:
        del self._timers[name]
        call(*args)

    def _cancel(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    # Opening

    def take_over(self, channel: HTTPChannel, response: bytes) -> None:
        """Take the connection over from an HTTP channel that has read a valid handshake.

        ``response`` accepts the handshake. Autobahn has nothing left to parse, and nothing of
        the request is kept.
        """
        transport = cast(Transport, channel.transport)
        channel.transport = None
        take_from_channel(transport, self)
        # A peer may send frames right behind its request, in the same packet; the channel
        # passes what it has read and not parsed to its rawDataReceived.
        channel.rawDataReceived = self.dataReceived  # type: ignore[method-assign]
        self.makeConnection(transport)
        self.factory.poller.run(self._open, response)

    def connectionMade(self) -> None:
        """Prepare the connection; called by `take_over` through ``makeConnection``."""
        self._plain = plain_descriptor(self.transport)
        if self._plain is not None:
            self._socket = self._plain.socket
        self.factory.connections.add(self)
        descriptor = descriptor_of(self.transport)
        if descriptor is not None:
            prepare_socket(descriptor, self._limits.send_buffer)
            move(descriptor, self.factory.poller)
        self.transport.resumeProducing()

    def _open(self, response: bytes) -> None:
        """Accept the handshake, and serve."""
        self._gather(0, response)
        self.state = self.STATE_OPEN
        self.life = Life.SERVING
        self.factory.tally.upgrades.observe(self.factory.seconds() - self.accepted)
        self.transport.registerProducer(self, True)
        self._rearm_heartbeat()
        self._contained(self.onOpen)

    # Errors

    def _contained(self, hook: Callable[..., None], *args: object) -> None:
        """Call a subclass's hook; an error in it costs this connection and is logged.

        Left to Autobahn, an error in ``onOpen`` leaves an open socket nobody serves, one in
        ``onMessage`` drops it without a close frame, and one in ``onClose`` breaks its count.
        """
        try:
            hook(*args)
        except Exception:
            self._lose_to_a_bug()

    def _lose_to_a_bug(self) -> None:
        """Log the error that is being handled, and close."""
        _bugs.failure("a bug costs this connection")
        self.close(EndCause.INTERNAL_ERROR, flush=False)

    def _fail_connection(self, code: int = 1002, reason: str = "") -> None:
        """Fail the connection as RFC 6455, section 7.1.7, says.

        A close frame, then nothing of the stream is looked at any more: its framing cannot be
        trusted. Autobahn would either drop the socket, so that the peer sees 1006, or
        (``failByDrop=False``) parse on and keep what it parses. It may come here again with
        what is left of the bytes at hand; the first violation counts.
        """
        if self.failedByMe:
            return
        self.failedByMe = True
        if self.life is Life.SERVING:
            self._leave(code, close_codes.violation(code))
            self.outbox.clear()
            self._send_close(Close(code, reason))
        if not self.outbox:
            self._half_close()

    def _half_close(self) -> None:
        """Tell the peer that no more will come, and let it close."""
        self.flush()
        self.unregisterProducer()
        half_close(self.transport)

    # Closing

    def close(self, cause: EndCause, *, flush: bool = True, directive: Close | None = None) -> None:
        """Close the connection; only the first close counts.

        The close frame is the cause's own, or the binary's ``directive``. What is queued goes
        out before it, unless ``flush`` is false. If all that, and the peer's answer, takes
        longer than the close timeout, the relay aborts the socket.
        """
        if self.life is not Life.SERVING:
            return
        close = directive or cause.close
        first = self.outbox.close
        if flush and first is not None:
            # A directive waits behind the queued frames; it was first.
            self._leave(first.code, EndCause.CLOSED_BY_BINARY)
            return
        if not (flush and self.outbox):
            # Before anybody is told and queues something: this one could be shed for it.
            self.outbox.clear()
        self._leave(close.code, cause)
        if self.outbox:
            self.outbox.push(close)
        else:
            self._send_close(close)

    def _leave(self, code: int, cause: EndCause) -> None:
        """End the connection's service and set the deadline for its socket."""
        self.resume_reading()
        self.life = Life.CLOSING
        self._cancel("heartbeat")
        self._cancel("message")
        self._arm_abort()
        self._contained(self.ended, code, cause)
        self._answer_probe(False)

    def _arm_abort(self) -> None:
        """Plan the abort that stands behind every close.

        TLS waits for the peer's ``close_notify``, TCP for it to read; either may never come.
        """
        self._later("abort", self._limits.close_timeout, self.abort)

    def abort(self) -> None:
        """Drop the socket at once."""
        # The transport would read no more even if it were told to; nor is anything looked at here.
        self.failedByMe = True
        self.transport.abortConnection()

    def _send_close(self, close: Close) -> None:
        # Autobahn's sendClose refuses most codes; sendCloseFrame sends them all.
        self.sendCloseFrame(code=close.code, reasonUtf8=close.reason.encode()[:123])

    def onCloseFrame(self, code: int, reasonRaw: bytes) -> bool | None:
        """Take a close frame from the peer: an answer to ours, or the end of its own wish."""
        known = code
        if code in _MORE_CODES:
            self.sendCloseFrame(code=code, isReply=True)
            known = close_codes.NORMAL
        stop: bool | None = super().onCloseFrame(known, reasonRaw)
        if self.life is Life.SERVING:
            sent = code if code in _MORE_CODES else self.remoteCloseCode
            self._leave(sent or close_codes.GOING_AWAY, EndCause.CLOSED_BY_PEER)
        return stop

    def _closeConnection(self, abort: bool = False) -> None:  # noqa: ARG002
        # Autobahn aborts even after a clean closing handshake, and the reset could overtake
        # what the peer has not read yet. The deadline stands behind this too.
        self.flush()
        self.transport.loseConnection()

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # noqa: ARG002
        """Take note that the socket is gone. Autobahn's own only logs, and calls ``onClose``."""
        if self.place is not None:
            self.place.leave()
        if self.life is Life.SERVING:
            self._leave(close_codes.GOING_AWAY, EndCause.CONNECTION_LOST)
        self.life = Life.GONE
        for name in [*self._timers]:
            self._cancel(name)
        self.outbox.retire()
        self._partial = None
        self._out = None
        self._out_size = self._out_payload = 0
        self._plain = self._socket = None
        self._direct = False
        self.state = self.STATE_CLOSED
        self.factory.connections.discard(self)

    # Reading

    def doRead(self) -> Exception | None:
        """Read the socket in its transport's place; return why it is lost, if it is."""
        try:
            data = self._socket.recv(_READ_SIZE)  # type: ignore[union-attr]
        except BlockingIOError:
            return None
        except OSError:
            return CONNECTION_LOST
        if not data:
            return CONNECTION_DONE
        self.dataReceived(data)
        return None

    def dataReceived(self, data: bytes) -> None:
        """Take bytes from the socket."""
        poller = self.factory.poller
        self._last_life = poller.now if poller.busy else self.factory.seconds()
        if self._pinged:
            self._rearm_heartbeat()
        if self._on_life is not None:
            self._answer_probe(True)
        if self.failedByMe or self.state == self.STATE_CLOSED:
            # TLS still reads, for the peer's close_notify; Autobahn would keep what else comes.
            return
        try:
            self._consume(data)
        except Exception:
            self._lose_to_a_bug()
        if self._message_since is None and self._is_within_a_message():
            self._watch_message()

    def _consume(self, data: bytes) -> None:
        """Take the fast lane as far as it goes, and leave the rest to Autobahn.

        In the lane is what nearly all traffic is: final, masked TEXT frames within the limits,
        on a connection that serves, between messages. Everything else (fragments, control
        frames, other opcodes, anything wrong) finds Autobahn with the stream where it was.
        """
        if self._partial is not None:
            data = self._continue(self._partial, data)
        if self.current_frame is None and not self.inside_message and self.life is Life.SERVING:
            if self.data:
                data, self.data = self.data + data, b""
            data = self._run_lane(data)
        if data:
            self.data += data
            self.consumeData()

    def _run_lane(self, data: bytes) -> bytes:
        """Take whole common frames, and begin one that is not; return what is left."""
        at, end = 0, len(data)
        while end - at > 5 and data[at] == TEXT_FINAL and data[at + 1] & MASKED:
            size = data[at + 1] - MASKED
            body = at + 6
            if size > MAX_7_BIT:
                # The length that follows must not be one that would have fitted into less.
                body += 2 if size == 126 else 8
                least = MAX_7_BIT if size == 126 else MAX_16_BIT
                size = int.from_bytes(data[at + 2 : body - 4], "big")
                if body > end or size <= least:
                    break
            if size > self.maxMessagePayloadSize:
                break
            stop = body + size
            if stop > end:
                partial = PartialFrame(data[body - 4 : body], size)
                if body < end and not partial.take(data[body:]):
                    break
                self._partial = partial
                return b""
            payload = apply_mask(data[body:stop], data[body - 4 : body])
            if not payload.isascii() and not is_utf8(payload):
                break
            at = stop
            self._message_since = None
            try:
                self.onMessage(payload, False)
            except Exception:
                self._lose_to_a_bug()
            if self.life is not Life.SERVING:
                break
        return data[at:] if at else data

    def _continue(self, partial: PartialFrame, data: bytes) -> bytes:
        """Add to the frame that has begun; return what comes behind it."""
        left = partial.size - len(partial.payload)
        if self.life is not Life.SERVING or not partial.take(data[:left]):
            if self.life is Life.SERVING:
                data = data[left:]
            self._leave_lane(partial)
            return data
        if left <= len(data):
            self._partial = None
            self._message_since = None
            self._contained(self.onMessage, partial.payload, False)
        return data[left:]

    def _leave_lane(self, partial: PartialFrame) -> None:
        """Hand a frame that has begun to Autobahn, as if it had read it from the start."""
        self._partial = None
        self.current_frame = FrameHeader(1, True, 0, partial.size, partial.mask)  # type: ignore[arg-type]
        self.current_frame_masker = create_xor_masker(partial.mask, partial.size)
        self.current_frame_masker.process(bytes(len(partial.payload)))  # to where it is
        self.onFrameBegin()
        if self.onFrameData(bytes(partial.payload)) is False:
            return
        if len(partial.payload) == partial.size:
            self.onFrameEnd()

    def onMessageBegin(self, isBinary: bool) -> None:
        """Begin a message."""
        self.message_is_binary = isBinary
        self._message: bytes | bytearray = b""
        self.message_data_total_length = 0

    def onMessageFrameData(self, payload: bytes) -> None:
        """Add to a message.

        Autobahn keeps a list of pieces, which can be of one byte each, or of none: 26 times the
        memory of the message.
        """
        if self.failedByMe or not payload:
            return
        if not self._message:
            self._message = payload
            return
        if isinstance(self._message, bytes):
            self._message = bytearray(self._message)
        self._message += payload

    def onMessageFrameEnd(self) -> None:
        """Do nothing: the frame's payload is in the message already."""

    def onFrameEnd(self) -> bool | None:
        """Finish a frame; between messages the message deadline starts anew with the next."""
        stop: bool | None = super().onFrameEnd()
        if not self.inside_message:
            self._message_since = None
        return stop

    def onMessageEnd(self) -> None:
        """Hand a complete message to ``onMessage``.

        Autobahn's own builds a Deferred for each message, takes binary messages for UTF-8
        unseen, and hands on what comes after a close.
        """
        payload, self._message = bytes(self._message), b""
        if self.life is not Life.SERVING:
            return
        if self.message_is_binary and not is_utf8(payload):
            self.close(EndCause.NOT_UTF8)
            return
        self._contained(self.onMessage, payload, self.message_is_binary)

    def pause_reading(self) -> None:
        """Stop reading the socket. Nothing can be expected of the peer meanwhile."""
        if self._reading and self.life is Life.SERVING:
            self._reading = False
            self._message_since = None
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

    def _is_within_a_message(self) -> bool:
        """Whether a frame or a fragmented message has begun and not ended."""
        return (
            self._partial is not None
            or self.current_frame is not None
            or self.inside_message
            or bool(self.data)
        ) and self.life is Life.SERVING

    def _watch_message(self) -> None:
        """Start the deadline of a message that has begun; one timer serves many messages."""
        if not self._reading or not self._is_within_a_message():
            return
        if self._message_since is None:
            self._message_since = self.factory.clock.seconds()
        if "message" not in self._timers:
            self._later("message", self._limits.message_timeout, self._check_message)

    def _check_message(self) -> None:
        if self._message_since is None:
            return
        left = self._message_since + self._limits.message_timeout - self.factory.clock.seconds()
        if left <= _ROUNDING:
            self.close(EndCause.MESSAGE_TIMEOUT)
        else:
            self._later("message", left, self._check_message)

    # Writing

    def send(self, *parts: Frame) -> None:
        """Write one TEXT message, given in parts; the caller has seen that it is `writable`.

        Written past Autobahn, whose ``sendMessage`` bounds what is sent by what may be
        received, so that a frame at the cap would not fit into its envelope.
        """
        size = 0
        for part in parts:
            size += len(part)
        self._out_payload += size
        self._gather(size, text_header(size), *parts)

    def sendData(
        self,
        data: bytes,
        sync: bool = False,  # noqa: ARG002
        chopsize: int | None = None,  # noqa: ARG002
    ) -> None:
        """Write what Autobahn has to say, in its place between messages."""
        self._gather(len(data), data)

    def _gather(self, size: int, *parts: Frame) -> None:
        """Write ``parts``, some ``size`` bytes, with what else this batch writes to the peer.

        Where the transport has something to write already it gathers better than we do.
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

        What the socket does not take is watched from then on, for the write stall.
        """
        if self._out is None:
            return
        data = b"".join(self._out)
        self._out = None
        self._out_size = 0
        payload, self._out_payload = self._out_payload, 0
        if self._unacked is not None:
            self._unacked += len(data)
        left = self._write_plain(data) if self._direct else self._write(data)
        if left and not self._stall_watched:
            self._look()
            self._progress = self.factory.clock.seconds()
            self._rearm_stall()
        if payload and not self.writable:
            self._own_outbox().writing(payload)

    def _write_plain(self, data: bytes) -> bool:
        """Write to the socket of a transport that has nothing else to write; the same answer.

        Twisted's transports write when the reactor next comes round, after two system calls to
        be told so. What the socket does not take at once goes that way.
        """
        try:
            taken = self._socket.send(data)  # type: ignore[union-attr]
        except OSError:
            # Full; or an error, which is for the poller to find: it comes again there.
            taken = 0
        if taken == len(data):
            return False
        self._direct = False
        self.transport.write(data[taken:])
        return True

    def _write(self, data: bytes) -> bool:
        """Write to any transport, and say whether some of it has to wait."""
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
        """Whether a TCP or UNIX transport still has something to write, or is about to close.

        If not, its socket can be written to directly, until that does not take all.
        """
        plain = self._plain
        if plain is None:
            return False
        self._direct = can_write_past(plain)
        return not self._direct

    def deliver(self, frame: Frame) -> bool:
        """Send a frame as a message of its own, now or after what is queued.

        False, and the connection is closed, when its outbox would pass its byte budget.
        """
        if self.writable and not self.outbox:
            self.send(frame)
        elif self.outbox.would_pass_budget(frame):
            self.backlog_full()
        else:
            self._own_outbox().push(frame)
        return self.life is Life.SERVING

    def finish(self, close: Close) -> None:
        """Close the connection as its binary directs, after everything that is queued."""
        if self.writable and not self.outbox:
            self.close(EndCause.CLOSED_BY_BINARY, directive=close)
        else:
            self._own_outbox().push(close)

    def _own_outbox(self) -> Outbox:
        """Return the outbox, which is made when something is to go into it."""
        if self.outbox is self.factory.no_outbox:
            budget, account = self._limits.outbox_bytes, self.factory.account
            self.outbox = Outbox(budget, account, self.backlog_full)
        return self.outbox

    def part(self, cause: EndCause) -> None:
        """Close the connection when nothing is left to send to it, wherever it waits."""
        self.close(cause)

    def backlog_full(self) -> None:
        """Close the connection, for more waits to be written to it than may."""
        waiting = self.outbox.close
        if self.life is Life.CLOSING and waiting is not None:
            self.outbox.clear()
            self._send_close(waiting)
        else:
            self.close(self.backlog_cause, flush=False)

    def pauseProducing(self) -> None:
        """Write no more for now; called by the transport, by TCP with every further write."""
        self.writable = False

    def resumeProducing(self) -> None:
        """Write again, all has gone out; called by the transport."""
        self.writable = True
        self.outbox.written()
        self._show_life()
        if has_ended_below(self.transport):
            # TLS has ended below us, and its socket is closed when nobody has more to write.
            self.unregisterProducer()
            return
        self.factory.poller.run(self._write_on)

    def _write_on(self) -> None:
        if self._owed_pong is not None:
            pong, self._owed_pong = self._owed_pong, None
            self.sendPong(pong)
        self._contained(self._pump)
        if self.writable and self.life is Life.SERVING:
            self._contained(self.drained)

    def stopProducing(self) -> None:
        """Do nothing; called by a transport that is about to lose its connection."""

    def _pump(self) -> None:
        """Write what is queued for as long as the transport takes it."""
        while self.writable and self.outbox:
            item = self.outbox.pop()
            if not isinstance(item, Close):
                self.send(item)
            elif self.life is Life.SERVING:
                self.close(EndCause.CLOSED_BY_BINARY, directive=item)
            else:
                self._send_close(item)

    def _rearm_stall(self) -> None:
        """Plan the next look; one timer serves all that is written in the meantime."""
        self._stall_watched = True
        self._later("stall", self._limits.write_stall / _STALL_CHECKS, self._check_stall)

    def _check_stall(self) -> None:
        """Close a peer that has taken nothing of what waits for it for the write-stall time."""
        self._stall_watched = False
        self._look()
        if not unsent_bytes(self.transport):
            self._look_away()
            return
        idle = self.factory.clock.seconds() - self._progress
        if idle < self._limits.write_stall - _ROUNDING:
            self._rearm_stall()
        else:
            self.close(self.stalled_cause, flush=False)

    def _look(self) -> None:
        """See what the peer has taken since the last look.

        While something is left for it to take that is a sign of life, and the only one of a
        peer whose pong waits behind a long backlog. When all is taken it has the ping too.
        """
        unacked = unacked_bytes(self.transport)
        if self._unacked is not None and unacked < self._unacked:
            self._progress = self.factory.clock.seconds()
            if unacked:
                self._show_life()
        self._unacked = unacked

    def _look_away(self) -> None:
        """Count what is written no more, unless somebody still wants to see it taken."""
        if not self._stall_watched and not self._pinged and self._on_life is None:
            self._unacked = None

    def _show_life(self) -> None:
        self._put_off_ping()
        self._progress = self._last_life
        if self._on_life is not None:
            self._answer_probe(True)

    # Heartbeat

    def onPing(self, payload: bytes) -> None:
        """Answer a ping; one pong at most waits for a peer that does not read.

        Autobahn's pongs pile up without bound in the transport of such a peer. A pong for the
        latest ping is enough (RFC 6455, section 5.5.3).
        """
        if self.writable:
            self.sendPong(payload)
        else:
            self._owed_pong = payload

    def onPong(self, payload: bytes) -> None:  # noqa: ARG002
        """Take note how long the answer to a heartbeat took."""
        if self._ping_sent is not None:
            self.factory.tally.round_trips.observe(self.factory.seconds() - self._ping_sent)
            self._ping_sent = None

    def _put_off_ping(self) -> None:
        """Count silence anew from now; a ping under way needs no answer any more."""
        self._last_life = self.factory.seconds()
        if self._pinged:
            self._rearm_heartbeat()

    def _rearm_heartbeat(self) -> None:
        self._pinged = False
        self._look_away()
        jitter = self.factory.random.uniform(1 - _HEARTBEAT_JITTER, 1 + _HEARTBEAT_JITTER)
        self._heartbeat_interval = self._limits.heartbeat_interval * jitter
        self._later("heartbeat", self._heartbeat_interval, self._beat)

    def _beat(self) -> None:
        """Ping a peer that has been silent for the interval.

        Not one that is not being read, for its pong could not be seen; nor one that does not
        take what is written to it, for that is what the write stall is for.
        """
        silent = self.factory.clock.seconds() - self._last_life
        if not self._reading or not self.writable:
            self._rearm_heartbeat()
        elif silent >= self._heartbeat_interval - _ROUNDING:
            self._look()
            self._pinged = True
            self._ping_sent = self.factory.seconds()
            self.sendPing()
            self._later("heartbeat", self._limits.heartbeat_timeout, self._check_pong)
        else:
            self._later("heartbeat", self._heartbeat_interval - silent, self._beat)

    def _check_pong(self) -> None:
        self._look()
        if self._pinged and self._reading and self.writable:
            self.close(EndCause.HEARTBEAT_TIMEOUT, flush=False)
        else:
            self._rearm_heartbeat()

    def probe(self, answered: Callable[[bool], None]) -> None:
        """Find out whether the peer is there: ``answered(True)`` at its first sign of life.

        ``answered(False)`` when there is none within the probe timeout, or when the connection
        ends before.
        """
        self._look()
        self._on_life = answered
        self._later("probe", self._limits.probe_timeout, self._probe_over)
        self.sendPing()

    def _probe_over(self) -> None:
        self._look()
        self._answer_probe(False)

    def _answer_probe(self, alive: bool) -> None:
        self._cancel("probe")
        answered, self._on_life = self._on_life, None
        self._look_away()
        if answered is not None:
            self._contained(answered, alive)


class RelayFactory(WebSocketServerFactory):
    """Makes the connections of one endpoint.

    ``clock`` runs every timer of theirs, ``account`` bounds their queues together, ``random``
    spreads their heartbeats, ``poller`` serves their sockets, ``tally`` counts.
    """

    log = _Mute()
    noisy = False
    protocol: type[RelayProtocol]  # type: ignore[assignment]

    def __init__(
        self,
        protocol: type[RelayProtocol],
        clock: IReactorTime,
        limits: Limits,
        account: Account,
        max_message_bytes: int,
        random: Random,
        poller: Poller,
        tally: LegTally,
    ) -> None:
        # Autobahn wants a reactor, and imports the global one when it gets none.
        super().__init__(server="", reactor=clock)
        self.clock = clock
        self.seconds = clock.seconds
        self.limits = limits
        self.account = account
        self.no_outbox = NoOutbox(limits.outbox_bytes, account, None)
        self.random = random
        self.poller = poller
        self.tally = tally
        self.connections: set[RelayProtocol] = set()
        # One call with everything: any call sets what it does not name back, silently.
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            maxMessagePayloadSize=max_message_bytes,
            # Makes the parser stop at the first violation; _fail_connection then closes politely.
            failByDrop=True,
            echoCloseCodeReason=True,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            autoPingInterval=0,
            allowNullOrigin=True,
        )
        self.protocol = _settled(protocol, self)

    def connect(self, path: str, headers: Mapping[str, str]) -> RelayProtocol:
        """Make a connection's protocol, and have its ``onConnect`` accept the request.

        ``headers`` have lower-case names. Raises ``ConnectionDeny`` if ``onConnect`` denies the
        request. The protocol then has to `RelayProtocol.take_over` the connection.
        """
        connection = self.protocol(self)
        connection.onConnect(ConnectionRequest("", headers, "", path, {}, 13, "", [], []))
        return connection


def _settled(protocol: type[RelayProtocol], factory: RelayFactory) -> type[RelayProtocol]:
    """Return ``protocol`` with what Autobahn would set on every connection set on the class.

    Some 80 attributes: the factory's options, flags, timers that are never set. An instance
    gets one of its own when it is changed there. What keeps state is not taken (the
    validator), or not used (the queue for slow sending, statistics).
    """
    pattern: Any = protocol(factory)
    WebSocketProtocol._connectionMade(pattern)
    common: Mapping[str, object] = {
        name: value for name, value in vars(pattern).items() if name != "utf8validator"
    }
    return type(protocol.__name__, (protocol,), {"__slots__": (), **common})
