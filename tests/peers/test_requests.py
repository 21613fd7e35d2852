"""Requests for an upgrade, as another implementation reads them."""

from __future__ import annotations

from websockets.server import ServerProtocol

from tests.peers.reference import read_request
from tests.peers.requests import (
    TOKEN,
    binary_fields,
    binary_headers,
    phone_fields,
    upgrade_request,
)
from tests.unit.bench import Cases


class RequestTests(Cases):
    def test_handshake(self) -> None:
        """Another implementation takes the handshake."""
        request = read_request(upgrade_request("/v1/client?x", phone_fields("a")))
        self.assertEqual(ServerProtocol().accept(request).status_code, 101)
        self.assertEqual(request.path, "/v1/client?x")
        self.assertEqual(request.headers["X-Pyrycode-Token"], TOKEN)

    def test_fields_one_by_one(self) -> None:
        """Both ways to give the fields make the same request."""
        fields, headers = binary_fields("a"), binary_headers("a")
        self.assertEqual(upgrade_request("/", fields), upgrade_request(b"/", headers))

    def test_changes(self) -> None:
        """Fields of the handshake can be replaced and left out, and any can stand twice."""
        change = {b"Upgrade": b"h2c", b"Connection": None}
        data = upgrade_request("/", [(b"A", b"1"), (b"A", b"\xff")], method="PUT", change=change)
        self.assertTrue(data.startswith(b"PUT / HTTP/1.1\r\nHost: "))
        self.assertTrue(data.endswith(b"\r\nA: 1\r\nA: \xff\r\n\r\n"))
        self.assertIn(b"\r\nUpgrade: h2c\r\n", data)
        self.assertNotIn(b"Connection", data)
