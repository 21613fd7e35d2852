"""An adapter to Autobahn: the only module that uses its protocol and its factory.

`AutobahnAdapter` is Autobahn's server protocol without its handshake, timers, log and errors. It
turns bytes into whole messages. Most never reach Autobahn, because the lane cuts them out of the
bytes that were read; Autobahn parses everything else.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import FrameHeader, WebSocketProtocol
from autobahn.websocket.types import ConnectionRequest
from autobahn.websocket.utf8validator import Utf8Validator
from autobahn.websocket.xormasker import create_xor_masker  # type: ignore[attr-defined]

from pyrycode_relay.protocol import close_codes
from pyrycode_relay.protocol.close_codes import Close
from pyrycode_relay.websocket.frames import (
    MASKED,
    MAX_7_BIT,
    MAX_16_BIT,
    TEXT_FINAL,
    PartialFrame,
    apply_mask,
    is_utf8,
)
from pyrycode_relay.websocket.poller import SocketReader
from pyrycode_relay.websocket.stage import Stage

if TYPE_CHECKING:
    from twisted.internet.interfaces import IReactorTime
    from twisted.python.failure import Failure

__all__ = ["AutobahnAdapter", "AutobahnFactory", "ConnectionRequest"]

_MORE_CODES: Final = frozenset({1014})
"""Close codes that IANA has registered and Autobahn does not know."""
_MAX_REASON: Final = 123
"""Bytes of a close frame's reason: a control frame has 125, and the code takes two."""


class _Mute:
    """Takes the place of Autobahn's logger.

    Autobahn logs peers' addresses and, at debug level, payloads. A peer could flood the log.
    """

    def _drop(self, *args: object, **kwargs: object) -> None:
        pass

    debug = info = warn = error = critical = trace = failure = _drop


class _Unawaited:
    """Takes the place of the Deferreds that Autobahn makes for every connection."""

    def callback(self, _: object) -> None:
        """Do nothing: nothing waits for the connection to open or close."""


