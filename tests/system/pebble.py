"""Pebble, Let's Encrypt's test CA, as a child process, with a name server that knows every name."""

from __future__ import annotations

import json
import random
import re
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.ca import Authority
from tests.peers.waiting import eventually
from tests.system.harness import Child

PROGRAMS = ("pebble", "pebble-challtestsrv")


def free_ports() -> Iterator[int]:
    """Yield ports of the loopback interface that nobody has.

    Below those that the system hands out, so that no other test gets one of them meanwhile.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        try:
            with (
                socket.create_server(("127.0.0.1", port)),
                socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
            ):
                datagrams.bind(("127.0.0.1", port))
        except OSError:
            continue
        yield port


class Pebble:
    """A CA at ``directory``, which fetches http-01 challenges of any name from ``http_port``.

    Its files are in ``folder``; it can be stopped, and started again as another one: its
    memory and its root are gone then. ``more`` is its environment.
    """

    def __init__(self, folder: Path, validity: int = 90 * 86400, **more: str) -> None:
        self.folder = folder
        self.validity = validity
        self.environment = {
            "PEBBLE_VA_NOSLEEP": "1",
            "PEBBLE_WFE_NONCEREJECT": "0",
            "PEBBLE_AUTHZREUSE": "0",
            **more,
        }
        self._ports = free_ports()
        self._port, self._management, self.http_port, self._names, self._names_management = (
            next(self._ports) for _ in range(5)
        )
        self._children: list[Child] = []
        self.certificate, self.key = folder / "pebble.pem", folder / "pebble.key"
        authority = Authority()
        authority.issue("localhost").store(self.certificate, self.key)
        self.ca_file = folder / "authority.pem"
        """What to trust for the CA's own certificate."""
        self.ca_file.write_bytes(authority.pem)

    @property
    def directory(self) -> str:
        """The CA's URL."""
        return f"https://localhost:{self._port}/dir"

    def start(self) -> Pebble:
        """Start, and wait until it answers."""
        config = self.folder / "pebble.json"
        config.write_text(
            json.dumps(
                {
                    "pebble": {
                        "listenAddress": f"127.0.0.1:{self._port}",
                        "managementListenAddress": f"127.0.0.1:{self._management}",
                        "certificate": str(self.certificate),
                        "privateKey": str(self.key),
                        "httpPort": self.http_port,
                        "tlsPort": 1,
                        "certificateValidityPeriod": self.validity,
                    }
                }
            )
        )
        names = [
            *("pebble-challtestsrv", "-dns01", f"127.0.0.1:{self._names}"),
            *("-management", f"127.0.0.1:{self._names_management}"),
            *("-http01=", "-https01=", "-tlsalpn01=", "-defaultIPv4=127.0.0.1", "-defaultIPv6="),
        ]
        pebble = ["pebble", "-config", str(config), "-dnsserver", f"127.0.0.1:{self._names}"]
        self._children = [
            Child(self.folder, names),
            Child(self.folder, pebble, environment=self.environment),
        ]
        eventually("pebble answers", self._answers)
        return self

    def stop(self) -> None:
        """Stop."""
        while self._children:
            self._children.pop().kill()

    def log(self) -> str:
        """Return what it has written since it was started."""
        return self._children[1].output() + self._children[1].errors()

    def orders(self) -> int:
        """Return how many orders it was asked for, with good nonces or bad."""
        return self.log().count("POST /order-plz ")

    def accounts(self) -> int:
        """Return how many accounts it has."""
        return len(set(re.findall(r"There are now (\d+) accounts", self.log())))

    def requests(self) -> int:
        """Return how many requests it has had."""
        return self.log().count("-> calling handler()")

    def root(self) -> Path:
        """Return a file with the root of the certificates that it issues."""
        path = self.folder / "root.pem"
        path.write_bytes(self.fetch(f"https://localhost:{self._management}/roots/0"))
        return path

    def fetch(self, url: str) -> bytes:
        """Return what is at one of its URLs."""
        context = ssl.create_default_context(cafile=self.ca_file)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(url, timeout=10) as answer:
            content: Any = answer.read()
        assert isinstance(content, bytes)
        return content

    def _answers(self) -> bool:
        for child in self._children:
            if child.process.poll() is not None:
                raise AssertionError(f"it has ended: {child.output()}{child.errors()}")
        try:
            return b"newOrder" in self.fetch(self.directory)
        except OSError:
            return False
