"""The events: their names and levels as the contract lists them, and which of them can flood."""

from __future__ import annotations

from pyrycode_relay.events import FIELDS, Event, Level, LineLimit
from tests.unit.bench import Cases, cases

CONTRACT = {
    "server_claimed": Level.INFO,
    "server_id_conflict": Level.INFO,
    "server_id_takeover": Level.INFO,
    "server_released": Level.INFO,
    "server_expired": Level.INFO,
    "phone_registered": Level.INFO,
    "phone_register_no_server": Level.INFO,
    "phone_register_at_cap": Level.INFO,
    "phone_unregistered": Level.INFO,
    "phone_frame_refused": Level.WARN,
    "binary_envelope_refused": Level.WARN,
    "message_too_big": Level.WARN,
    "binary_unknown_conn_id": Level.WARN,
    "push_wake_sent": Level.INFO,
    "push_wake_failed": Level.WARN,
    "push_wake_dropped": Level.WARN,
    "rate_limited": Level.WARN,
    "connection_cap_reached": Level.WARN,
    "tls_reloaded": Level.INFO,
    "tls_reload_failed": Level.WARN,
    "tls_expires": Level.WARN,
    "tls_handshake_failed": Level.DEBUG,
    "starting": Level.INFO,
    "listening": Level.INFO,
    "acme_listening": Level.INFO,
    "admin_listening": Level.INFO,
    "ready": Level.INFO,
    "draining": Level.INFO,
    "drained": Level.INFO,
}
FLOODING = {
    "proxy_refused",
    "phone_frame_refused",
    "message_too_big",
    "binary_envelope_refused",
    "binary_unknown_conn_id",
    "binary_late_envelope",
    "push_wake_dropped",
    "rate_limited",
    "connection_cap_reached",
    "accept_failed",
    "tls_handshake_failed",
}
STRANGERS = {"path_unknown", "request_refused"}
"""Events that anybody on the internet causes, with any number of addresses."""
HASHED = {"token_fp", "message_id"}
"""Fields with such a word in their name: a push token's fingerprint, and the provider's own name
for a message."""
BY_LABEL = {event.label: event for event in Event}


class EventTests(Cases):
    @cases({label: (label, level) for label, level in CONTRACT.items()})
    def test_level(self, label: str, level: Level) -> None:
        """An event of the contract exists, at the contract's level."""
        self.assertIs(BY_LABEL[label].level, level)

    def test_apart(self) -> None:
        """No two events have one name, and each is named as it is called."""
        self.assertEqual(len(BY_LABEL), len(Event.__members__))
        self.assertEqual([event.name.lower() for event in Event], [event.label for event in Event])

    @cases({event.label: (event,) for event in Event})
    def test_line_limit(self, event: Event) -> None:
        """Just those events are limited for each peer that the contract says are, and those that a
        scanner causes for all peers together."""
        expected = LineLimit.NONE
        if event.label in FLOODING:
            expected = LineLimit.ADDRESS
        elif event.label in STRANGERS:
            expected = LineLimit.TOTAL
        self.assertEqual(event.line_limit, expected)

    def test_levels_in_order(self) -> None:
        """Levels compare by how loud they are."""
        self.assertEqual(sorted(Level), [Level.DEBUG, Level.INFO, Level.WARN, Level.ERROR])

    def test_no_name_for_secrets(self) -> None:
        """No field could be meant for a payload, a token, a header or a query."""
        for word in ("token", "payload", "frame_", "header", "agent", "query", "body", "message"):
            self.assertFalse([name for name in FIELDS - HASHED if word in name], word)
