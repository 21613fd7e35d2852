"""Who holds which server-id: single cases, and any history at all against a plain model."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.internet.task import Clock

from pyrycode_relay.limits import ITEM_COST, Limits, OnReclaim
from pyrycode_relay.protocol import probe_ids
from pyrycode_relay.protocol.close_codes import Close, Refusal, for_directive
from pyrycode_relay.registry.memory_budget import MemoryBudget
from pyrycode_relay.registry.queues import Outbox, Payload
from pyrycode_relay.registry.registry import Claim, Claimed, Conflict, Registered, Registry
from pyrycode_relay.registry.slot import Phone, Slot
from tests.unit.bench import Binary, Cases, Leg, cases, data, endless, examples, notice

EVICT, KEEP = OnReclaim.EVICT, OnReclaim.KEEP
POLICIES = {"evict": (EVICT,), "keep": (KEEP,)}
GRACE = Limits().grace


class RegistryCase(Cases):
    """Makes registries on a clock of their own."""

    def registry(self, policy: OnReclaim = EVICT, **limits: float) -> Registry:
        """Return a registry; what expires goes to ``self.expired``."""
        self.clock = Clock()
        self.memory_budget = endless()
        self.expired: list[tuple[Slot, list[Phone]]] = []
        return Registry(
            self.clock,
            Limits(on_reclaim=policy, **limits),  # type: ignore[arg-type]
            self.memory_budget,
            lambda slot, phones: self.expired.append((slot, phones)),
        )

    def claim(self, registry: Registry, binary: Binary, server_id: str = "home") -> Claimed:
        """Claim a server-id, which has to replace."""
        outcome = registry.claim(server_id, binary)
        assert isinstance(outcome, Claimed), outcome
        return outcome

    def register(self, registry: Registry, server_id: str = "home") -> Phone:
        """Register a phone, which has to replace."""
        outcome = registry.register(server_id, Leg())
        assert isinstance(outcome, Registered), outcome
        return outcome.phone


class ClaimTests(RegistryCase):
    def test_first(self) -> None:
        """The first claim of a server-id wins."""
        registry, binary = self.registry(), Binary()
        claimed = self.claim(registry, binary)
        self.assertIs(claimed.slot.binary, binary)
        self.assertEqual((claimed.evicted, claimed.displaced), ((), None))
        self.assertEqual((registry.binaries, registry.in_grace), (1, 0))

    def test_second(self) -> None:
        """A second claim is a conflict that names the incumbent, which keeps the slot."""
        registry, first = self.registry(), Binary("first")
        slot = self.claim(registry, first).slot
        self.assertEqual(registry.claim("home", Binary("second")), Conflict(first))
        self.assertIs(slot.binary, first)
        self.assertEqual(registry.binaries, 1)

    def test_probes_conflict_too(self) -> None:
        """A probe's server-id gives no privilege: its holder is not displaced, nor does it."""
        registry, first = self.registry(), Binary("first")
        name = f"{probe_ids.PREFIX}1"
        self.claim(registry, first, name)
        self.assertEqual(registry.claim(name, Binary("second")), Conflict(first))
        for _ in range(Limits().max_phones):
            self.register(registry, name)
        self.assertIs(registry.register(name, Leg()), Refusal.AT_CAP)

    def test_apart(self) -> None:
        """Server-ids have nothing to do with each other, not even those that look alike."""
        registry = self.registry()
        slots = [self.claim(registry, Binary(), name).slot for name in ("home", "Home", "home ")]
        self.assertEqual(len({id(slot) for slot in slots}), 3)
        self.assertEqual(registry.binaries, 3)

    @cases(POLICIES)
    def test_reclaim(self, policy: OnReclaim) -> None:
        """A binary that comes back in grace gets its slot, up to the last moment."""
        registry, old = self.registry(policy), Binary("old")
        slot = self.claim(registry, old).slot
        self.assertTrue(registry.release(slot, old))
        self.assertEqual((registry.binaries, registry.in_grace), (0, 1))
        self.clock.advance(GRACE - 0.001)
        claimed = self.claim(registry, Binary("new"))
        self.assertIs(claimed.slot, slot)
        self.assertIsNone(claimed.displaced)
        self.assertEqual((registry.binaries, registry.in_grace), (1, 0))
        self.clock.advance(GRACE * 10)
        self.assertEqual(self.expired, [])
        self.assertEqual(registry.binaries, 1)

    def test_reclaim_evicts(self) -> None:
        """With evict, the phones there were lose their places when the binary comes back."""
        registry, old = self.registry(EVICT), Binary("old")
        slot = self.claim(registry, old).slot
        before = self.register(registry)
        registry.release(slot, old)
        during = self.register(registry)
        claimed = self.claim(registry, Binary("new"))
        self.assertEqual(claimed.evicted, (before, during))
        self.assertEqual(registry.phones, 0)

    def test_reclaim_keeps(self) -> None:
        """With keep, they stay."""
        registry, old = self.registry(KEEP), Binary("old")
        slot = self.claim(registry, old).slot
        phone = self.register(registry)
        registry.release(slot, old)
        self.assertEqual(self.claim(registry, Binary("new")).evicted, ())
        self.assertEqual(registry.phones, 1)
        self.assertFalse(phone.gone)


