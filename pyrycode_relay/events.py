"""Events: their names, their levels, and the closed list of their fields.

Source: "Logging" in ``docs/protocol.md``. The endpoints report to an `Observer`; the log and the
metrics are observers. The registry reports nothing: it returns what happened.
"""

from __future__ import annotations

import enum
from typing import Final, Protocol

FIELDS: Final = frozenset(
    {
        "server_id",
        "conn_id",
        "device_name",
        "remote",
        "holder",
        "binary_version",
        "close_code",
        "err",
        "path",
        "duration",
        "frames",
        "bytes",
        "size",
        "limit",
        "listen",
        "url",
        "authority",
        "mode",
        "capacity",
        "binaries",
        "phones",
        "aborted",
        "certificates",
        "retry_in",
        "token_fp",
        "message_id",
        "enforcement",
        "version",
        "reason",
    }
)
"""Every field name that an event may carry. Payloads, tokens, whole headers, user-agents and query
strings have no name here, so they cannot be logged. A test holds the source to this list."""


class Level(enum.IntEnum):
    """Severity of an event."""

    DEBUG = 10
    INFO = 20
    WARN = 30
    ERROR = 40


class Event(enum.Enum):
    """An event: its name in the log, its level, and whether a peer can repeat it at will.

    If ``floods`` is true, the log limits the event's lines for each address.
    """

    STARTING = ("starting", Level.INFO, False)
    LISTENING = ("listening", Level.INFO, False)
    ACME_LISTENING = ("acme_listening", Level.INFO, False)
    ADMIN_LISTENING = ("admin_listening", Level.INFO, False)
    READY = ("ready", Level.INFO, False)
    DRAINING = ("draining", Level.INFO, False)
    DRAINED = ("drained", Level.INFO, False)
    NVX_MISSING = ("nvx_missing", Level.WARN, False)
    TLS_RELOADED = ("tls_reloaded", Level.INFO, False)
    TLS_RELOAD_FAILED = ("tls_reload_failed", Level.WARN, False)
    TLS_EXPIRES = ("tls_expires", Level.WARN, False)
    TLS_HANDSHAKE_FAILED = ("tls_handshake_failed", Level.DEBUG, True)
    ACME_ORDERING = ("acme_ordering", Level.INFO, False)
    ACME_ISSUED = ("acme_issued", Level.INFO, False)
    ACME_FAILED = ("acme_failed", Level.WARN, False)
    ACME_NO_ADVICE = ("acme_no_advice", Level.DEBUG, False)
    CERT_CACHE_TIGHTENED = ("cert_cache_tightened", Level.WARN, False)
    PROXY_REFUSED = ("proxy_refused", Level.WARN, True)
    REQUEST_REFUSED = ("request_refused", Level.DEBUG, False)
    RATE_LIMITED = ("rate_limited", Level.WARN, True)
    CONNECTION_CAP_REACHED = ("connection_cap_reached", Level.WARN, True)
    ACCEPT_FAILED = ("accept_failed", Level.WARN, True)
    SERVER_CLAIMED = ("server_claimed", Level.INFO, False)
    SERVER_ID_CONFLICT = ("server_id_conflict", Level.INFO, False)
    SERVER_ID_TAKEOVER = ("server_id_takeover", Level.INFO, False)
    SERVER_RECLAIMED = ("server_reclaimed", Level.INFO, False)
    SERVER_RELEASED = ("server_released", Level.INFO, False)
    SERVER_EXPIRED = ("server_expired", Level.INFO, False)
    PHONE_REGISTERED = ("phone_registered", Level.INFO, False)
    PHONE_REGISTER_NO_SERVER = ("phone_register_no_server", Level.INFO, False)
    PHONE_REGISTER_AT_CAP = ("phone_register_at_cap", Level.INFO, False)
    PHONE_UNREGISTERED = ("phone_unregistered", Level.INFO, False)
    PHONE_CLOSED = ("phone_closed", Level.DEBUG, False)
    BINARY_CLOSED = ("binary_closed", Level.DEBUG, False)
    MESSAGE_TOO_BIG = ("message_too_big", Level.WARN, True)
    PHONE_FRAME_REFUSED = ("phone_frame_refused", Level.WARN, True)
    BINARY_ENVELOPE_REFUSED = ("binary_envelope_refused", Level.WARN, True)
    BINARY_UNKNOWN_CONN_ID = ("binary_unknown_conn_id", Level.WARN, True)
    PUSH_WAKE_SENT = ("push_wake_sent", Level.INFO, False)
    PUSH_WAKE_FAILED = ("push_wake_failed", Level.WARN, False)
    PUSH_WAKE_DROPPED = ("push_wake_dropped", Level.WARN, True)

    def __init__(self, label: str, level: Level, floods: bool) -> None:
        self.label = label
        self.level = level
        self.floods = floods


class Observer(Protocol):
    """A receiver of events, such as the log or the metrics."""

    def saw(self, event: Event, **fields: object) -> None:
        """Receive ``event``; the names of ``fields`` are all in `FIELDS`.

        A cause is a member of an enum; its ``str`` is the text for the log.
        """
