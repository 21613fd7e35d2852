"""How a connection to a relay ends, and what a client does then; see `docs/clients.md`."""

from __future__ import annotations

import enum
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass

from websockets.exceptions import ConnectionClosed, InvalidStatus


class Retry(enum.Enum):
    """What a client does after the end of a connection."""

    AT_ONCE = enum.auto()
    """Connect again without a wait, unless the connection before did not last either."""
    BACKOFF = enum.auto()
    NEVER = enum.auto()


@dataclass(frozen=True)
class End:
    """How a connection ended, or why there was none."""

    retry: Retry
    text: str
    least_wait: float = 0.0
    """Seconds that the relay asks the client to wait."""


Closes = Mapping[int | tuple[int, str], tuple[Retry, str]]
"""What to do at a close code, or at a code with this reason; and its meaning."""

CLOSES: Closes = {
    1001: (Retry.BACKOFF, "the relay shuts down or restarts"),
    1002: (Retry.NEVER, "this client violated the WebSocket protocol"),
    1007: (Retry.NEVER, "this client sent a message that is not valid"),
    1008: (Retry.BACKOFF, "a message was not completed in time"),
    1009: (Retry.NEVER, "this client sent a message that is too big"),
    1011: (Retry.BACKOFF, "this connection was too slow, or gave no sign of life"),
}
"""The close codes that daemons and phones have in common."""

STATUSES: Mapping[int, tuple[Retry, str]] = {
    400: (Retry.NEVER, "a header is missing or invalid"),
    401: (Retry.BACKOFF, "the relay wants a credential"),
    403: (Retry.BACKOFF, "the relay refuses the credential"),
    404: (Retry.NEVER, "there is no relay at this URL"),
    405: (Retry.NEVER, "the request is not a GET"),
    421: (Retry.NEVER, "the relay does not serve this host name"),
    426: (Retry.NEVER, "the request is no upgrade; a proxy may remove its headers"),
    429: (Retry.BACKOFF, "too many connections from this address"),
    503: (Retry.BACKOFF, "the relay is full or shuts down"),
}
"""HTTP statuses in place of the upgrade."""

LONGEST_RETRY_AFTER = 3600


def closed(error: ConnectionClosed, closes: Closes) -> tuple[str, End]:
    """Return how the relay closed the connection, and what to do."""
    frame = error.rcvd
    if frame is None:
        return "no close frame", End(Retry.BACKOFF, "the connection broke")
    row = closes.get((frame.code, frame.reason)) or closes.get(frame.code)
    text = f"{frame.code} {frame.reason if frame.reason.isprintable() else '?'}".strip()
    return text, End(*(row or (Retry.BACKOFF, "this client does not know the code")))


def refused(error: InvalidStatus) -> End:
    """Return what to do when the answer is an HTTP status instead of an upgrade."""
    status = error.response.status_code
    # 500, 502 and 504 are those of a proxy whose relay restarts.
    other = (Retry.BACKOFF if status >= 500 else Retry.NEVER, "not an answer of a relay")
    retry, meaning = STATUSES.get(status, other)
    # The relay sends seconds. A date would be a proxy's, and is ignored.
    seconds = error.response.headers.get("Retry-After", "")
    least = int(seconds) if seconds.isascii() and seconds.isdecimal() and len(seconds) < 6 else 0
    return End(retry, f"HTTP status {status}, {meaning}", min(least, LONGEST_RETRY_AFTER))


def failed(error: BaseException) -> End:
    """Return why there is no answer. Each of these may pass: a network, a certificate."""
    if isinstance(error, ssl.SSLCertVerificationError):
        text = f"the certificate is refused: {error.verify_message}"
    elif isinstance(error, ssl.SSLError):
        text = "TLS fails; if this port does not speak TLS, the URL must begin with ws://"
    elif isinstance(error, socket.gaierror):
        text = f"the host name cannot be looked up: {error.strerror}"
    elif isinstance(error, ConnectionRefusedError):
        text = "the connection is refused; is the relay running?"
    elif isinstance(error, TimeoutError):
        text = "the relay does not answer"
    elif isinstance(error, OSError):
        text = f"there is no connection: {error.strerror or error}"
    else:
        text = "the answer is not HTTP; if this port speaks TLS, the URL must begin with wss://"
    return End(Retry.BACKOFF, text)
