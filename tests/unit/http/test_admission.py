"""Who may open a WebSocket: rates, numbers for an address and for all, and what is kept."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from twisted.internet.task import Clock

from pyrycode_relay.addresses import UNIX, limit_key
from pyrycode_relay.http.admission import (
    LEAST_FILES,
    MOST_CONNECTIONS,
    RATED_ADDRESSES,
    RETRY_AFTER,
    SPARE_FILES,
    Admission,
    Bound,
    Capacity,
    CapacityError,
    Denial,
    Leg,
    Place,
    WaitingRoom,
)
from pyrycode_relay.limits import Limits
from tests.unit.bench import Cases, cases, examples

HERE, THERE = "192.0.2.1", "192.0.2.2"


def room(connections: int = 1000, reserved: int = 0, ceiling: int = 1000) -> Capacity:
    """Return room for so many connections."""
    return Capacity(4096, ceiling, connections, reserved, 100)


class CapacityTests(Cases):
    @cases(
        {
            "least": (LEAST_FILES, 144, 48),
            "common": (1024, 704, 128),
            "system": (65_536, 63_296, 2048),
            "container": (1_048_576, MOST_CONNECTIONS, 2048),
        }
    )
    def test_derived(self, files: int, connections: int, waiting: int) -> None:
        """Where nothing is given, the open files are shared out, with some to spare."""
        capacity = Capacity.within(files, Limits())
        self.assertEqual((capacity.connections, capacity.waiting), (connections, waiting))
        self.assertEqual(capacity.reserved, connections // 10)
        self.assertGreaterEqual(files, capacity.ceiling + waiting + SPARE_FILES)

    def test_given(self) -> None:
        """What is given is what there is, if the files are enough for it to the last."""
        limits = Limits(max_connections=200, max_waiting=72, reserve_binaries=0.25)
        capacity = Capacity.within(SPARE_FILES + 272, limits)
        self.assertEqual((capacity.connections, capacity.waiting, capacity.reserved), (200, 72, 50))
        error = self.assertRaises(CapacityError, Capacity.within, SPARE_FILES + 271, limits)
        self.assertIn("need 464 open files, and 463 are allowed", str(error))

    @cases(
        {
            "few_files": (100, Limits()),
            "many_connections": (1024, Limits(max_connections=5000)),
            "many_waiting": (1024, Limits(max_waiting=1000)),
        }
    )
    def test_not_enough(self, files: int, limits: Limits) -> None:
        """What the files are not enough for is one sentence with the number and the fix."""
        error = self.assertRaises(CapacityError, Capacity.within, files, limits)
        self.assertIn(str(files), str(error))
        self.assertIn("ulimit -n", str(error))
        self.assertTrue(str(error).endswith("."))
        self.assertEqual(len(str(error).splitlines()), 1)

    @examples(200)
    @given(
        st.integers(0, 2_000_000),
        st.integers(0, 1_000_000),
        st.integers(0, 1_000_000),
        st.sampled_from([0, 0.1, 0.9]),
    )
    def test_any(self, files: int, connections: int, waiting: int, share: float) -> None:
        """Any numbers are a sentence, or fit into the files with some left."""
        limits = Limits(max_connections=connections, max_waiting=waiting, reserve_binaries=share)
        try:
            capacity = Capacity.within(files, limits)
        except CapacityError:
            return
        self.assertGreater(capacity.connections, 0)
        self.assertGreater(capacity.waiting, 0)
        self.assertLessEqual(capacity.connections, capacity.ceiling)
        self.assertLess(capacity.reserved, capacity.connections)
        self.assertEqual(capacity.ceiling + capacity.waiting + SPARE_FILES, files)


class AdmissionTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()

    def admission(self, capacity: Capacity | None = None, **limits: float) -> Admission:
        """Return an admission that bounds nothing but what is given."""
        lifted = {"upgrade_rate": 0, "max_connections_per_address": 0}
        chosen = Limits(**(lifted | limits))  # type: ignore[arg-type]
        return Admission(chosen, capacity or room(), self.clock.seconds)

    def bound(self, admission: Admission, address: str, leg: Leg = Leg.PHONE) -> Bound | None:
        """Return at what an attempt fails; if it does not, it becomes a connection."""
        denial = admission.ask(leg, address)
        if denial is None:
            admission.enter(leg, address)
        return denial and denial.bound

    def test_rate(self) -> None:
        """An address gets its burst at once and then its rate, and is told when to come back."""
        admission = self.admission(upgrade_rate=10, upgrade_burst=20)
        for _ in range(20):
            self.assertIsNone(admission.ask(Leg.PHONE, HERE))
        self.assertEqual(admission.ask(Leg.PHONE, HERE), Denial(Bound.RATE, 6, True))
        self.assertIsNone(admission.ask(Leg.PHONE, THERE), "another address")
        self.clock.advance(5.5)
        self.assertEqual(admission.ask(Leg.BINARY, HERE), Denial(Bound.RATE, 1, True))
        self.clock.advance(0.5)
        self.assertIsNone(admission.ask(Leg.BINARY, HERE))
        self.assertEqual(admission.denied[Bound.RATE], 2)

    def test_retry_after_is_enough(self) -> None:
        """Whoever waits as long as he is told gets in."""
        admission = self.admission(upgrade_rate=7, upgrade_burst=1)
        admission.ask(Leg.PHONE, HERE)
        for _ in range(20):
            denial = admission.ask(Leg.PHONE, HERE)
            assert denial is not None
            self.clock.advance(denial.retry_after)
            self.assertIsNone(admission.ask(Leg.PHONE, HERE))

    def test_no_rate(self) -> None:
        """A rate of 0 is none, and nothing is kept of any address."""
        admission = self.admission()
        for _ in range(1000):
            self.assertIsNone(admission.ask(Leg.PHONE, HERE))
        self.assertEqual(admission.addresses, 0)

    def test_addresses_are_bounded(self) -> None:
        """However many addresses there are, a fixed number is kept in mind."""
        admission = self.admission(upgrade_rate=10)
        for number in range(RATED_ADDRESSES + 100):
            admission.ask(Leg.PHONE, f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1")
        self.assertEqual(admission.addresses, RATED_ADDRESSES)

    def test_ipv6(self) -> None:
        """An IPv6 address counts as its /64; the one beside it does not."""
        admission = self.admission(upgrade_rate=1, upgrade_burst=2, max_connections_per_address=9)
        for host in ("2001:db8::1", "2001:db8::2"):
            self.assertIsNone(self.bound(admission, host))
        self.assertIs(self.bound(admission, "2001:db8::3"), Bound.RATE)
        self.assertIsNone(self.bound(admission, "2001:db8:0:1::1"))

    def test_number_of_an_address(self) -> None:
        """An address has so many connections, of either kind, and a place again when one goes."""
        admission = self.admission(max_connections_per_address=2)
        place = admission.enter(Leg.BINARY, HERE)
        admission.enter(Leg.PHONE, HERE)
        self.assertEqual(admission.ask(Leg.PHONE, HERE), Denial(Bound.ADDRESS, RETRY_AFTER, True))
        self.assertIsNone(admission.ask(Leg.PHONE, THERE))
        place.leave()
        self.assertIsNone(admission.ask(Leg.PHONE, HERE))

    def test_unix(self) -> None:
        """Peers on a UNIX socket have no address to be bounded by, only the total."""
        admission = self.admission(
            room(5), upgrade_rate=1, upgrade_burst=1, max_connections_per_address=1
        )
        for _ in range(5):
            self.assertIsNone(self.bound(admission, UNIX))
        self.assertIs(self.bound(admission, UNIX), Bound.TOTAL)

    def test_total(self) -> None:
        """Of all together there are so many."""
        admission = self.admission(room(2))
        self.assertIsNone(self.bound(admission, HERE))
        self.assertIsNone(self.bound(admission, THERE, Leg.BINARY))
        denial = admission.ask(Leg.BINARY, "192.0.2.3")
        self.assertEqual(denial, Denial(Bound.TOTAL, RETRY_AFTER, True))

    def test_reserve(self) -> None:
        """Phones leave free what is kept for binaries, less the binaries that are there."""
        admission = self.admission(room(10, reserved=4))
        self.assertIsNone(self.bound(admission, HERE, Leg.BINARY))
        for _ in range(6):
            self.assertIsNone(self.bound(admission, HERE))
        self.assertIs(self.bound(admission, HERE), Bound.RESERVE)
        for _ in range(3):
            self.assertIsNone(self.bound(admission, HERE, Leg.BINARY))
        self.assertIs(self.bound(admission, HERE, Leg.BINARY), Bound.TOTAL)
        self.assertIs(self.bound(admission, HERE), Bound.TOTAL)

    def test_binaries_beyond_the_reserve(self) -> None:
        """Binaries may have more than is kept for them."""
        admission = self.admission(room(10, reserved=2))
        for _ in range(10):
            self.assertIsNone(self.bound(admission, HERE, Leg.BINARY))

    def test_dry_run(self) -> None:
        """A dry run counts what would be refused, and enforces only what the files demand."""
        admission = self.admission(
            room(connections=2, ceiling=4),
            upgrade_rate=1,
            upgrade_burst=1,
            limits_dry_run=True,
        )
        self.assertIsNone(admission.ask(Leg.PHONE, HERE))
        found = []
        for number in range(5):
            denial = admission.ask(Leg.PHONE, HERE if number == 0 else f"192.0.2.{number + 10}")
            found.append(denial and (denial.bound, denial.enforced))
            admission.enter(Leg.PHONE, THERE)
        expected = [(Bound.RATE, False), None, (Bound.TOTAL, False), (Bound.TOTAL, False)]
        self.assertEqual(found, [*expected, (Bound.TOTAL, True)])
        self.assertEqual(
            admission.denied, {**dict.fromkeys(Bound, 0), Bound.RATE: 1, Bound.TOTAL: 3}
        )

    def test_counts_are_there(self) -> None:
        """Every count exists before anything happens."""
        admission = self.admission()
        self.assertEqual(admission.denied, dict.fromkeys(Bound, 0))
        self.assertEqual(admission.open, dict.fromkeys(Leg, 0))


class WaitingRoomTests(Cases):
    def test_room(self) -> None:
        """As long as there is room, everybody stays, and is there in the order of coming."""
        room = WaitingRoom[int](8)
        for number in range(8):
            self.assertIsNone(room.enter(number, HERE))
        room.leave(3)
        self.assertIsNone(room.enter(8, HERE))
        self.assertEqual([*room], [0, 1, 2, 4, 5, 6, 7, 8])

    def test_own_oldest(self) -> None:
        """An address beyond its share makes its own oldest go."""
        room = WaitingRoom[int](4)
        room.enter(0, THERE)
        for number in range(1, 4):
            room.enter(number, HERE)
        self.assertEqual([room.enter(number, HERE) for number in range(4, 8)], [1, 2, 3, 4])
        self.assertEqual(([*room], room.crowded_out), ([0, 5, 6, 7], 4))

    def test_oldest_of_all(self) -> None:
        """For an address within its share the oldest of all goes."""
        room = WaitingRoom[int](4)
        for number in range(4):
            room.enter(number, f"198.51.100.{number}")
        self.assertEqual(room.enter(4, HERE), 0)
        self.assertEqual(room.enter(5, THERE), 1)

    def test_ipv6(self) -> None:
        """A flood from one /64 is one address's."""
        room = WaitingRoom[int](4)
        room.enter(0, HERE)
        for number in range(1, 20):
            room.enter(number, f"2001:db8::{number:x}")
        self.assertEqual([*room], [0, 17, 18, 19])

    def test_gone(self) -> None:
        """Who has gone may go again."""
        room = WaitingRoom[int](1)
        room.enter(0, HERE)
        self.assertEqual(room.enter(1, HERE), 0)
        room.leave(0)
        self.assertEqual([*room], [1])

    @examples(100)
    @given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abcd"))))
    def test_any(self, places: int, steps: list[tuple[int, str]]) -> None:
        """There are never more than the places, never the newcomer goes, and nothing is left."""
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
        self.assertEqual(room._of_address, {})