class TakeOverTests(RegistryCase):
    @cases(POLICIES)
    def test_silent_incumbent(self, policy: OnReclaim) -> None:
        """The incumbent that did not answer is displaced; its phones go as on a reclaim."""
        registry, old, new = self.registry(policy), Binary("old"), Binary("new")
        slot = self.claim(registry, old).slot
        phone = self.register(registry)
        outcome = registry.take_over("home", old, new)
        evicted = (phone,) if policy is EVICT else ()
        self.assertEqual(outcome, Claimed(slot, evicted, displaced=old))
        self.assertIs(slot.binary, new)
        self.assertEqual(registry.binaries, 1)

    def test_late_release(self) -> None:
        """The end of a displaced binary changes nothing any more."""
        registry, old, new = self.registry(), Binary("old"), Binary("new")
        slot = self.claim(registry, old).slot
        registry.take_over("home", old, new)
        self.assertFalse(registry.release(slot, old))
        self.assertIs(slot.binary, new)
        self.assertEqual((registry.binaries, registry.in_grace), (1, 0))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_another_was_faster(self) -> None:
        """A newcomer that probed one binary does not displace another that has come since."""
        registry, old, faster = self.registry(), Binary("old"), Binary("faster")
        slot = self.claim(registry, old).slot
        registry.take_over("home", old, faster)
        self.assertEqual(registry.take_over("home", old, Binary("late")), Conflict(faster))
        self.assertIs(slot.binary, faster)

    def test_incumbent_left(self) -> None:
        """Where the incumbent has gone meanwhile, a takeover is a reclaim."""
        registry, old, new = self.registry(), Binary("old"), Binary("new")
        slot = self.claim(registry, old).slot
        registry.release(slot, old)
        self.assertEqual(registry.take_over("home", old, new), Claimed(slot, reclaimed=True))
        self.clock.advance(GRACE * 2)
        self.assertEqual(self.expired, [])

    def test_slot_expired(self) -> None:
        """Where even the slot has gone meanwhile, a takeover is a first claim."""
        registry, old, new = self.registry(), Binary("old"), Binary("new")
        slot = self.claim(registry, old).slot
        registry.release(slot, old)
        self.clock.advance(GRACE)
        outcome = registry.take_over("home", old, new)
        assert isinstance(outcome, Claimed)
        self.assertIsNot(outcome.slot, slot)
        self.assertIs(outcome.slot.binary, new)
        self.assertIsNone(outcome.displaced)


