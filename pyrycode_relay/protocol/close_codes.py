"""Close codes and reasons, and the causes that end a connection.

Source: the table of close codes in ``docs/protocol.md``. Reasons are literals: they never carry
an id, an address or anything else that a peer sent.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class Close(NamedTuple):
    """The content of a close frame: a status code (RFC 6455, section 7.4) and a reason."""

    code: int
    reason: str


class Initiator(enum.Enum):
    """The party that ended a connection; the value is the metric label."""

    RELAY = "relay"
    PEER = "peer"
    NETWORK = "network"
    BINARY = "binary"
    """A binary that directed the relay to close its phone."""


class FrameFault(enum.Enum):
    """Why the relay refused what a phone sent; the value is the metric label."""

    NOT_JSON = "not_json"
    NOT_UTF8 = "not_utf8"
    TOO_BIG = "too_big"
    TOO_SLOW = "too_slow"
    PROTOCOL = "protocol"


@enum.unique
class EndCause(enum.Enum):
    """Why a connection ended: who ended it, the close frame, and the text for the log.

    ``sends`` is the close frame of this cause. It is None if there is no frame, or if the frame
    depends on the peer. The log shows the frame's reason unless the cause has a text.
    ``frame_fault`` is set if the cause is something that the peer sent.
    """

    GRACE_EXPIRED = (Initiator.RELAY, Close(1000, ""), "closed by relay")
    SHUTTING_DOWN = (Initiator.RELAY, Close(1001, "shutting down"))
    NOT_JSON = (Initiator.RELAY, Close(1007, "frame is not valid JSON"), "", FrameFault.NOT_JSON)
    NOT_UTF8 = (Initiator.RELAY, Close(1007, "message is not valid UTF-8"), "", FrameFault.NOT_UTF8)
    MESSAGE_TIMEOUT = (
        Initiator.RELAY,
        Close(1008, "message not completed in time"),
        "",
        FrameFault.TOO_SLOW,
    )
    HEARTBEAT_TIMEOUT = (Initiator.RELAY, Close(1011, "heartbeat timeout"))
    PHONE_BACKLOG_FULL = (Initiator.RELAY, Close(1011, "phone backlog full"))
    PHONE_WRITE_STALLED = (Initiator.RELAY, Close(1011, "phone write stalled"))
    BINARY_BACKLOG_FULL = (Initiator.RELAY, Close(1011, "binary backlog full"))
    BINARY_WRITE_STALLED = (Initiator.RELAY, Close(1011, "binary write stalled"))
    INTERNAL_ERROR = (Initiator.RELAY, Close(1011, "internal error"))
    RECLAIMED = (Initiator.RELAY, Close(4404, "binary reclaimed server-id"))
    NO_SERVER = (Initiator.RELAY, Close(4404, "no server with that id"))
    CONFLICT = (Initiator.RELAY, Close(4409, "server-id already claimed"))
    AT_CAP = (Initiator.RELAY, Close(4429, "too many phones for server-id"))
    PROTOCOL_ERROR = (Initiator.RELAY, None, "protocol error", FrameFault.PROTOCOL)
    """A violation of RFC 6455. `violation` returns this cause or one of the next two."""
    PROTOCOL_NOT_UTF8 = (Initiator.RELAY, None, "protocol error", FrameFault.NOT_UTF8)
    PROTOCOL_TOO_BIG = (Initiator.RELAY, None, "protocol error", FrameFault.TOO_BIG)
    CLOSED_BY_BINARY = (Initiator.BINARY, None, "closed by binary")
    """The binary's directive sets the code; see `for_directive`."""
    CLOSED_BY_PEER = (Initiator.PEER, None, "closed by peer")
    CONNECTION_LOST = (Initiator.NETWORK, None, "connection lost")

    def __init__(
        self,
        initiator: Initiator,
        sends: Close | None,
        text: str = "",
        frame_fault: FrameFault | None = None,
    ) -> None:
        self.initiator = initiator
        self.sends = sends
        self.text = text or (sends.reason if sends else "")
        self.frame_fault = frame_fault

    @property
    def close(self) -> Close:
        """The close frame of this cause. Raises `ValueError` if it has none."""
        if self.sends is None:
            raise ValueError(f"{self.name} has no close frame of its own")
        return self.sends

    def __str__(self) -> str:
        return self.text


class Refusal(enum.Enum):
    """Why a phone cannot be registered; the value is the cause of its close."""

    NO_SERVER = EndCause.NO_SERVER
    AT_CAP = EndCause.AT_CAP


_VIOLATIONS: Final = {1007: EndCause.PROTOCOL_NOT_UTF8, 1009: EndCause.PROTOCOL_TOO_BIG}


def violation(code: int) -> EndCause:
    """Return the cause of a protocol violation that the relay answers with ``code``."""
    return _VIOLATIONS.get(code, EndCause.PROTOCOL_ERROR)


NORMAL: Final = 1000
GOING_AWAY: Final = 1001
"""Code of the close notice if a phone left without a code."""

MIN_DIRECTIVE: Final = 1
MAX_DIRECTIVE: Final = 65535
"""A close directive's code is a 16-bit number; anything else is a malformed envelope."""

# Codes that are legal in a close frame by RFC 6455, section 7.4, and the IANA registry.
_LEGAL_REGISTERED: Final = frozenset(
    {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}
)

KNOWN: Final = _LEGAL_REGISTERED | {4401, 4404, 4409, 4421, 4426, 4429}
"""The codes that the IANA registry or the relay's protocol defines."""


def for_directive(code: int) -> Close:
    """Return the close frame for a binary's directive with ``code`` (1..65535).

    A code that is illegal in a close frame becomes 1000: the phone is closed anyway.
    """
    legal = code in _LEGAL_REGISTERED or 3000 <= code <= 4999
    return Close(code if legal else NORMAL, "")
