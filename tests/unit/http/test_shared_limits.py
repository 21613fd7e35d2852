"""Limits over several workers: the same answers as one process would give."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.task import Clock

from pyrycode_relay.addresses import UNIX, limit_key
from pyrycode_relay.http import shared_memory
from pyrycode_relay.http.admission import Admission, Bound, Leg, Place, Usage
from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.http.shared_limits import LOST_AFTER, UNCOUNTED, SharedLimits
from pyrycode_relay.http.shared_memory import WAYS, Key, SharedMemory, Total, create
from pyrycode_relay.limits import Limits
from tests.unit.bench import Cases, cases, examples

HERE, THERE = "192.0.2.1", "192.0.2.2"
ADDRESSES = (HERE, THERE, "2001:db8::1", "2001:db8::2", UNIX)
WORKERS = 3


class SharedLimitsTests(Cases):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.advance(1000)

    def workers(self, number: int = 2, **limits: float) -> list[SharedLimits]:
        """Return the workers of a new memory."""
        descriptor = create(number, 0)
        self.addCleanup(os.close, descriptor)
        chosen = Limits(**limits)  # type: ignore[arg-type]
        return [
            SharedLimits(SharedMemory(descriptor), index, chosen, self.clock.seconds)
            for index in range(number)
        ]

    def test_one_bucket(self) -> None:
        """Workers take tokens of one bucket: the burst at once, then the rate."""
        workers = self.workers(3, upgrade_rate=15, upgrade_burst=6)
        self.assertEqual([workers[each % 3].take(HERE) for each in range(6)], [0] * 6)
        for worker in workers:
            self.assertAlmostEqual(worker.take(HERE), 4, 3)
            self.assertEqual(worker.take(THERE), 0)
        self.clock.advance(4)
        self.assertEqual(workers[2].take(HERE), 0)
        self.assertGreater(workers[0].take(HERE), 0)

    def test_at_the_same_moment(self) -> None:
        """Two workers that take a token at once take two, whichever of them is aware of it."""
        worker, other = self.workers(2, upgrade_rate=15, upgrade_burst=6)
        for each in (worker, other):
            each.take(HERE)
        claim = worker._memory.claim

        def late(index: int, key: Key) -> int | None:
            other.take(HERE)
            return claim(index, key)

        self.patch(worker._memory, "claim", late)
        worker.take(HERE)
        self.assertEqual([other.take(HERE) > 0 for _ in range(3)], [False, False, True])

    @cases({"slow": (0.7,), "default": (10,), "odd": (7,), "prime": (11,), "fast": (59,)})
    def test_wait_is_enough(self, rate: float) -> None:
        """After the wait that is reported there is a token, and not before."""
        workers = self.workers(2, upgrade_rate=rate, upgrade_burst=3)
        self.assertEqual([workers[each % 2].take(HERE) for each in range(3)], [0] * 3)
        for _ in range(50):
            wait = workers[0].take(HERE)
            self.assertAlmostEqual(wait, 60 / rate, 3)
            self.clock.advance(wait - 0.001)
            self.assertGreater(workers[1].take(HERE), 0)
            self.clock.advance(0.001)
            self.assertEqual(workers[1].take(HERE), 0)

    def test_no_rate(self) -> None:
        """A rate of 0 means no limit, and no row."""
        worker, other = self.workers(2, upgrade_rate=0)
        self.assertEqual({worker.take(HERE) for _ in range(1000)}, {0})
        self.assertEqual({*other._memory.digests}, {0})

    def test_a_bucket_is_empty_at_most(self) -> None:
        """A time far ahead in the memory costs an address its burst, and not more."""
        worker, other = self.workers(2, upgrade_rate=15, upgrade_burst=3)
        worker.take(HERE)
        memory = worker._memory
        memory.due[memory.rows(memory.key(HERE))[0]] = 1e300
        self.assertAlmostEqual(other.take(HERE), 4, 3)

    def test_full_set(self) -> None:
        """An address without a row is counted by its worker alone, until it has a row."""
        self.patch(shared_memory, "LEAST_ROWS", WAYS)
        worker, other = self.workers(2, upgrade_rate=15, upgrade_burst=2)
        crowd = [f"198.51.100.{number}" for number in range(WAYS)]
        for address in crowd:
            worker.enter(Leg.PHONE, address)
        worker.enter(Leg.PHONE, HERE)
        worker.enter(Leg.BINARY, HERE)
        self.assertEqual((worker.connections(HERE), other.connections(HERE)), (2, 0))
        self.assertEqual(other.totals(), (1, WAYS + 1))
        self.assertEqual([worker.take(HERE) > 0 for _ in range(3)], [False, False, True])
        self.assertEqual([other.take(HERE) > 0 for _ in range(3)], [False, False, True])
        for address in crowd:
            self.assertEqual((worker.connections(address), other.connections(address)), (1, 1))
        worker.leave(Leg.PHONE, crowd[3])
        worker.leave(Leg.PHONE, HERE)
        self.assertEqual((worker.connections(HERE), other.connections(HERE)), (1, 1))
        worker.leave(Leg.BINARY, HERE)
        self.assertEqual((worker.connections(HERE), other.connections(HERE)), (0, 0))

    def test_a_row_is_given_back(self) -> None:
        """An address without connections leaves its row to others."""
        self.patch(shared_memory, "LEAST_ROWS", WAYS)
        worker, other = self.workers(2)
        worker.enter(Leg.PHONE, HERE)
        worker.leave(Leg.PHONE, HERE)
        crowd = [f"198.51.100.{number}" for number in range(WAYS)]
        for address in crowd:
            worker.enter(Leg.PHONE, address)
        worker.enter(Leg.PHONE, HERE)
        worker.enter(Leg.PHONE, HERE)
        self.assertEqual([other.connections(address) for address in crowd], [1] * WAYS)
        self.assertEqual(other.connections(HERE), 0)

    def test_too_many_on_their_way(self) -> None:
        """A receiver that stalls costs exactness, for connections to it only."""
        worker, stalled, busy = self.workers(3)
        depth = worker._memory.depth
        tickets = [worker.send(Leg.PHONE, HERE, 1) for _ in range(depth + 5)]
        self.assertEqual([ticket == UNCOUNTED for ticket in tickets], [False] * depth + [True] * 5)
        self.assertNotEqual(worker.send(Leg.BINARY, HERE, 2), UNCOUNTED)
        self.assertEqual(busy.totals(), (1, depth))
        self.assertEqual(busy.connections(HERE), depth + 1)
        for ticket in tickets:
            stalled.settle(ticket)
        self.assertEqual(busy.totals(), (1, 0))
        self.assertNotEqual(worker.send(Leg.PHONE, HERE, 1), UNCOUNTED)

    def test_settled_once(self) -> None:
        """A ticket settles its own connection; an old one, or nonsense, settles none."""
        worker, other = self.workers(2)
        old = worker.send(Leg.PHONE, HERE, 1)
        other.settle(old)
        new = worker.send(Leg.PHONE, HERE, 1)
        self.assertEqual(new & 0xFFFF, old & 0xFFFF, "the same mark")
        for ticket in (old, UNCOUNTED, 0xFFFF, 1 << 80, new + 1):
            other.settle(ticket)
            self.assertEqual(worker.totals(), (0, 1))
        worker.settle(new)
        self.assertEqual((worker.totals(), other.connections(HERE)), ((0, 0), 0))

    def test_lost(self) -> None:
        """A connection that never arrives does not count for ever."""
        worker, other = self.workers(2)
        ticket = worker.send(Leg.PHONE, HERE, 1)
        self.clock.advance(LOST_AFTER + 1)
        for _ in range(4 * worker._memory.depth):
            other.settle(worker.send(Leg.PHONE, THERE, 1))
        self.assertEqual(other.totals(), (0, 0))
        late = worker.send(Leg.PHONE, THERE, 1)
        other.settle(ticket)
        self.assertEqual(other.totals(), (0, 1))
        other.settle(late)

    def test_numbers_for_the_parent(self) -> None:
        """Each worker sets its own numbers; the parent adds them up."""
        worker, other = self.workers(2)
        worker.publish(binaries=3, phones=7)
        other.publish(binaries=1, phones=0)
        worker.publish(binaries=2, phones=5)
        sums = [other._memory.sum(total) for total in (Total.BINARIES, Total.PHONES)]
        self.assertEqual(sums, [3, 5])

    def test_limits_of_all(self) -> None:
        """Numbers per address, in total and the reserve are of all workers."""
        limits = Limits(upgrade_rate=0, max_connections_per_address=4)
        capacity = Capacity(4096, 1000, 8, 3, 100)
        workers = [Admission(limits, capacity, each) for each in self.workers(2, upgrade_rate=0)]

        def bound(worker: int, address: str, leg: Leg = Leg.PHONE) -> Bound | None:
            denial = workers[worker].ask(leg, address)
            if denial is None:
                workers[1 - worker].enter(leg, address)
            return None if denial is None else denial.bound

        self.assertEqual([bound(each % 2, HERE) for each in range(5)], [None] * 4 + [Bound.ADDRESS])
        self.assertEqual([bound(0, THERE), bound(1, THERE)], [None, Bound.RESERVE])
        self.assertEqual([bound(each % 2, THERE, Leg.BINARY) for each in range(3)], [None] * 3)
        self.assertIs(bound(0, "192.0.2.3", Leg.BINARY), Bound.TOTAL)
        self.assertEqual(workers[0].total, workers[1].total)


@dataclass
class Connection:
    """A connection in a worker, or on its way to it, and its place in the model."""

    leg: Leg
    address: str
    worker: int
    counted: Place | None
    place: Place | None = None
    sender: int = -1
    ticket: int = UNCOUNTED


class WorkersMachine(RuleBasedStateMachine):
    """Connections come, move and go, workers die; each answers as one process would."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.clock.advance(1000)
        # 15 a minute is one in 4 s: floats that add up exactly.
        self.limits = Limits(upgrade_rate=15, upgrade_burst=4, max_connections_per_address=3)
        self.capacity = Capacity(4096, 1000, 8, 3, 100)
        usage = Usage(self.limits, self.clock.seconds)
        self.model = Admission(self.limits, self.capacity, usage)
        self.descriptor = create(WORKERS, 8)
        self.parent = SharedMemory(self.descriptor)
        self.workers: list[SharedLimits] = []
        self.admissions: list[Admission] = []
        for index in range(WORKERS):
            self.start(index)
        self.there: list[Connection] = []
        self.moving: list[Connection] = []

    def start(self, index: int) -> None:
        """Start a worker, or a successor of one."""
        memory = SharedMemory(self.descriptor)
        worker = SharedLimits(memory, index, self.limits, self.clock.seconds)
        self.workers[index : index + 1] = [worker]
        self.admissions[index : index + 1] = [Admission(self.limits, self.capacity, worker)]

    @rule(seconds=st.sampled_from([0.5, 4.0, 60.0]))
    def wait(self, seconds: float) -> None:
        """Let time pass, less than after which a connection is lost."""
        self.clock.advance(min(seconds, 5.0) if self.moving else seconds)

    @rule(
        leg=st.sampled_from(Leg),
        address=st.sampled_from(ADDRESSES),
        worker=st.integers(0, WORKERS - 1),
        owner=st.integers(0, WORKERS - 1),
    )
    def come(self, leg: Leg, address: str, worker: int, owner: int) -> None:
        """Ask one worker; enter there, or move to another."""
        denial = self.model.ask(leg, address)
        assert self.admissions[worker].ask(leg, address) == denial
        if denial is not None:
            return
        connection = Connection(leg, address, owner, self.model.enter(leg, address))
        if owner == worker:
            connection.place = self.admissions[worker].enter(leg, address)
            self.there.append(connection)
        else:
            connection.sender = worker
            connection.ticket = self.workers[worker].send(leg, address, owner)
            self.moving.append(connection)

    @rule(number=st.integers(0, 7))
    def arrive(self, number: int) -> None:
        """Arrive, in any order."""
        if number < len(self.moving):
            moved = self.moving.pop(number)
            moved.place = self.admissions[moved.worker].enter(moved.leg, moved.address)
            self.workers[moved.worker].settle(moved.ticket)
            moved.counted = moved.counted or self.model.enter(moved.leg, moved.address)
            self.there.append(moved)

    @rule(number=st.integers(0, 7))
    def lose(self, number: int) -> None:
        """Find that a connection cannot be passed on."""
        if number < len(self.moving):
            lost = self.moving.pop(number)
            self.workers[lost.sender].settle(lost.ticket)
            if lost.counted is not None:
                lost.counted.leave()

    @rule(number=st.integers(0, 7))
    def go(self, number: int) -> None:
        """Leave."""
        if number < len(self.there):
            gone = self.there.pop(number)
            assert gone.place is not None
            assert gone.counted is not None
            gone.place.leave()
            gone.counted.leave()

    @rule(index=st.integers(0, WORKERS - 1))
    def die(self, index: int) -> None:
        """End without a word. What the worker has sent arrives, but no longer counts before."""
        self.parent.clear(index)
        gone = [each for each in self.there if each.worker == index]
        self.there = [each for each in self.there if each.worker != index]
        unseen = [each for each in self.moving if index in (each.worker, each.sender)]
        for connection in (*gone, *unseen):
            if connection.counted is not None:
                connection.counted.leave()
                connection.counted = None
        self.moving = [each for each in self.moving if each.worker != index]
        # Nobody is left who could find that it cannot be passed on.
        self.start(index)

    @invariant()
    def same_numbers(self) -> None:
        """Each worker knows the numbers of all."""
        for worker in self.workers:
            assert worker.totals() == self.model.usage.totals()
            for address in ADDRESSES:
                key = limit_key(address)
                assert worker.connections(key) == self.model.usage.connections(key)

    def teardown(self) -> None:
        """Nothing stays behind."""
        while self.moving:
            self.arrive(0)
        while self.there:
            self.go(0)
        self.same_numbers()
        assert self.model.total == 0
        assert {*self.parent.legs} == {0}
        assert not any(self.parent.counts[row] for key in ADDRESSES for row in self.rows(key))
        os.close(self.descriptor)

    def rows(self, address: str) -> list[int]:
        """Return the rows of an address."""
        return self.parent.rows(self.parent.key(limit_key(address)))


class AnyOrderTests(Cases):
    def test_any_order(self) -> None:
        """Any history keeps the counts right."""
        # By its function: trial does not find the test case that Hypothesis makes.
        run_state_machine_as_test(WorkersMachine, settings=examples(200, stateful_step_count=50))
