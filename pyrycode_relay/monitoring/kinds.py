"""The kinds of findings on the status page: how urgent each is, and what to do about it."""

from __future__ import annotations

import enum


class Severity(enum.Enum):
    """How urgent a finding is: the same words as in the alerts."""

    PAGE = "page"
    """Wakes somebody: clients cannot connect, or soon cannot."""
    WARN = "warn"
    """Can wait until morning."""


class Kind(enum.Enum):
    """A kind of finding, the worst first: its name in ``status.json``, its severity, what to do.

    ``section`` is the heading in ``docs/troubleshooting.md`` that has more.
    """

    CERTIFICATE_MISSING = (
        "certificate_missing",
        Severity.PAGE,
        "The certificate",
        (
            "No client can connect over TLS until there is a certificate. Check that port 80 of "
            "the name leads to this machine, and that the relay reaches the CA."
        ),
    )
    CERTIFICATE_ENDS_NOW = (
        "certificate_ends_now",
        Severity.PAGE,
        "The certificate",
        (
            "Renew the certificate today: after its end no client can connect. The relay uses "
            "new files within seconds."
        ),
    )
    ACCEPT_FAILURES = (
        "accept_failures",
        Severity.PAGE,
        "503 on upgrades",
        "Raise LimitNOFILE= of the service and restart it. If memory ran out, free some.",
    )
    CONNECTIONS = (
        "connections",
        Severity.PAGE,
        "503 on upgrades",
        (
            "Raise --max-connections, or LimitNOFILE= of the service if that bounds them, and "
            "provide the memory. At the limit, new connections get 503."
        ),
    )
    RESERVE = (
        "reserve",
        Severity.PAGE,
        "503 on upgrades",
        (
            "Phones get 503 now; daemons still connect. Raise --max-connections, or "
            "LimitNOFILE= of the service if that bounds them."
        ),
    )
    FILES = (
        "files",
        Severity.PAGE,
        "503 on upgrades",
        "Raise LimitNOFILE= of the service and restart it.",
    )
    MEMORY = (
        "memory",
        Severity.PAGE,
        "Memory",
        (
            "Give the relay more memory, or lower --memory-budget and --max-connections. At the "
            "limit the kernel ends the process."
        ),
    )
    BINARIES_GONE = (
        "binaries_gone",
        Severity.PAGE,
        "Everybody reconnects at once",
        (
            "Look for server_released in the log. Check the network between the daemons and the "
            "relay, and whether they trust its certificate."
        ),
    )
    PUSH_PAUSED = (
        "push_paused",
        Severity.PAGE,
        "Phones do not wake",
        (
            "Sleeping phones are not woken. push_wake_failed in the log says why. Often it is "
            "the provider's credentials, or outgoing port 443."
        ),
    )
    DRAINING = (
        "draining",
        Severity.WARN,
        "It does not stop",
        (
            "The relay stops. If nobody stops or restarts it on purpose, look at its service "
            "manager's log."
        ),
    )
    CERTIFICATE_ENDS = (
        "certificate_ends",
        Severity.WARN,
        "The certificate",
        (
            "Find out why the certificate has not been renewed. The relay uses new files within "
            "seconds."
        ),
    )
    CERTIFICATE_UNREADABLE = (
        "certificate_unreadable",
        Severity.WARN,
        "The certificate",
        (
            "Mend the file. The relay serves the certificate that it had before, and reads the "
            "file again by itself."
        ),
    )
    CERTIFICATE_NOT_OBTAINED = (
        "certificate_not_obtained",
        Severity.WARN,
        "The certificate",
        (
            "Check that port 80 of the name leads to this machine, and that the relay reaches "
            "the CA. The relay tries again by itself; SIGHUP makes it try now."
        ),
    )
    STALL = (
        "stall",
        Severity.WARN,
        "The relay is late",
        (
            "Something stopped the relay: a busy machine, a paused process or a log that is not "
            "read."
        ),
    )
    LAG = (
        "lag",
        Severity.WARN,
        "The relay is late",
        (
            "The relay has more work than one core can do, or does not get a core. Compare the "
            "CPU below, and the busiest server-ids."
        ),
    )
    SHED = (
        "queues_shed",
        Severity.WARN,
        "Memory",
        "Raise --memory-budget, or lower --outbox-bytes and --hold-bytes.",
    )
    QUEUES = (
        "queues",
        Severity.WARN,
        "Memory",
        (
            "Peers read more slowly than others send. Over --memory-budget the relay closes the "
            "connections whose queues would take longest to drain."
        ),
    )
    BACKLOG_CLOSES = (
        "backlog_closes",
        Severity.WARN,
        "Phones or daemons get 1011",
        (
            "A daemon sends more than its phone's network takes. For many phones, look at the "
            "busiest server-ids; or raise --outbox-bytes."
        ),
    )
    REFUSED_AT_LIMIT = (
        "refused_at_limit",
        Severity.WARN,
        "503 on upgrades",
        (
            "Look for connection_cap_reached in the log, which names the limit and the address. "
            "If it is a proxy's, name the proxy in --trusted-proxy."
        ),
    )
    RATE_LIMITED = (
        "rate_limited",
        Severity.WARN,
        "Too many 429",
        (
            "Look for rate_limited in the log, which names the address. If it is a proxy's, "
            "name the proxy in --trusted-proxy; if many people share it, raise --upgrade-burst."
        ),
    )
    BAD_REQUESTS = (
        "bad_requests",
        Severity.WARN,
        "A client is refused",
        (
            "Look for request_refused in the log, which names the mistake and the address. A "
            "client, or a proxy in between, drops or changes headers."
        ),
    )
    CONFLICTS = (
        "conflicts",
        Severity.WARN,
        "A daemon gets 4409",
        (
            "Two daemons use one server-id. server_id_conflict in the log names the id and the "
            "newcomer's address. Give each daemon its own id."
        ),
    )
    PROBES = (
        "probes",
        Severity.WARN,
        "Many probes",
        (
            "A health check runs in a loop, or somebody keeps out of the log by a probe's "
            "server-id. The log shows these events at --log-level=debug."
        ),
    )
    RECONNECTS = (
        "reconnects",
        Severity.WARN,
        "Everybody reconnects at once",
        (
            "Wait, if a network or the relay has just come back. If it goes on, something cuts "
            "the connections: look at the closes by code."
        ),
    )
    HEARTBEATS = (
        "heartbeats",
        Severity.WARN,
        "Everybody reconnects at once",
        (
            "A network in between drops idle connections: lower --heartbeat-interval. Or the "
            "relay is too late to read: compare its lag."
        ),
    )
    PUSH_FAILS = (
        "push_fails",
        Severity.WARN,
        "Phones do not wake",
        (
            "Look for push_wake_failed in the log, which says why. Often it is the provider's "
            "credentials, or outgoing port 443."
        ),
    )
    PUSH_REFUSED = (
        "push_refused",
        Severity.WARN,
        "Phones do not wake",
        (
            "Look for push_wake_dropped in the log, which names the server-id. One daemon asks "
            "for too many wakes, or the provider is slow."
        ),
    )

    def __init__(self, label: str, severity: Severity, section: str, advice: str) -> None:
        self.label = label
        self.severity = severity
        self.section = section
        self.advice = advice
