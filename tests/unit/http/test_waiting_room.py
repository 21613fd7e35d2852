"""Which connection is dropped when too many wait."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.http.waiting_room import WaitingRoom
from tests.unit.bench import Cases, examples

HERE, THERE = "192.0.2.1", "192.0.2.2"


class WaitingRoomTests(Cases):
    def test_room(self) -> None:
        """While there is room all stay, in the order of arrival."""
        room = WaitingRoom[int](8)
        for number in range(8):
            self.assertIsNone(room.enter(number, HERE))
        room.leave(3)
        self.assertIsNone(room.enter(8, HERE))
        self.assertEqual([*room], [0, 1, 2, 4, 5, 6, 7, 8])

    def test_own_oldest(self) -> None:
        """A newcomer whose address exceeds its share displaces the oldest of that address."""
        room = WaitingRoom[int](4)
        room.enter(0, THERE)
        for number in range(1, 4):
            room.enter(number, HERE)
        self.assertEqual([room.enter(number, HERE) for number in range(4, 8)], [1, 2, 3, 4])
        self.assertEqual(([*room], room.crowded_out), ([0, 5, 6, 7], 4))

    def test_oldest_of_all(self) -> None:
        """A newcomer whose address is within its share displaces the oldest of all."""
        room = WaitingRoom[int](4)
        for number in range(4):
            room.enter(number, f"198.51.100.{number}")
        self.assertEqual(room.enter(4, HERE), 0)
        self.assertEqual(room.enter(5, THERE), 1)

    def test_ipv6(self) -> None:
        """All IPv6 addresses of a /64 share one share."""
        room = WaitingRoom[int](4)
        room.enter(0, HERE)
        for number in range(1, 20):
            room.enter(number, f"2001:db8::{number:x}")
        self.assertEqual([*room], [0, 17, 18, 19])

    def test_gone(self) -> None:
        """A displaced connection may leave once more."""
        room = WaitingRoom[int](1)
        room.enter(0, HERE)
        self.assertEqual(room.enter(1, HERE), 0)
        room.leave(0)
        self.assertEqual([*room], [1])

    @examples(100)
    @given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abcd"))))
    def test_any(self, places: int, steps: list[tuple[int, str]]) -> None:
        """The room never exceeds its places, keeps every newcomer, and ends up empty."""
        room = WaitingRoom[int](places)
        there: list[int] = []
        for number, (choice, address) in enumerate(steps):
            if choice < len(there) and choice % 3 == 0:
                room.leave(there.pop(choice))
            else:
                there.append(number)
                gone = room.enter(number, address)
                if gone is not None:
                    self.assertNotEqual(gone, number)
                    there.remove(gone)
            self.assertEqual([*room], there)
            self.assertLessEqual(len(room), places)
        for number in there:
            room.leave(number)
        self.assertEqual(room._by_key, {})
