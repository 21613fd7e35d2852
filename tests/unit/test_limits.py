"""The numbers of the contract."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

from pyrycode_relay.limits import ENVELOPE_ALLOWANCE, Limits, OnReclaim
from pyrycode_relay.protocol.envelope import SUFFIX, close_notice, data_prefix
from pyrycode_relay.protocol.header_gate import MAX_SERVER_ID
from tests.unit.bench import Cases, cases

CONTRACT = {
    "grace": 30,
    "on_reclaim": OnReclaim.EVICT,
    "max_phones": 16,
    "max_message_bytes": 262_144,
    "outbox_bytes": 64 * 2**20,
    "hold_bytes": 2**20,
    "memory_budget": 256 * 2**20,
    "write_stall": 30,
    "message_timeout": 30,
    "heartbeat_interval": 30,
    "heartbeat_timeout": 30,
    "probe_timeout": 10,
    "close_timeout": 5,
    "header_timeout": 5,
    "drain_timeout": 10,
    "upgrade_rate": 10,
    "upgrade_burst": 20,
    "max_connections_per_address": 64,
    "max_connections": 0,
    "limits_dry_run": False,
}
"""The defaults in the contract."""


class LimitsTests(Cases):
    @cases({name: (name, value) for name, value in CONTRACT.items()})
    def test_default(self, name: str, value: object) -> None:
        """A limit's default is the contract's."""
        self.assertEqual(getattr(Limits(), name), value)

    def test_frozen(self) -> None:
        """The limits of a running relay cannot change."""
        self.assertRaises(FrozenInstanceError, setattr, Limits(), "grace", 0)

    def test_envelope_allowance(self) -> None:
        """The longest envelope fits into the allowance, even if each of its bytes is escaped.

        So does everything that the relay itself puts around a frame.
        """
        self.assertEqual(ENVELOPE_ALLOWANCE, 4096)
        server_id = '"' * MAX_SERVER_ID
        conn_id = f"client-{server_id}-01234567"
        escaped = "".join(f"\\u{ord(each):04x}" for each in conn_id)
        longest = f'{{"conn_id":"{escaped}","frame":,"close_code":65535}}'
        self.assertLess(len(longest), ENVELOPE_ALLOWANCE)
        self.assertLess(len(data_prefix(conn_id) + SUFFIX), ENVELOPE_ALLOWANCE)
        self.assertLess(len(close_notice(conn_id, 65535)), ENVELOPE_ALLOWANCE)
