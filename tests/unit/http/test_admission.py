"""Limits on WebSocket connections: rates, numbers per address and in total, the reserve."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.task import Clock

from pyrycode_relay.addresses import UNIX, limit_key
from pyrycode_relay.http import admission
from pyrycode_relay.http.admission import (
    RATED_ADDRESSES,
    RETRY_AFTER,
    Admission,
    Bound,
    Denial,
    Enforcement,
    Leg,
    Place,
    Usage,
)
from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.limits import Limits
from tests.unit.bench import Cases, examples

HERE, THERE = "192.0.2.1", "192.0.2.2"


def room(connections: int = 1000, reserved: int = 0, ceiling: int = 1000) -> Capacity:
    """Return a capacity with these numbers."""
    return Capacity(4096, ceiling, connections, reserved, 100)


class AdmissionTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()

    def admission(self, capacity: Capacity | None = None, **limits: float) -> Admission:
        """Return an admission without limits but the given ones."""
        lifted = {"upgrade_rate": 0, "max_connections_per_address": 0}
        chosen = Limits(**(lifted | limits))  # type: ignore[arg-type]
        return Admission(chosen, capacity or room(), Usage(chosen, self.clock.seconds))

    def bound(self, admission: Admission, address: str, leg: Leg = Leg.PHONE) -> Bound | None:
        """Return the limit that an attempt exceeds; otherwise let it enter."""
        denial = admission.ask(leg, address)
        if denial is None:
            admission.enter(leg, address)
        return None if denial is None else denial.bound

    def test_rate(self) -> None:
        """An address may use its burst at once, then its rate; a denial says when to come back."""
        admission = self.admission(upgrade_rate=10, upgrade_burst=20)
        for _ in range(20):
            self.assertIsNone(admission.ask(Leg.PHONE, HERE))
        self.assertEqual(
            admission.ask(Leg.PHONE, HERE), Denial(Bound.RATE, 6, Enforcement.ENFORCED)
        )
        self.assertIsNone(admission.ask(Leg.PHONE, THERE), "another address")
        self.clock.advance(5.5)
        self.assertEqual(
            admission.ask(Leg.BINARY, HERE), Denial(Bound.RATE, 1, Enforcement.ENFORCED)
        )
        self.clock.advance(0.5)
        self.assertIsNone(admission.ask(Leg.BINARY, HERE))
        self.assertEqual(admission.denied[Bound.RATE], 2)

    def test_retry_after_is_enough(self) -> None:
        """After the announced wait the next attempt succeeds."""
        admission = self.admission(upgrade_rate=7, upgrade_burst=1)
        admission.ask(Leg.PHONE, HERE)
        for _ in range(20):
            denial = admission.ask(Leg.PHONE, HERE)
            assert denial is not None
            self.clock.advance(denial.retry_after)
            self.assertIsNone(admission.ask(Leg.PHONE, HERE))

    def test_no_rate(self) -> None:
        """A rate of 0 means no limit."""
        admission = self.admission()
        for _ in range(1000):
            self.assertIsNone(admission.ask(Leg.PHONE, HERE))

    def test_addresses_are_bounded(self) -> None:
        """The rates of a fixed number of addresses are remembered, those used last."""

        def address(number: int) -> str:
            return f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1"

        self.assertEqual(RATED_ADDRESSES, 65_536)
        self.patch(admission, "RATED_ADDRESSES", 1000)
        rated = self.admission(upgrade_rate=10, upgrade_burst=1)
        for number in range(1001):
            self.assertIsNone(rated.ask(Leg.PHONE, address(number)))
        for number in (1, 1000):
            self.assertIs(self.bound(rated, address(number)), Bound.RATE)
        self.assertIsNone(rated.ask(Leg.PHONE, address(0)), "forgotten, so its bucket is full")
        self.assertIsNone(rated.ask(Leg.PHONE, address(2)), "forgotten for the one before")

    def test_ipv6(self) -> None:
        """All IPv6 addresses of a /64 share their limits; those of the next /64 do not."""
        admission = self.admission(upgrade_rate=1, upgrade_burst=2, max_connections_per_address=9)
        for host in ("2001:db8::1", "2001:db8::2"):
            self.assertIsNone(self.bound(admission, host))
        self.assertIs(self.bound(admission, "2001:db8::3"), Bound.RATE)
        self.assertIsNone(self.bound(admission, "2001:db8:0:1::1"))

    def test_number_of_an_address(self) -> None:
        """Connections of both kinds count for their address, until they leave."""
        admission = self.admission(max_connections_per_address=2)
        place = admission.enter(Leg.BINARY, HERE)
        admission.enter(Leg.PHONE, HERE)
        self.assertEqual(
            admission.ask(Leg.PHONE, HERE), Denial(Bound.ADDRESS, RETRY_AFTER, Enforcement.ENFORCED)
        )
        self.assertIsNone(admission.ask(Leg.PHONE, THERE))
        place.leave()
        self.assertIsNone(admission.ask(Leg.PHONE, HERE))

    def test_unix(self) -> None:
        """Only the total applies to peers on a UNIX socket, which have no address."""
        admission = self.admission(
            room(5), upgrade_rate=1, upgrade_burst=1, max_connections_per_address=1
        )
        for _ in range(5):
            self.assertIsNone(self.bound(admission, UNIX))
        self.assertIs(self.bound(admission, UNIX), Bound.TOTAL)

    def test_total(self) -> None:
        """Connections of all addresses and kinds count for the total."""
        admission = self.admission(room(2))
        self.assertIsNone(self.bound(admission, HERE))
        self.assertIsNone(self.bound(admission, THERE, Leg.BINARY))
        denial = admission.ask(Leg.BINARY, "192.0.2.3")
        self.assertEqual(denial, Denial(Bound.TOTAL, RETRY_AFTER, Enforcement.ENFORCED))

    def test_reserve(self) -> None:
        """Phones cannot take the places that are reserved for binaries and not in use."""
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
        """Binaries may take more places than are reserved for them."""
        admission = self.admission(room(10, reserved=2))
        for _ in range(10):
            self.assertIsNone(self.bound(admission, HERE, Leg.BINARY))

    def test_dry_run(self) -> None:
        """A dry run counts denials and enforces only the limit of open files."""
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
            found.append(denial and (denial.bound, denial.enforcement))
            admission.enter(Leg.PHONE, THERE)
        expected = [
            (Bound.RATE, Enforcement.DRY_RUN),
            None,
            *[(Bound.TOTAL, Enforcement.DRY_RUN)] * 2,
        ]
        self.assertEqual(found, [*expected, (Bound.TOTAL, Enforcement.ENFORCED)])
        self.assertEqual(
            admission.denied, {**dict.fromkeys(Bound, 0), Bound.RATE: 1, Bound.TOTAL: 3}
        )

    def test_counts_are_there(self) -> None:
        """Every count exists from the start."""
        admission = self.admission()
        self.assertEqual(admission.denied, dict.fromkeys(Bound, 0))
        self.assertEqual(admission.open, dict.fromkeys(Leg, 0))


class AdmissionMachine(RuleBasedStateMachine):
    """Connections come and go in any order; the counts match them."""

    def __init__(self) -> None:
        super().__init__()
        limits = Limits(upgrade_rate=0, max_connections_per_address=3)
        self.admission = Admission(limits, room(8, 3), Usage(limits, lambda: 0.0))
        self.there: list[tuple[Leg, str, Place]] = []

    @rule(
        leg=st.sampled_from(Leg),
        address=st.sampled_from([HERE, THERE, "2001:db8::1", "2001:db8::2", UNIX]),
    )
    def come(self, leg: Leg, address: str) -> None:
        """Ask, and enter if there is room."""
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
        """The counts are right, and no address without connections is remembered."""
        assert self.admission.total == len(self.there) <= 8
        keys = {limit_key(address) for _, address, _ in self.there}
        assert set(self.admission.usage.of_address) == keys


class AnyOrderTests(Cases):
    def test_any_order(self) -> None:
        """Any history keeps the counts right."""
        # By its function: trial does not find the test case that Hypothesis makes.
        run_state_machine_as_test(AdmissionMachine, settings=examples(100, stateful_step_count=50))