class ExpiryTests(RegistryCase):
    @cases(POLICIES)
    def test_expiry(self, policy: OnReclaim) -> None:
        """When grace ends, slot, phones and what was held are gone together, and it is told."""
        registry, binary = self.registry(policy), Binary()
        slot = self.claim(registry, binary).slot
        phones = [self.register(registry), self.register(registry)]
        registry.release(slot, binary)
        phones[0].send(b"1")
        self.clock.advance(GRACE - 0.001)
        self.assertEqual(self.expired, [])
        self.clock.advance(0.001)
        self.assertEqual(self.expired, [(slot, phones)])
        self.assertEqual((registry.binaries, registry.in_grace, registry.phones), (0, 0, 0))
        self.assertEqual(self.memory_budget.total, 0)
        self.assertIs(registry.register("home", Leg()), Refusal.NO_SERVER)

    @cases(POLICIES)
    def test_probes_have_no_grace(self, policy: OnReclaim) -> None:
        """A probe's slot ends at once with its binary; its phones go with it, and it is told."""
        registry, binary = self.registry(policy), Binary()
        name = f"{probe_ids.PREFIX}1"
        slot = self.claim(registry, binary, name).slot
        phone = self.register(registry, name)
        self.assertTrue(registry.release(slot, binary))
        self.clock.advance(0)
        self.assertEqual(self.expired, [(slot, [phone])])
        self.assertEqual((registry.binaries, registry.in_grace, registry.phones), (0, 0, 0))
        self.assertIs(registry.register(name, Leg()), Refusal.NO_SERVER)

    def test_told_afterwards(self) -> None:
        """Whoever hears of an expiry can claim the server-id anew there and then."""
        clock, outcomes = Clock(), []
        registry = Registry(
            clock, Limits(), endless(), lambda *_: outcomes.append(registry.claim("home", Binary()))
        )
        binary = Binary()
        registry.release(self.claim(registry, binary).slot, binary)
        clock.advance(GRACE)
        self.assertIsInstance(outcomes[0], Claimed)
        self.assertEqual((registry.binaries, registry.in_grace), (1, 0))

    def test_each_grace_anew(self) -> None:
        """The timer of a grace that was ended by a reclaim has no part in the next one."""
        registry, binary = self.registry(), Binary()
        slot = self.claim(registry, binary).slot
        registry.release(slot, binary)
        self.clock.advance(GRACE - 1)
        again = Binary("again")
        self.claim(registry, again)
        registry.release(slot, again)
        self.clock.advance(GRACE - 1)
        self.assertEqual(self.expired, [])
        self.clock.advance(1)
        self.assertEqual(len(self.expired), 1)

    def test_released_once(self) -> None:
        """A second end of the same binary neither counts nor starts a second grace."""
        registry, binary = self.registry(), Binary()
        slot = self.claim(registry, binary).slot
        self.assertTrue(registry.release(slot, binary))
        self.clock.advance(GRACE / 2)
        self.assertFalse(registry.release(slot, binary))
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(GRACE / 2)
        self.assertEqual(len(self.expired), 1)

    def test_released_after_expiry(self) -> None:
        """A binary of a slot that has expired does not touch the slot that has its id now."""
        registry, old, new = self.registry(), Binary("old"), Binary("new")
        slot = self.claim(registry, old).slot
        registry.release(slot, old)
        self.clock.advance(GRACE)
        fresh = self.claim(registry, new).slot
        self.assertFalse(registry.release(slot, old))
        self.assertIs(fresh.binary, new)
        self.assertEqual(registry.in_grace, 0)

    def test_close(self) -> None:
        """Closing forgets everything, tells nobody and leaves no timer."""
        registry, binary = self.registry(), Binary(room=0)
        slot = self.claim(registry, binary, "a").slot
        self.claim(registry, Binary(room=0), "b")
        registry.release(slot, binary)
        for name in ("a", "b"):
            self.register(registry, name).send(b"1")
        registry.close()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual((registry.binaries, registry.in_grace, registry.phones), (0, 0, 0))
        self.assertEqual((self.expired, self.memory_budget.total), ([], 0))


