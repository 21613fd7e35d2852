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
        "id_hash",
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
        "lines",
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
        "worker",
        "workers",
        "pid",
        "certificates",
        "retry_in",
        "token_fp",
        "message_id",
        "enforcement",
        "version",
        "reason",
        "suppressed",
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


class LineLimit(enum.Enum):
    """How the log limits the lines of an event, if a peer can repeat the event at will."""

    NONE = "not limited"
    ADDRESS = "for each address"
    TOTAL = "for all addresses together"
    """For events that any stranger causes; the next line has the number of lines left out."""


class Event(enum.Enum):
    """An event: its name in the log, its level, and the limit on its lines."""

    STARTING = ("starting", Level.INFO, LineLimit.NONE)
    LISTENING = ("listening", Level.INFO, LineLimit.NONE)
    ACME_LISTENING = ("acme_listening", Level.INFO, LineLimit.NONE)
    ADMIN_LISTENING = ("admin_listening", Level.INFO, LineLimit.NONE)
    READY = ("ready", Level.INFO, LineLimit.NONE)
    DRAINING = ("draining", Level.INFO, LineLimit.NONE)
    DRAINED = ("drained", Level.INFO, LineLimit.NONE)
    LOG_LINES_DROPPED = ("log_lines_dropped", Level.WARN, LineLimit.NONE)
    LOG_REOPEN_FAILED = ("log_reopen_failed", Level.WARN, LineLimit.NONE)
    WORKER_READY = ("worker_ready", Level.INFO, LineLimit.NONE)
    WORKER_ENDED = ("worker_ended", Level.WARN, LineLimit.NONE)
    WORKER_LEFT = ("worker_left", Level.INFO, LineLimit.NONE)
    WORKER_KILLED = ("worker_killed", Level.WARN, LineLimit.NONE)
    WORKERS_FAILED = ("workers_failed", Level.ERROR, LineLimit.NONE)
    WORKERS_REPLACING = ("workers_replacing", Level.INFO, LineLimit.NONE)
    WORKERS_REPLACED = ("workers_replaced", Level.INFO, LineLimit.NONE)
    WORKERS_NOT_REPLACED = ("workers_not_replaced", Level.WARN, LineLimit.NONE)
    NVX_MISSING = ("nvx_missing", Level.WARN, LineLimit.NONE)
    TLS_RELOADED = ("tls_reloaded", Level.INFO, LineLimit.NONE)
    TLS_RELOAD_FAILED = ("tls_reload_failed", Level.WARN, LineLimit.NONE)
    TLS_EXPIRES = ("tls_expires", Level.WARN, LineLimit.NONE)
    TLS_HANDSHAKE_FAILED = ("tls_handshake_failed", Level.DEBUG, LineLimit.ADDRESS)
    ACME_ORDERING = ("acme_ordering", Level.INFO, LineLimit.NONE)
    ACME_ISSUED = ("acme_issued", Level.INFO, LineLimit.NONE)
    ACME_FAILED = ("acme_failed", Level.WARN, LineLimit.NONE)
    ACME_NO_ADVICE = ("acme_no_advice", Level.DEBUG, LineLimit.NONE)
    CERT_CACHE_TIGHTENED = ("cert_cache_tightened", Level.WARN, LineLimit.NONE)
    PROXY_REFUSED = ("proxy_refused", Level.WARN, LineLimit.ADDRESS)
    PATH_UNKNOWN = ("path_unknown", Level.INFO, LineLimit.TOTAL)
    REQUEST_REFUSED = ("request_refused", Level.INFO, LineLimit.TOTAL)
    RATE_LIMITED = ("rate_limited", Level.WARN, LineLimit.ADDRESS)
    CONNECTION_CAP_REACHED = ("connection_cap_reached", Level.WARN, LineLimit.ADDRESS)
    ACCEPT_FAILED = ("accept_failed", Level.WARN, LineLimit.ADDRESS)
    SERVER_CLAIMED = ("server_claimed", Level.INFO, LineLimit.NONE)
    SERVER_ID_CONFLICT = ("server_id_conflict", Level.INFO, LineLimit.NONE)
    SERVER_ID_TAKEOVER = ("server_id_takeover", Level.INFO, LineLimit.NONE)
    SERVER_RECLAIMED = ("server_reclaimed", Level.INFO, LineLimit.NONE)
    SERVER_RELEASED = ("server_released", Level.INFO, LineLimit.NONE)
    SERVER_EXPIRED = ("server_expired", Level.INFO, LineLimit.NONE)
    PHONE_REGISTERED = ("phone_registered", Level.INFO, LineLimit.NONE)
    PHONE_REGISTER_NO_SERVER = ("phone_register_no_server", Level.INFO, LineLimit.NONE)
    PHONE_REGISTER_AT_CAP = ("phone_register_at_cap", Level.INFO, LineLimit.NONE)
    PHONE_UNREGISTERED = ("phone_unregistered", Level.INFO, LineLimit.NONE)
    PHONE_CLOSED = ("phone_closed", Level.DEBUG, LineLimit.NONE)
    BINARY_CLOSED = ("binary_closed", Level.DEBUG, LineLimit.NONE)
    MESSAGE_TOO_BIG = ("message_too_big", Level.WARN, LineLimit.ADDRESS)
    PHONE_FRAME_REFUSED = ("phone_frame_refused", Level.WARN, LineLimit.ADDRESS)
    BINARY_ENVELOPE_REFUSED = ("binary_envelope_refused", Level.WARN, LineLimit.ADDRESS)
    BINARY_LATE_ENVELOPE = ("binary_late_envelope", Level.DEBUG, LineLimit.ADDRESS)
    BINARY_UNKNOWN_CONN_ID = ("binary_unknown_conn_id", Level.WARN, LineLimit.ADDRESS)
    PUSH_WAKE_SENT = ("push_wake_sent", Level.INFO, LineLimit.NONE)
    PUSH_WAKE_FAILED = ("push_wake_failed", Level.WARN, LineLimit.NONE)
    PUSH_WAKE_DROPPED = ("push_wake_dropped", Level.WARN, LineLimit.ADDRESS)

    def __init__(self, label: str, level: Level, line_limit: LineLimit) -> None:
        self.label = label
        self.level = level
        self.line_limit = line_limit


class Observer(Protocol):
    """A receiver of events, such as the log or the metrics."""

    def saw(self, event: Event, **fields: object) -> None:
        """Receive ``event``; the names of ``fields`` are all in `FIELDS`.

        A cause is a member of an enum; its ``str`` is the text for the log.
        """
