"""The yardstick: a relay written the obvious way on stock Autobahn.

Same paths, headers and envelopes as the relay, but decoded and encoded with ``json``, kept in plain
dicts, sent with ``sendMessage``; no budgets, no deadlines, no grace. Figures are given as ratios
to this one, measured in the same run, because those hold where absolute times do not.
"""

from __future__ import annotations

import argparse
import json
import secrets
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.types import ConnectionDeny
from twisted.internet import reactor
from twisted.internet.endpoints import serverFromString

binaries: dict[str, Peer] = {}
phones: dict[str, Peer] = {}


class Peer(WebSocketServerProtocol):
    """A binary or a phone, as the path says."""

    server_id = ""
    conn_id = ""
    is_binary = False

    def onConnect(self, request: Any) -> None:
        """Look at the path and the headers."""
        needed = ["x-pyrycode-server", "user-agent"]
        if request.path == "/v1/server":
            self.is_binary = True
            needed.append("x-pyrycode-version")
        elif request.path == "/v1/client":
            needed.append("x-pyrycode-token")
        else:
            raise ConnectionDeny(ConnectionDeny.NOT_FOUND)
        if not all(request.headers.get(name) for name in needed):
            raise ConnectionDeny(ConnectionDeny.BAD_REQUEST)
        self.server_id = request.headers["x-pyrycode-server"]

    def onOpen(self) -> None:
        """Register."""
        if self.is_binary:
            if self.server_id in binaries:
                self.sendClose(4409, "server-id already claimed")
            else:
                binaries[self.server_id] = self
        elif self.server_id not in binaries:
            self.sendClose(4404, "no server with that id")
        else:
            self.conn_id = f"client-{self.server_id}-{secrets.token_hex(4)}"
            phones[self.conn_id] = self

    def onMessage(self, payload: bytes, isBinary: bool) -> None:  # noqa: ARG002
        """Route."""
        message = json.loads(payload)
        if self.is_binary:
            phone = phones.get(message["conn_id"])
            if phone is not None:
                phone.sendMessage(json.dumps(message["frame"]).encode())
        else:
            binary = binaries.get(self.server_id)
            if binary is not None:
                envelope = {"conn_id": self.conn_id, "frame": message}
                binary.sendMessage(json.dumps(envelope).encode())

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:  # noqa: ARG002
        """Unregister."""
        if self.is_binary:
            if binaries.get(self.server_id) is self:
                del binaries[self.server_id]
        elif phones.pop(self.conn_id, None) is not None and self.server_id in binaries:
            notice = {"conn_id": self.conn_id, "close_code": code or 1001}
            binaries[self.server_id].sendMessage(json.dumps(notice).encode())


def main() -> None:
    """Serve on loopback, and print the port."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--port", type=int, default=0)
    options.add_argument("--tls-key", help="a private key's file; with --tls-cert: serve TLS")
    options.add_argument("--tls-cert")
    given = options.parse_args()
    kind, more = "tcp", ""
    if given.tls_key:
        kind, more = "ssl", f":privateKey={given.tls_key}:certKey={given.tls_cert}"
    endpoint = f"{kind}:{given.port}:interface=127.0.0.1:backlog=1024{more}"
    factory = WebSocketServerFactory()
    factory.protocol = Peer
    listening = serverFromString(reactor, endpoint).listen(factory)
    listening.addCallback(lambda port: print(f"listening on {port.getHost().port}", flush=True))
    reactor.run()


if __name__ == "__main__":
    main()