class PlaceTests(RegistryCase):
    def test_no_server(self) -> None:
        """A server-id that nobody holds has no places."""
        registry = self.registry()
        self.claim(registry, Binary(), "other")
        self.assertIs(registry.register("home", Leg()), Refusal.NO_SERVER)

    def test_cap(self) -> None:
        """There are 16 places, and one is free as soon as its phone has gone."""
        registry = self.registry()
        self.claim(registry, Binary())
        phones = [self.register(registry) for _ in range(16)]
        self.assertIs(registry.register("home", Leg()), Refusal.AT_CAP)
        self.assertEqual(registry.phones, 16)
        registry.unregister(phones[3], 1001)
        self.register(registry)
        self.assertIs(registry.register("home", Leg()), Refusal.AT_CAP)

    def test_free_before_the_notice_is_taken(self) -> None:
        """A place is free though the notice of its last phone still waits for a slow binary."""
        registry = self.registry(max_phones=1)
        self.claim(registry, Binary(room=0))
        registry.unregister(self.register(registry), 1001)
        self.register(registry)

    def test_cap_for_each(self) -> None:
        """Each server-id has its own places."""
        registry = self.registry(max_phones=1)
        for name in ("a", "b"):
            self.claim(registry, Binary(), name)
            self.register(registry, name)

    def test_no_server_comes_first(self) -> None:
        """Whether somebody holds the id is looked at before the places are."""
        self.assertIs(self.registry(max_phones=0).register("home", Leg()), Refusal.NO_SERVER)

    @cases(POLICIES)
    def test_in_grace(self, policy: OnReclaim) -> None:
        """A slot in grace takes phones."""
        registry, binary = self.registry(policy), Binary()
        registry.release(self.claim(registry, binary).slot, binary)
        self.register(registry)
        self.assertEqual(registry.phones, 1)

    def test_conn_id(self) -> None:
        """A conn_id is ``client-``, the server-id and 8 lower-case hex digits, and never twice."""
        registry = self.registry(max_phones=100)
        self.claim(registry, Binary(), 'a"b\\c')
        ids = [self.register(registry, 'a"b\\c').conn_id for _ in range(100)]
        for conn_id in ids:
            self.assertRegex(conn_id, r'\Aclient-a"b\\c-[0-9a-f]{8}\Z')
        self.assertEqual(len(set(ids)), 100)

    def test_conn_id_taken(self) -> None:
        """A random suffix that is in use is drawn again, also while only a notice waits."""
        suffixes = iter(["00000001", "00000001", "00000002", "00000001", "00000002", "00000003"])
        registry = Registry(
            Clock(), Limits(), endless(), lambda *_: None, suffix=lambda: next(suffixes)
        )
        self.claim(registry, Binary(room=0))
        first, second = self.register(registry), self.register(registry)
        registry.unregister(first, 1001)
        third = self.register(registry)
        self.assertEqual([phone.conn_id[-1] for phone in (first, second, third)], ["1", "2", "3"])

    def test_unregistered_once(self) -> None:
        """A phone that ends twice is told of once."""
        registry, binary = self.registry(), Binary()
        self.claim(registry, binary)
        phone = self.register(registry)
        registry.unregister(phone, 4001)
        registry.unregister(phone, 1001)
        self.assertEqual(binary.inbox, [notice(phone, 4001)])

    def test_unregistered_after_eviction(self) -> None:
        """An evicted phone's end is nothing to anybody, least of all to the new binary."""
        registry, old, new = self.registry(EVICT), Binary("old"), Binary("new")
        slot = self.claim(registry, old).slot
        phone = self.register(registry)
        registry.release(slot, old)
        self.claim(registry, new)
        registry.unregister(phone, 4404)
        self.assertEqual(old.inbox + new.inbox, [])
        self.assertEqual(registry.phones, 0)

    def test_unregistered_after_expiry(self) -> None:
        """So is the end of a phone whose slot has expired, though its id is held anew."""
        registry, old, new = self.registry(), Binary("old"), Binary("new")
        slot = self.claim(registry, old).slot
        phone = self.register(registry)
        registry.release(slot, old)
        self.clock.advance(GRACE)
        self.claim(registry, new)
        registry.unregister(phone, 1000)
        self.assertEqual(new.inbox, [])

    def test_sent_to_its_own_binary(self) -> None:
        """What a phone sends goes to the binary of its server-id."""
        registry, mine, other = self.registry(), Binary("mine"), Binary("other")
        self.claim(registry, mine, "mine")
        self.claim(registry, other, "other")
        phone = self.register(registry, "mine")
        phone.send(b"1")
        self.assertEqual((mine.inbox, other.inbox), ([data(phone, b"1")], []))


Item = TypeVar("Item")

# Any history at all. The model is a plain reading of the contract: for each phone there is the
# list of messages that its binary is still to be sent. What really arrives is held against it as
# it arrives.

SERVERS = ("home", 'o"d\\d')
HOLD = 400
MAX_PHONES = 3
LEFT_OVERS = HOLD * MAX_PHONES