class AdmissionMachine(RuleBasedStateMachine):
    """Connections come and go in any order; the counts are those of the connections there are."""

    def __init__(self) -> None:
        super().__init__()
        self.admission = Admission(
            Limits(upgrade_rate=0, max_connections_per_address=3), room(8, 3), lambda: 0.0
        )
        self.there: list[tuple[Leg, str, Place]] = []

    @rule(
        leg=st.sampled_from(Leg),
        address=st.sampled_from([HERE, THERE, "2001:db8::1", "2001:db8::2", UNIX]),
    )
    def come(self, leg: Leg, address: str) -> None:
        """Ask, and enter when there is room."""
        key = limit_key(address)
        same = sum(limit_key(each) == key for _, each, _ in self.there)
        binaries = sum(each is Leg.BINARY for each, _, _ in self.there)
        free = 8 - len(self.there)
        kept = max(0, 3 - binaries) if leg is Leg.PHONE else 0
        welcome = (same < 3 or address == UNIX) and free > kept
        denial = self.admission.ask(leg, address)
        assert (denial is None) == welcome, (denial, self.there)
        if denial is None:
            self.there.append((leg, address, self.admission.enter(leg, address)))

    @rule(number=st.integers(0, 7))
    def go(self, number: int) -> None:
        """Leave."""
        if number < len(self.there):
            _, _, place = self.there.pop(number)
            place.leave()

    @invariant()
    def counts(self) -> None:
        """The counts are right, and nothing is kept of an address that has gone."""
        assert self.admission.total == len(self.there) <= 8
        keys = {limit_key(address) for _, address, _ in self.there}
        assert set(self.admission._of_address) == keys


class AnyOrderTests(AdmissionMachine.TestCase):  # type: ignore[misc]
    settings = examples(100)
