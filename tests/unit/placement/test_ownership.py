"""Which worker owns a server-id."""

from __future__ import annotations

from collections import Counter

from pyrycode_relay.placement.ownership import Ownership
from tests.unit.bench import Cases, cases

KEY = bytes(range(32))
IDS = [f"server-{number}" for number in range(1000)]


class OwnershipTests(Cases):
    """Rendezvous hashing."""

    @cases({"two": (2,), "three": (3,), "four": (4,), "eight": (8,)})
    def test_shares(self, workers: int) -> None:
        """Each of up to four workers owns its share of 1,000 ids within 15 %."""
        owned = Counter(Ownership(workers, KEY).owner(each) for each in IDS)
        self.assertEqual(set(range(workers)), set(owned))
        allowed = 0.15 if workers <= 4 else 0.3
        for number in owned.values():
            self.assertLess(abs(number * workers / len(IDS) - 1), allowed)

    def test_agreement(self) -> None:
        """All processes with the same key agree."""
        first, second = Ownership(5, KEY), Ownership(5, KEY)
        self.assertEqual([*map(first.owner, IDS)], [*map(second.owner, IDS)])

    def test_key(self) -> None:
        """Without the key, nobody can tell which ids fall to one worker."""
        first, second = Ownership(4, KEY), Ownership(4, KEY[::-1])
        same = sum(first.owner(each) == second.owner(each) for each in IDS)
        self.assertLess(same, 350)

    def test_fewer_workers(self) -> None:
        """With one worker less, only its ids have another owner."""
        many, few = Ownership(5, KEY), Ownership(4, KEY)
        for each in IDS:
            if many.owner(each) < 4:
                self.assertEqual(many.owner(each), few.owner(each))

    def test_any_text(self) -> None:
        """A server-id may have any characters."""
        for each in ("", "é", "\U0001f600", "x" * 256):
            self.assertIn(Ownership(3, KEY).owner(each), range(3))