class AutobahnAdapter(SocketReader, WebSocketServerProtocol):  # type: ignore[misc]
    """Parses frames and reports whole messages.

    A subclass passes the bytes that were read to `consume`, and fills in the hooks. Once
    ``ignore_input`` is true, nothing more is parsed.

    The slots are those of everything that a frame uses, here and in the subclasses. CPython lays
    slots out class by class, so that only slots of one class share their cache lines.
    """

    __slots__ = (
        "_acknowledgements",
        "_direct",
        "_last_life",
        "_out",
        "_out_payload",
        "_out_size",
        "_partial",
        "current_frame",
        "data",
        "factory",
        "ignore_input",
        "inside_message",
        "message_since",
        "outbox",
        "stage",
        "writable",
    )

    log = _Mute()
    is_open = is_closed = _Unawaited()
    websocket_version = 13
    maxMessagePayloadSize: int
    _message: bytes | bytearray

    def __init__(self, factory: AutobahnFactory) -> None:
        # Autobahn's would make two Deferreds and three containers that stay unused.
        self.factory = factory
        self.stage = Stage.OPENING
        self.ignore_input = False
        self.message_since: float | None = None
        """When the incomplete message began, noted by the subclass; None between messages."""
        self.state = self.STATE_CONNECTING
        self.data = b""
        self.current_frame: FrameHeader | None = None  # type: ignore[assignment]
        self.inside_message = False
        self._partial: PartialFrame | None = None
        self._message = b""

    @functools.cached_property
    def utf8validator(self) -> Utf8Validator:  # type: ignore[override]
        """Autobahn's validator for text messages that it parses; most connections need none."""
        return Utf8Validator()

    # Hooks for the subclass

    def message(self, payload: bytes) -> None:
        """Handle a whole UTF-8 message; called only while the connection serves."""
        raise NotImplementedError

    def binary_message(self, payload: bytes) -> None:
        """Handle a whole BINARY message; called only while the connection serves."""
        raise NotImplementedError

    def bug(self) -> None:
        """Close the connection: a hook has raised the exception that is being handled."""
        raise NotImplementedError

    def violated(self, code: int, reason: str) -> None:
        """Fail the connection: the peer has violated the protocol, and further input is ignored."""
        raise NotImplementedError

    def oversized(self, size: int, limit: int) -> None:
        """Note that a message would have ``size`` bytes; `violated` follows."""

    def peer_closed(self, code: int | None) -> None:
        """Close the transport: the closing handshake is complete, and further input is ignored.

        ``code`` is the code in the peer's close frame, if it has one.
        """
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        """Write a control frame, between messages."""
        raise NotImplementedError

    def _contained(self, hook: Callable[..., None], *args: object) -> None:
        """Call a hook; an error in it is logged and costs only this connection."""
        try:
            hook(*args)
        except Exception:
            self.bug()

    # The stream

    def begin(self) -> None:
        """Expect frames from now on: the handshake is over."""
        self.state = self.STATE_OPEN
        self.stage = Stage.SERVING

    def consume(self, data: bytes) -> bool:
        """Parse bytes and call the hooks for whole messages; return whether one is incomplete.

        The lane takes what nearly all traffic is: final, masked TEXT frames within the limits,
        between messages, on a connection that serves. Autobahn gets everything else (fragments,
        control frames, other opcodes, violations), with the stream where the frame begins.
        """
        if self._partial is not None:
            data = self._continue(self._partial, data)
        if self.current_frame is None and not self.inside_message and self.stage is Stage.SERVING:
            if self.data:
                data, self.data = self.data + data, b""
            data = self._run_lane(data)
        if data and not self.ignore_input:
            self.data += data
            # As Autobahn's consumeData does, which stops for a state but not for a violation.
            while self.processData() and not self.ignore_input:
                pass
            return self.within_message
        return self._partial is not None

    @property
    def within_message(self) -> bool:
        """Whether a frame or a fragmented message has begun and not ended."""
        return (
            self._partial is not None
            or self.current_frame is not None
            or self.inside_message
            or bool(self.data)
        )

    # The lane

    def _run_lane(self, data: bytes) -> bytes:
        """Handle whole common frames and begin an incomplete one; return the remaining bytes."""
        at, end = 0, len(data)
        while end - at > 5 and data[at] == TEXT_FINAL and data[at + 1] & MASKED:
            size = data[at + 1] - MASKED
            body = at + 6
            if size > MAX_7_BIT:
                # A length in more bytes than it needs is a violation.
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
            self.message_since = None
            try:
                self.message(payload)
            except Exception:
                self.bug()
            if self.stage is not Stage.SERVING:
                break
        return data[at:] if at else data

    def _continue(self, partial: PartialFrame, data: bytes) -> bytes:
        """Add to the frame that has begun; return the bytes behind it."""
        left = partial.size - len(partial.payload)
        serving = self.stage is Stage.SERVING
        if not serving or not partial.take(data[:left]):
            self._leave_lane(partial)
            return data[left:] if serving else data
        if left <= len(data):
            self._partial = None
            self.message_since = None
            self._contained(self.message, partial.payload)
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

    # Messages that Autobahn parses

    def onMessageBegin(self, isBinary: bool) -> None:
        """Begin a message."""
        self.message_is_binary = isBinary
        self._message = b""
        self.message_data_total_length = 0

    def onMessageFrameData(self, payload: bytes) -> None:
        """Add to a message.

        Autobahn keeps a list of pieces, each of one byte or even empty: 26 times the memory of the
        message.
        """
        if not payload:
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
        """Finish a frame; its message's deadline ends with its last frame."""
        stop: bool | None = super().onFrameEnd()
        if not self.inside_message:
            self.message_since = None
        return stop

    def onMessageEnd(self) -> None:
        """Deliver a whole message.

        Autobahn makes a Deferred for each message, and delivers messages after a close.
        """
        payload, self._message = bytes(self._message), b""
        if self.stage is not Stage.SERVING:
            return
        hook = self.binary_message if self.message_is_binary else self.message
        self._contained(hook, payload)

    # Control frames, and the end

    def sendData(
        self,
        data: bytes,
        sync: bool = False,  # noqa: ARG002
        chopsize: int | None = None,  # noqa: ARG002
    ) -> None:
        """Write a control frame of Autobahn's."""
        self.write(data)

    def send_close(self, close: Close) -> None:
        """Send a close frame, unless one has been sent."""
        # Autobahn's sendClose refuses most codes; sendCloseFrame sends them all.
        self.sendCloseFrame(code=close.code, reasonUtf8=close.reason.encode()[:_MAX_REASON])

    def onCloseFrame(self, code: int, reasonRaw: bytes) -> bool | None:
        """Handle a close frame from the peer: the answer to ours, or the first."""
        lacking = code in _MORE_CODES
        if lacking and (reasonRaw is None or is_utf8(reasonRaw)):
            self.sendCloseFrame(code=code, reasonUtf8=reasonRaw, isReply=True)
        # Autobahn refuses a reason that is not UTF-8.
        known = close_codes.NORMAL if lacking else code
        stop: bool | None = super().onCloseFrame(known, reasonRaw)
        if not stop:
            self.peer_closed(code if lacking else self.remoteCloseCode)
        return stop

    def _closeConnection(self, abort: bool = False) -> None:  # noqa: ARG002
        # Autobahn would abort even after a clean closing handshake, and the reset could overtake
        # bytes that the peer has not read. `peer_closed` closes the transport.
        self.ignore_input = True

    def _max_message_size_exceeded(self, msg_size: int, max_msg_size: int, reason: str) -> None:
        if self.stage is Stage.SERVING:
            self._contained(self.oversized, msg_size, max_msg_size)
        super()._max_message_size_exceeded(msg_size, max_msg_size, reason)

    def _fail_connection(self, code: int = 1002, reason: str = "") -> None:
        # Autobahn would drop the socket, so that the peer sees 1006, or with failByDrop=False
        # parse on and keep what it parses.
        self.ignore_input = True
        self.violated(code, reason)

    def connectionLost(self, reason: Failure) -> None:  # type: ignore[override]  # noqa: ARG002
        """Forget what was read. Autobahn's own method logs, and calls ``onClose``."""
        self.state = self.STATE_CLOSED
        self.ignore_input = True
        self._partial = None


