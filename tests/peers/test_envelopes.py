"""Envelopes are JSON objects with the fields of the contract."""

from __future__ import annotations

import json

from tests.peers.envelopes import directive, envelope, numbered
from tests.unit.bench import Cases

CONN_ID = 'client-"\\-1'


class EnvelopeTests(Cases):
    def test_envelope(self) -> None:
        """An envelope has a conn_id and the frame, byte for byte."""
        data = envelope(CONN_ID, b"[1,  2]")
        self.assertEqual(json.loads(data), {"conn_id": CONN_ID, "frame": [1, 2]})
        self.assertTrue(data.endswith(b'"frame":[1,  2]}'))

    def test_directive(self) -> None:
        """A directive has a code, and a last frame if there is one."""
        self.assertEqual(
            json.loads(directive(CONN_ID, 4401)), {"conn_id": CONN_ID, "close_code": 4401}
        )
        self.assertEqual(
            json.loads(directive(CONN_ID, 1000, b"null")),
            {"conn_id": CONN_ID, "frame": None, "close_code": 1000},
        )

    def test_numbered(self) -> None:
        """A numbered frame has the size asked for, or that of its content."""
        self.assertEqual(len(numbered("a", 7, 500)), 500)
        self.assertEqual(json.loads(numbered("a", 7)), {"from": "a", "n": 7, "pad": ""})
