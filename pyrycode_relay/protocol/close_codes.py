"""Close codes and reasons, all of them, and which registry outcome leads to which.

Source: the table of close codes in ``docs/protocol.md``. Reasons are literals: none ever
carries an id, an address or anything else that a peer sent.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple


class Close(NamedTuple):
    """What a close frame says: a status code (RFC 6455, section 7.4) and a reason."""

    code: int
    reason: str


GRACE_EXPIRED: Final = Close(1000, "")
SHUTTING_DOWN: Final = Close(1001, "shutting down")
NOT_JSON: Final = Close(1007, "frame is not valid JSON")
NOT_UTF8: Final = Close(1007, "message is not valid UTF-8")
MESSAGE_TIMEOUT: Final = Close(1008, "message not completed in time")
HEARTBEAT_TIMEOUT: Final = Close(1011, "heartbeat timeout")
PHONE_BACKLOG_FULL: Final = Close(1011, "phone backlog full")
PHONE_WRITE_STALLED: Final = Close(1011, "phone write stalled")
BINARY_BACKLOG_FULL: Final = Close(1011, "binary backlog full")
BINARY_WRITE_STALLED: Final = Close(1011, "binary write stalled")
INTERNAL_ERROR: Final = Close(1011, "internal error")
RECLAIMED: Final = Close(4404, "binary reclaimed server-id")
CONFLICT: Final = Close(4409, "server-id already claimed")


class Refusal(enum.Enum):
    """Why a phone gets no place, and the close that tells it so."""

    NO_SERVER = Close(4404, "no server with that id")
    AT_CAP = Close(4429, "too many phones for server-id")


NORMAL: Final = 1000
GOING_AWAY: Final = 1001
"""What a close notice says when a phone went without a code of its own."""

MIN_DIRECTIVE: Final = 1
MAX_DIRECTIVE: Final = 65535
"""A close directive's code is a 16-bit number; anything else is a malformed envelope."""

# RFC 6455, section 7.4, and the IANA registry: what may stand in a close frame.
_LEGAL_REGISTERED: Final = frozenset(
    {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}
)

KNOWN: Final = _LEGAL_REGISTERED | {4401, 4404, 4409, 4421, 4426, 4429}
"""The codes with a meaning to relay, binary and phone; any other is somebody's own."""


def directed(code: int) -> Close:
    """Return the close that a binary's directive ``code`` (1..65535) leads to.

    A code that may not stand in a close frame becomes 1000: the phone is closed all the same.
    """
    legal = code in _LEGAL_REGISTERED or 3000 <= code <= 4999
    return Close(code if legal else NORMAL, "")