picks = st.integers(0, 30)
rooms = st.sampled_from([None, None, 0, 1, 2, 5])


class HeldBinary(Binary):
    """A binary whose messages are held against the model."""

    def __init__(self, name: str, server_id: str, arrived: Callable[[HeldBinary], None]) -> None:
        super().__init__(name)
        self.server_id = server_id
        self.slot: Slot | None = None
        self._arrived = arrived

    def send(self, *parts: Payload) -> None:
        super().send(*parts)
        self._arrived(self)


class Caller(Leg):
    """A phone: its connection with a real outbox, and what the model knows of it."""

    def __init__(self, history: History, server_id: str, told: HeldBinary | None) -> None:
        super().__init__()
        self.history = history
        self.server_id = server_id
        self.told = told
        """The binary that was handed this phone."""
        self.here = True
        self.takes = True
        self.outbox = Outbox(
            10_000, history.memory_budget.phones, lambda: history.shed(self, held=False)
        )
        self.due: deque[tuple[bytes, int]] = deque()
        """What its binary is still to be sent, each with its cost."""
        self.sent_to_it: list[bytes] = []
        self.closed_with: int | None = None
        self.phone: Phone

    def __repr__(self) -> str:
        return f"<{self.phone.conn_id}>"

    @property
    def cost(self) -> int:
        return sum(cost for _, cost in self.due)

    def backlog_full(self) -> None:
        self.history.shed(self, held=True)

    def deliver(self, frame: Payload) -> bool:
        if self.takes and not self.outbox:
            self.delivered.append(bytes(memoryview(frame)))
        else:
            self.outbox.push(frame)
        return self.here

    def close_after_queue(self, close: Close) -> None:
        if self.takes and not self.outbox:
            self.history.depart(self, close.code)
        else:
            self.outbox.push(close)

    def pump(self) -> None:
        """Take what waits in the outbox."""
        self.takes = True
        while self.outbox:
            item = self.outbox.pop()
            if isinstance(item, Close):
                self.history.depart(self, item.code)
            else:
                self.delivered.append(bytes(memoryview(item)))


