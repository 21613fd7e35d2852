"""The server-ids of probes pass the header gate, and are told from all others."""

from __future__ import annotations

from pyrycode_relay.protocol import header_gate
from pyrycode_relay.protocol.probe_ids import PREFIX, is_probe
from tests.unit.bench import Cases


class ProbeIdTests(Cases):
    def test_prefix(self) -> None:
        """Only the beginning counts, as it is written."""
        self.assertTrue(is_probe(f"{PREFIX}0123456789abcdef"))
        for other in ("home", "", PREFIX[:-1], f"x{PREFIX}", PREFIX.upper()):
            self.assertFalse(is_probe(other), other)

    def test_gate(self) -> None:
        """A probe's server-id is a server-id like any other."""
        server_id = f"{PREFIX}0123456789abcdef"
        headers = {header_gate.SERVER_ID: server_id, "x-pyrycode-version": "1", "user-agent": "x"}
        header_gate.gate_binary(headers)
        self.assertEqual(header_gate.server_id(headers), server_id)
