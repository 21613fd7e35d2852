"""The busiest: right rates, bounded turns, bounded memory, and hashes unless ids are wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.task import Clock

from pyrycode_relay.monitoring.busiest import EVERY, FORGET, SHOWN, SLICE, Busiest
from pyrycode_relay.tally import FRAME
from tests.unit.bench import Cases


@dataclass(eq=False)
class Phone:
    server_id: str
    remote: str = "192.0.2.1"
    traffic: int = 0

    def talk(self, frames: int, size: int) -> None:
        self.traffic += frames * FRAME + size


class CountingClock(Clock):
    """A clock that counts the turns of the reactor that are asked for."""

    turns = 0

    def callLater(
        self, delay: float, callable: Callable[..., object], *args: object, **kw: object
    ) -> IDelayedCall:
        self.turns += delay == 0
        return super().callLater(delay, callable, *args, **kw)


class BusiestTests(Cases):
    def setUp(self) -> None:
        self.clock = CountingClock()
        self.clock.advance(100)
        self.phones: set[Phone] = set()
        self.busiest = Busiest(self.clock, [self.phones], lambda name: f"<{name}>")

    def add(self, server_id: str, remote: str = "192.0.2.1") -> Phone:
        phone = Phone(server_id, remote)
        self.phones.add(phone)
        return phone

    def walk(self) -> int:
        """Look, and do all that follows; return the turns of the reactor that it takes."""
        before = self.clock.turns
        self.busiest.document()
        self.clock.advance(0)
        return self.clock.turns - before + 1

    def names(self, table: str) -> list[str]:
        return [row["name"] for row in self.busiest.document()[table]]

    def test_rates(self) -> None:
        """The rates are those between two walks, by server-id and by address."""
        one, other = self.add("a"), self.add("a", "192.0.2.2")
        one.talk(1000, 100_000)
        self.walk()
        self.assertIsNone(self.busiest.document()["seconds"])
        self.clock.advance(10)
        one.talk(20, 400)
        other.talk(10, 100)
        self.walk()
        document = self.busiest.document()
        self.assertEqual(document["seconds"], 10)
        self.assertEqual(
            document["ids"], [{"name": "<a>", "connections": 2, "frames": 3, "bytes": 50}]
        )
        self.assertEqual(
            [(row["name"], row["frames"]) for row in document["addresses"]],
            [("<192.0.2.1>", 2), ("<192.0.2.2>", 1)],
        )

    def test_frames_and_bytes(self) -> None:
        """Those with most frames are shown, and those with most bytes."""
        phones = {name: self.add(name) for name in "abcdefghijklmnop"}
        self.walk()
        self.clock.advance(EVERY)
        for place, (name, phone) in enumerate(phones.items()):
            phone.talk(1000 - place if name < "i" else 1, 10 if name < "i" else 1000 + place)
        self.walk()
        self.assertEqual(set(self.names("ids")), {f"<{name}>" for name in "abcdelmnop"})
        self.assertEqual(len(self.names("ids")), 2 * SHOWN)

    def test_gone(self) -> None:
        """A connection that has ended makes no rate negative, and one that comes is counted."""
        old = self.add("a")
        old.talk(500, 5000)
        self.walk()
        self.clock.advance(EVERY)
        self.phones.clear()
        self.add("a").talk(5, 50)
        self.add("b").talk(7, 70)
        self.walk()
        self.assertEqual(self.names("ids"), ["<b>"])

    def test_addresses(self) -> None:
        """Addresses of one /64 are one; a UNIX socket is no address, and shown as it is."""
        phones = [self.add("a", each) for each in ("2001:db8::1", "2001:db8::2", "unix")]
        self.walk()
        self.clock.advance(EVERY)
        for phone in phones:
            phone.talk(1, 1)
        self.walk()
        self.assertEqual(set(self.names("addresses")), {"<2001:db8::/64>", "unix"})

    def test_turns(self) -> None:
        """However many connections there are, one turn of the reactor handles a bounded part."""
        for number in range(10 * SLICE):
            self.add(f"id-{number}").talk(1, 1)
        self.assertGreaterEqual(self.walk(), 10)
        random, clock = Random(1), self.clock
        clock.advance(EVERY)
        expected: Counter[str] = Counter()
        for phone in self.phones:
            size = random.randrange(1_000_000)
            expected[f"<{phone.server_id}>"] = size
            phone.talk(1, size)
        self.assertGreaterEqual(self.walk(), 20)
        top = [name for name, _ in expected.most_common(SHOWN)]
        self.assertEqual(self.names("ids")[:SHOWN], top)

    def test_nobody_looks(self) -> None:
        """There is no walk more often than it must be, and nothing is kept for nobody."""
        self.add("a").talk(1, 1)
        self.walk()
        self.clock.advance(EVERY - 1)
        self.assertEqual(self.walk(), 1, "a walk that is not due")
        self.clock.advance(FORGET)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertIsNone(self.busiest.document()["seconds"])

    def test_stop(self) -> None:
        """No timer is left behind, even within a walk."""
        for number in range(2 * SLICE):
            self.add(str(number))
        self.busiest.document()
        self.busiest.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.busiest.stop()