class AutobahnFactory(WebSocketServerFactory):
    """Makes connections of one class, with Autobahn's options for all of them set once."""

    log = _Mute()
    noisy = False
    protocol: type[AutobahnAdapter]

    def __init__(
        self, protocol: type[AutobahnAdapter], clock: IReactorTime, max_message_bytes: int
    ) -> None:
        # Autobahn requires a reactor, and imports the global one if it gets none.
        super().__init__(server="", reactor=clock)
        # One call with all options, because each call resets those that it does not name.
        self.setProtocolOptions(
            versions=[13],
            webStatus=False,
            maxMessagePayloadSize=max_message_bytes,
            # Makes the parser stop at the first violation.
            failByDrop=True,
            echoCloseCodeReason=True,
            # No timers: they round to whole seconds and run on the global reactor.
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            autoPingInterval=0,
            allowNullOrigin=True,
        )
        self.protocol = protocol


def settled(protocol: type[AutobahnAdapter], factory: AutobahnFactory) -> dict[str, object]:
    """Return the attributes that Autobahn would set on every connection, for their class.

    They are some 80: options, flags, timers that are never set. An instance gets its own when it
    sets one. The validator is left out, because it keeps state. Nothing else that does is used:
    not the queue for slow sending, nor the statistics.
    """
    pattern: Any = protocol(factory)
    WebSocketProtocol._connectionMade(pattern)
    own: Mapping[str, object] = vars(pattern)
    return {name: value for name, value in own.items() if name != "utf8validator"}