class Place:
    """A slot as the model knows it."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.holder: HeldBinary | None = None
        self.until: float | None = None
        self.here: list[Caller] = []
        self.left: list[Caller] = []
        """Phones that have gone and of which something is still to be sent."""


class History(RuleBasedStateMachine):
    """Any history of one registry; the subclasses set the policy and the budget."""

    policy: OnReclaim
    bytes_for_all = 10**9

    @initialize()
    def begin(self) -> None:
        self.clock = Clock()
        self.memory_budget = MemoryBudget(self.bytes_for_all, self.clock.seconds)
        limits = Limits(on_reclaim=self.policy, hold_bytes=HOLD, max_phones=MAX_PHONES)
        numbers = itertools.count()
        self.registry = Registry(
            self.clock,
            limits,
            self.memory_budget,
            self.expired,
            # Each is offered twice running, so that some are in use.
            suffix=lambda: f"{next(numbers) // 2:08x}",
        )
        self.places: dict[str, Place] = {}
        self.binaries: list[HeldBinary] = []
        self.closing: list[Caller] = []
        self.numbers = itertools.count()

    # What happens

    @rule(server_id=st.sampled_from(SERVERS), room=rooms)
    def claim(self, server_id: str, room: int | None) -> None:
        """A binary comes."""
        newcomer = self.newcomer(server_id, room)
        place = self.places.get(server_id)
        outcome = self.registry.claim(server_id, newcomer)
        if place is not None and place.holder is not None:
            assert outcome == Conflict(place.holder)
        else:
            self.installed(newcomer, outcome, None)

    @precondition(lambda self: self.binaries)
    @rule(which=picks, room=rooms)
    def take_over(self, which: int, room: int | None) -> None:
        """A binary comes that found another one silent, now or a long time ago."""
        incumbent = self.pick(self.binaries, which)
        newcomer = self.newcomer(incumbent.server_id, room)
        place = self.places.get(incumbent.server_id)
        outcome = self.registry.take_over(incumbent.server_id, incumbent, newcomer)
        if place is None or place.holder is None:
            self.installed(newcomer, outcome, None)
        elif place.holder is incumbent:
            self.installed(newcomer, outcome, incumbent)
        else:
            assert outcome == Conflict(place.holder)

    @precondition(lambda self: self.binaries)
    @rule(which=picks)
    def drop(self, which: int) -> None:
        """A binary's connection ends, whether it holds its slot or was displaced, or again."""
        binary = self.pick(self.binaries, which)
        if binary.slot is None:
            return
        place = self.places.get(binary.server_id)
        held = place is not None and place.holder is binary
        assert self.registry.release(binary.slot, binary) is held
        if place is not None and held:
            place.holder = None
            place.until = self.clock.seconds() + GRACE
            if self.policy is EVICT:
                # Nobody will be told of those that have gone.
                place.left.clear()

    @rule(seconds=st.sampled_from([0.0, 1.0, 10.0, GRACE / 2, GRACE - 1, GRACE, 2 * GRACE]))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.clock.advance(seconds)

    @rule(server_id=st.sampled_from(SERVERS))
    def register(self, server_id: str) -> None:
        """A phone comes."""
        place = self.places.get(server_id)
        caller = Caller(self, server_id, place.holder if place else None)
        outcome = self.registry.register(server_id, caller)
        if place is None:
            assert outcome is Refusal.NO_SERVER
        elif len(place.here) >= MAX_PHONES:
            assert outcome is Refusal.AT_CAP
        else:
            assert isinstance(outcome, Registered)
            caller.phone = outcome.phone
            prefix, _, suffix = caller.phone.conn_id.rpartition("-")
            assert prefix == f"client-{server_id}"
            assert len(suffix) == 8
            in_use = [other.phone.conn_id for other in (*place.here, *place.left)]
            assert caller.phone.conn_id not in in_use
            place.here.append(caller)

    @precondition(lambda self: self.talkers())
    @rule(which=picks, size=st.sampled_from([1, 10, 100, 250]))
    def send(self, which: int, size: int) -> None:
        """A phone that is being read sends a frame."""
        caller = self.pick(self.talkers(), which)
        frame = f'"{next(self.numbers):0{size}}"'.encode()
        message = b'{"conn_id":%s,"frame":%s}' % (self.quoted(caller), frame)
        caller.due.append((message, len(frame) + ITEM_COST))
        caller.phone.send(frame)

    @precondition(lambda self: self.callers())
    @rule(which=picks, code=st.sampled_from([1000, 1001, 4001]))
    def leave(self, which: int, code: int) -> None:
        """A phone's connection ends."""
        self.depart(self.pick(self.callers(), which), code)

    @precondition(lambda self: self.closing)
    @rule(which=picks)
    def end_again(self, which: int) -> None:
        """The end of a phone that had lost its place before is heard of at last."""
        self.registry.unregister(self.pick(self.closing, which).phone, 4404)

    @precondition(lambda self: self.binaries)
    @rule(which=picks, room=rooms)
    def flow(self, which: int, room: int | None) -> None:
        """A binary takes more, for a while or for good, or nothing."""
        binary = self.pick(self.binaries, which)
        binary.room = room
        if binary.slot is not None and binary.slot.binary is binary:
            binary.slot.drain()

    @precondition(lambda self: self.answerable())
    @rule(which=picks, size=st.sampled_from([1, 100]))
    def answer(self, which: int, size: int) -> None:
        """A binary sends a frame to one of its phones."""
        caller = self.pick(self.answerable(), which)
        frame = f'"{next(self.numbers):0{size}}"'.encode()
        caller.sent_to_it.append(frame)
        self.found(caller).leg.deliver(frame)

    @precondition(lambda self: self.answerable())
    @rule(which=picks, code=st.sampled_from([1, 1000, 4401, 65535]))
    def direct(self, which: int, code: int) -> None:
        """A binary has one of its phones closed, after what it has sent to it."""
        caller = self.pick(self.answerable(), which)
        phone = self.found(caller)
        phone.close_requested = True
        phone.leg.close_after_queue(for_directive(code))

    @precondition(lambda self: self.callers())
    @rule(which=picks)
    def stall(self, which: int) -> None:
        """A phone takes no more."""
        self.pick(self.callers(), which).takes = False

    @precondition(lambda self: self.callers())
    @rule(which=picks)
    def unstall(self, which: int) -> None:
        """A phone takes what waits for it."""
        self.pick(self.callers(), which).pump()

    # What follows from it

    def newcomer(self, server_id: str, room: int | None) -> HeldBinary:
        """Return a binary that has just connected."""
        binary = HeldBinary(f"binary {len(self.binaries)}", server_id, self.arrived)
        binary.room = room
        self.binaries.append(binary)
        return binary

    def installed(self, binary: HeldBinary, outcome: Claim, displaced: Binary | None) -> None:
        """Take note that a binary holds its slot, and do what its endpoint would do."""
        assert isinstance(outcome, Claimed)
        assert outcome.displaced is displaced
        place = self.places.get(binary.server_id)
        if place is None:
            place = self.places[binary.server_id] = Place(outcome.slot)
        assert outcome.slot is place.slot
        assert outcome.slot.binary is binary
        binary.slot = outcome.slot
        place.holder, place.until = binary, None
        evicted = {phone.conn_id for phone in outcome.evicted}
        assert len(evicted) == len(outcome.evicted)
        if self.policy is EVICT:
            assert evicted == {caller.phone.conn_id for caller in place.here}
            self.dismiss(place)
        else:
            assert not evicted
            for caller in (*place.here, *place.left):
                caller.told = binary
        outcome.slot.drain()

    def dismiss(self, place: Place) -> None:
        """Close all phones of a place; their ends are heard of later."""
        for caller in place.here:
            self.part(caller)
            self.closing.append(caller)
        place.here.clear()
        place.left.clear()

    def part(self, caller: Caller) -> None:
        """End a phone's connection."""
        caller.here = False
        caller.outbox.clear()

    def depart(self, caller: Caller, code: int) -> None:
        """End a phone's connection while it has its place."""
        place = self.places[caller.server_id]
        place.here.remove(caller)
        self.part(caller)
        holder = place.holder
        if caller.phone.close_requested:
            owed = False
        elif holder is None:
            owed = self.policy is KEEP
        else:
            owed = holder is caller.told
        if owed:
            text = b'{"conn_id":%s,"close_code":%d}' % (self.quoted(caller), code)
            waits = holder is None or not holder.writable
            left = sum(other.cost for other in place.left)
            caller.due.append((text, len(text) + ITEM_COST))
            if waits and left + caller.cost > LEFT_OVERS:
                # Too much to keep but for the notice.
                caller.due = deque([caller.due[-1]])
            place.left.append(caller)
        self.registry.unregister(caller.phone, code)
        self.registry.unregister(caller.phone, 1001)

    def settled(self) -> list[Place]:
        """Forget what little memory has cost of phones that have gone, and return all places."""
        for place in self.places.values():
            lost = [c for c in place.left if not place.slot.knows(c.phone.conn_id)]
            assert not lost or self.memory_budget.shed, (
                "what a phone left behind was lost without need"
            )
            place.left[:] = [c for c in place.left if c not in lost]
            for caller in place.left:
                hold = caller.phone.pending
                if hold.cost - hold.overhead != caller.cost:
                    assert self.memory_budget.shed, "frames left behind were lost without need"
                    caller.due = deque([caller.due[-1]])
        return [*self.places.values()]

    def shed(self, caller: Caller, held: bool) -> None:
        """Close a phone as the memory ran out; frames that were ``held`` of it are dropped."""
        assert caller.here
        caller.shed += 1
        if held:
            caller.due.clear()
        self.depart(caller, 1011)

    def expired(self, slot: Slot, phones: list[Phone]) -> None:
        """Take note that a slot's grace has ended."""
        place = self.places.pop(slot.server_id)
        assert place.slot is slot
        assert place.holder is None
        assert place.until is not None
        assert place.until <= self.clock.seconds()
        assert [phone.conn_id for phone in phones] == [c.phone.conn_id for c in place.here]
        self.dismiss(place)

    def arrived(self, binary: HeldBinary) -> None:
        """Hold what a binary was just sent against what it was to be sent."""
        message = binary.inbox[-1]
        place = self.places[binary.server_id]
        assert place.holder is binary, "sent to a binary that holds no slot"
        conn_id = json.loads(message)["conn_id"]
        [caller] = [c for c in (*place.here, *place.left) if c.phone.conn_id == conn_id]
        assert caller.told is binary, "sent to a binary that was not handed this phone"
        assert caller.due, f"more than was to be sent: {message!r}"
        expected, _ = caller.due.popleft()
        assert message == expected
        if caller in place.left and not caller.due:
            place.left.remove(caller)

    # Who is there

    def pick(self, among: Sequence[Item], which: int) -> Item:
        """Return one of several."""
        return among[which % len(among)]

    def quoted(self, caller: Caller) -> bytes:
        return json.dumps(caller.phone.conn_id).encode()

    def callers(self) -> list[Caller]:
        """Return the phones that have a place."""
        return [caller for place in self.places.values() for caller in place.here]

    def talkers(self) -> list[Caller]:
        """Return the phones of which a message could come in."""
        return [c for c in self.callers() if c.reading and not c.phone.close_requested]

    def answerable(self) -> list[Caller]:
        """Return the phones that a binary can address."""
        return [
            caller
            for place in self.places.values()
            for caller in place.here
            if place.holder is not None and not caller.phone.close_requested
        ]

    def found(self, caller: Caller) -> Phone:
        """Look a phone up as its binary's endpoint does."""
        phone = self.places[caller.server_id].slot.phones[caller.phone.conn_id]
        assert phone is caller.phone
        return phone

    # What always holds

    @invariant()
    def counts(self) -> None:
        held = [place for place in self.places.values() if place.holder is not None]
        assert self.registry.binaries == len(held)
        assert self.registry.in_grace == len(self.places) - len(held)
        assert self.registry.phones == len(self.callers())
        assert len(self.clock.getDelayedCalls()) == self.registry.in_grace

    @invariant()
    def nobody_stays_too_long(self) -> None:
        for place in self.places.values():
            assert (place.until is None) is (place.holder is not None)
            assert place.until is None or place.until > self.clock.seconds()

    @invariant()
    def nothing_waits_without_need(self) -> None:
        for place in self.settled():
            if place.holder is not None and place.holder.writable:
                assert not any(caller.due for caller in place.here)
                assert not place.left
                assert all(caller.reading for caller in place.here)

    @invariant()
    def read_as_long_as_there_is_room(self) -> None:
        for caller in self.callers():
            if caller.cost >= HOLD:
                assert not caller.reading
            if caller.cost <= HOLD // 2:
                assert caller.reading

    @invariant()
    def every_byte_is_accounted_for(self) -> None:
        waiting = sum(
            caller.cost + caller.phone.pending.overhead
            for place in self.settled()
            for caller in (*place.here, *place.left)
        )
        assert self.memory_budget.total == waiting + sum(c.outbox.cost for c in self.callers())
        assert self.memory_budget.total <= self.bytes_for_all

    @invariant()
    def answers_come_in_order(self) -> None:
        for caller in self.callers():
            assert caller.delivered == caller.sent_to_it[: len(caller.delivered)]
            if caller.takes:
                assert caller.delivered == caller.sent_to_it

    def teardown(self) -> None:
        """When all have gone, nothing is left: no place, no timer, not a byte."""
        if not hasattr(self, "registry"):
            return
        for binary in self.binaries:
            self.drop(self.binaries.index(binary))
        self.clock.advance(GRACE)
        assert (self.registry.binaries, self.registry.in_grace, self.registry.phones) == (0, 0, 0)
        assert self.places == {}
        assert self.memory_budget.total == 0
        assert self.clock.getDelayedCalls() == []


class EvictHistory(History):
    policy = EVICT


class KeepHistory(History):
    policy = KEEP


class TightEvictHistory(History):
    policy = EVICT
    bytes_for_all = 1900


class TightKeepHistory(History):
    policy = KEEP
    bytes_for_all = 1900


class HistoryTests(Cases):
    @cases(
        {
            "evict": (EvictHistory,),
            "keep": (KeepHistory,),
            "evict_with_little_memory": (TightEvictHistory,),
            "keep_with_little_memory": (TightKeepHistory,),
        }
    )
    def test_any(self, history: type[History]) -> None:
        """In any history each frame and each notice goes where the contract sends it, once."""
        run_state_machine_as_test(history, settings=examples(60, stateful_step_count=50))
