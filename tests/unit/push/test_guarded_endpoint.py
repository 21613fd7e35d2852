"""The look-up of names that strangers give. ``tests.live.test_web_push`` has the connections."""

from __future__ import annotations

import socket
import threading
from ipaddress import ip_address

from pyrycode_relay.push import guarded_endpoint
from pyrycode_relay.push.address_guard import is_public
from pyrycode_relay.push.guarded_endpoint import look_up, public_internet
from pyrycode_relay.push.http_client import CallError
from pyrycode_relay.push.provider import SendFault
from pyrycode_relay.push.service import MAX_NAMED_SENDS
from tests.unit.bench import Cases
from tests.unit.test_daemon_threads import Reactor

ROW = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
ROW_V6 = (socket.AF_INET6, socket.SOCK_STREAM, 6, "")


class LookUpTests(Cases):
    def answer(self, answer: list[object] | Exception) -> list[tuple[object, ...]]:
        """Have the operating system answer so; return what it will have been asked."""
        asked: list[tuple[object, ...]] = []

        def getaddrinfo(*arguments: object, **more: object) -> list[object]:
            asked.append(arguments)
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.patch(socket, "getaddrinfo", getaddrinfo)
        return asked

    def test_addresses(self) -> None:
        """All addresses are returned, and no domain of resolv.conf is put behind the name."""
        asked = self.answer(
            [(*ROW, ("192.0.2.1", 0)), (*ROW_V6, ("fe80::1%lo", 0, 0, 1)), (*ROW_V6, ("::1", 0))]
        )
        found = look_up("push.example.org")
        self.assertEqual([str(each) for each in found], ["192.0.2.1", "fe80::1%lo", "::1"])
        self.assertEqual(asked, [("push.example.org.", None)])

    def test_many(self) -> None:
        """Of thousands of addresses, the first four of each family are used, in their order."""
        many: list[object] = [
            (*ROW_V6, (f"2a00::{number:x}", 0, 0, 0)) for number in range(1, 3000)
        ]
        many += [(*ROW, (f"192.0.2.{number}", 0)) for number in range(1, 250)]
        self.answer(many)
        found = [str(each) for each in look_up("push.example.org")]
        expected = [f"2a00::{number}" for number in range(1, 5)]
        self.assertEqual(found, expected + [f"192.0.2.{number}" for number in range(1, 5)])

    def test_not_found(self) -> None:
        """A name that is not found, or cannot be one, is unreachable."""
        for error in (socket.gaierror(-2, "hunter"), UnicodeError("hunter"), OSError("hunter")):
            self.answer(error)
            with self.assertRaises(CallError) as caught:
                look_up("hunter.example")
            self.assertIs(caught.exception.fault, SendFault.UNREACHABLE)
            self.assertNotIn("hunter", str(caught.exception))

    def test_hanging(self) -> None:
        """If all look-ups of 30 s hang, the next one still finds a thread."""
        gate = threading.Event()
        self.addCleanup(gate.set)

        def getaddrinfo(name: str, *_: object, **__: object) -> list[object]:
            if name.startswith("hanging"):
                gate.wait()
            return [(*ROW, ("192.0.2.1", 0))]

        self.patch(socket, "getaddrinfo", getaddrinfo)
        reactor = Reactor()
        network = public_internet(reactor)
        for _ in range(3):
            hanging = [network.resolve("hanging.example") for _ in range(MAX_NAMED_SENDS)]
            reactor.advance(10)
            for each in hanging:
                self.assertIs(self.failureResultOf(each).value.fault, SendFault.UNREACHABLE)
        found = network.resolve("push.example.org")
        self.assertNoResult(found)
        reactor.turn()
        self.assertEqual(self.successResultOf(found), [ip_address("192.0.2.1")])

    def test_in_use(self) -> None:
        """A relay in use looks up beside the reactor, allows the public internet, on port 443."""
        self.answer([(*ROW, ("192.0.2.1", 0))])
        reactor = Reactor()
        network = public_internet(reactor)
        self.assertEqual((network.allows, network.port), (is_public, 443))
        found = network.resolve("push.example.org")
        self.assertNoResult(found)
        reactor.turn()
        self.assertEqual(self.successResultOf(found), [ip_address("192.0.2.1")])
        self.assertIs(guarded_endpoint.Network.__dataclass_fields__["allows"].default, is_public)
