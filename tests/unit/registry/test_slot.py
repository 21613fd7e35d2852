"""One server-id: what phones send goes to its binary at once, or is held, in order."""

from __future__ import annotations

from pyrycode_relay.limits import ITEM_COST, Limits, OnReclaim
from pyrycode_relay.registry.memory_budget import MemoryBudget
from pyrycode_relay.registry.slot import Phone, Slot
from tests.unit.bench import Binary, Cases, Leg, bounded, cases, data, endless, notice

EVICT, KEEP = OnReclaim.EVICT, OnReclaim.KEEP
POLICIES = {"evict": (EVICT,), "keep": (KEEP,)}
GONE = 1001


class SlotCase(Cases):
    """Makes slots with phones in them."""

    def slot(
        self,
        policy: OnReclaim = EVICT,
        hold_bytes: int = 1000,
        max_phones: int = 16,
        memory_budget: MemoryBudget | None = None,
    ) -> Slot:
        """Return a slot that nobody holds."""
        limits = Limits(on_reclaim=policy, hold_bytes=hold_bytes, max_phones=max_phones)
        self.memory_budget = memory_budget or endless()
        return Slot("home", limits, self.memory_budget)

    def phone(self, slot: Slot, suffix: str = "00000001") -> Phone:
        """Give a phone a place; its leg gives it up when it is told of its backlog."""
        leg = Leg()
        phone = slot.add(f"client-home-{suffix}", leg)
        leg.on_shed = lambda: None if phone.gone else slot.remove(phone, 1011)
        return phone

    def leg(self, phone: Phone) -> Leg:
        """Return a phone's stand-in of a connection."""
        assert isinstance(phone.leg, Leg)
        return phone.leg


class SendingTests(SlotCase):
    def test_at_once(self) -> None:
        """A binary that takes more gets a frame at once, in its envelope, byte for byte."""
        slot, binary = self.slot(), Binary()
        slot.attach(binary)
        phone = self.phone(slot)
        phone.send(b'{ "b":1,"a" : 1e999 }')
        self.assertEqual(
            binary.inbox,
            [b'{"conn_id":"client-home-00000001","frame":{ "b":1,"a" : 1e999 }}'],
        )
        self.assertEqual(self.memory_budget.total, 0)

    def test_held_for_a_slow_binary(self) -> None:
        """What a binary does not take is held, and comes in order when it takes more."""
        slot, binary = self.slot(), Binary(room=1)
        slot.attach(binary)
        phone = self.phone(slot)
        for number in (b"1", b"2", b"3"):
            phone.send(number)
        self.assertEqual(binary.inbox, [data(phone, b"1")])
        binary.room = None
        slot.drain()
        self.assertEqual(binary.inbox, [data(phone, number) for number in (b"1", b"2", b"3")])

    def test_held_in_grace(self) -> None:
        """What a phone sends while nobody holds the slot is held, and the phone stays."""
        slot = self.slot(KEEP)
        phone = self.phone(slot)
        phone.send(b"1")
        self.assertTrue(self.leg(phone).reading)
        binary = Binary()
        slot.attach(binary)
        slot.drain()
        self.assertEqual(binary.inbox, [data(phone, b"1")])

    def test_no_overtaking(self) -> None:
        """A frame sent while older ones wait goes behind them, though the binary takes more now."""
        slot, binary = self.slot(), Binary(room=0)
        slot.attach(binary)
        phone = self.phone(slot)
        phone.send(b"1")
        binary.room = None
        phone.send(b"2")
        slot.drain()
        self.assertEqual(binary.inbox, [data(phone, b"1"), data(phone, b"2")])

    def test_in_turn(self) -> None:
        """Phones with something held are served in turn: a talkative one delays nobody for long."""
        slot, binary = self.slot(), Binary(room=0)
        slot.attach(binary)
        loud, quiet = self.phone(slot), self.phone(slot, "00000002")
        for number in (b"1", b"2", b"3"):
            loud.send(number)
        quiet.send(b"9")
        binary.room = 2
        slot.drain()
        self.assertEqual(binary.inbox, [data(loud, b"1"), data(quiet, b"9")])

    def test_in_turn_when_gone(self) -> None:
        """A phone that has gone has one turn like any other for what it left behind."""
        slot, binary = self.slot(), Binary(room=0)
        slot.attach(binary)
        gone, stays = self.phone(slot), self.phone(slot, "00000002")
        gone.send(b"1")
        gone.send(b"2")
        slot.remove(gone, GONE)
        stays.send(b"8")
        stays.send(b"9")
        binary.room = None
        slot.drain()
        first, second = data(gone, b"1"), data(gone, b"2")
        self.assertEqual(
            binary.inbox,
            [first, data(stays, b"8"), second, data(stays, b"9"), notice(gone, GONE)],
        )

    def test_drain_stops(self) -> None:
        """What is held goes out as far as the binary takes it, and no further."""
        slot, binary = self.slot(), Binary(room=0)
        slot.attach(binary)
        phone = self.phone(slot)
        for number in (b"1", b"2", b"3"):
            phone.send(number)
        binary.room = 2
        slot.drain()
        self.assertEqual(len(binary.inbox), 2)
        self.assertEqual(self.memory_budget.total, 1 + ITEM_COST)

    def test_drain_without_a_binary(self) -> None:
        """Without a binary nothing goes out."""
        slot = self.slot()
        self.phone(slot).send(b"1")
        slot.drain()
        self.assertEqual(self.memory_budget.total, 1 + ITEM_COST)


class ReadingTests(SlotCase):
    def test_paused(self) -> None:
        """At its byte budget a phone is not read any more; no frame is lost by that."""
        slot = self.slot(KEEP, hold_bytes=2 * (10 + ITEM_COST))
        phone = self.phone(slot)
        phone.send(b"1" * 10)
        self.assertTrue(self.leg(phone).reading)
        phone.send(b"2" * 10)
        self.assertFalse(self.leg(phone).reading)
        phone.send(b"3" * 10)  # was in its socket's buffer already
        binary = Binary()
        slot.attach(binary)
        slot.drain()
        self.assertEqual(binary.inbox, [data(phone, digit * 10) for digit in (b"1", b"2", b"3")])

    def test_resumed(self) -> None:
        """A paused phone is read again when at most half of its budget is used."""
        slot, binary = self.slot(hold_bytes=4 * (1 + ITEM_COST)), Binary(room=0)
        slot.attach(binary)
        phone = self.phone(slot)
        for _ in range(4):
            phone.send(b"1")
        binary.room = 1
        slot.drain()
        self.assertFalse(self.leg(phone).reading)
        binary.room = 1
        slot.drain()
        self.assertTrue(self.leg(phone).reading)

    def test_only_itself(self) -> None:
        """A phone that is paused has no part in what its siblings may send."""
        slot = self.slot(KEEP, hold_bytes=100)
        loud, quiet = self.phone(slot), self.phone(slot, "00000002")
        loud.send(b"1" * 100)
        quiet.send(b"9")
        self.assertFalse(self.leg(loud).reading)
        self.assertTrue(self.leg(quiet).reading)


class NoticeTests(SlotCase):
    @cases(POLICIES)
    def test_notice(self, policy: OnReclaim) -> None:
        """When a phone goes, its binary hears of it, with the code, though it sent no frame."""
        slot, binary = self.slot(policy), Binary()
        slot.attach(binary)
        phone = self.phone(slot)
        slot.remove(phone, 4001)
        self.assertEqual(binary.inbox, [notice(phone, 4001)])
        self.assertEqual(slot.phones, {})
        self.assertTrue(phone.gone)

    @cases(POLICIES)
    def test_behind_the_last_frame(self, policy: OnReclaim) -> None:
        """The notice waits behind what is held of the phone, and both come when they can."""
        slot, binary = self.slot(policy), Binary(room=0)
        slot.attach(binary)
        phone = self.phone(slot)
        phone.send(b"1")
        slot.remove(phone, GONE)
        self.assertEqual(binary.inbox, [])
        binary.room = None
        slot.drain()
        self.assertEqual(binary.inbox, [data(phone, b"1"), notice(phone, GONE)])
        self.assertEqual(self.memory_budget.total, 0)

    @cases(POLICIES)
    def test_notice_overtakes_nothing(self, policy: OnReclaim) -> None:
        """It waits there too where the binary takes more already and has not been handed it yet."""
        slot, binary = self.slot(policy), Binary(room=0)
        slot.attach(binary)
        phone = self.phone(slot)
        phone.send(b"1")
        binary.room = None
        slot.remove(phone, GONE)
        slot.drain()
        self.assertEqual(binary.inbox, [data(phone, b"1"), notice(phone, GONE)])

    @cases(POLICIES)
    def test_waits_alone(self, policy: OnReclaim) -> None:
        """A notice alone waits too, for a binary that takes nothing at the moment."""
        slot, binary = self.slot(policy), Binary(room=0)
        slot.attach(binary)
        phone = self.phone(slot)
        slot.remove(phone, GONE)
        self.assertEqual(binary.inbox, [])
        binary.room = None
        slot.drain()
        self.assertEqual(binary.inbox, [notice(phone, GONE)])

    @cases(POLICIES)
    def test_not_after_a_directive(self, policy: OnReclaim) -> None:
        """A binary that asked for the closing is not told of it."""
        slot, binary = self.slot(policy), Binary()
        slot.attach(binary)
        phone = self.phone(slot)
        phone.close_requested = True
        slot.remove(phone, 4401)
        self.assertEqual(binary.inbox, [])
        self.assertEqual(self.memory_budget.total, 0)

    def test_in_grace_with_evict(self) -> None:
        """A phone that goes in grace leaves nothing: the next binary never knew of it."""
        slot = self.slot(EVICT)
        slot.attach(Binary("old"))
        phone = self.phone(slot)
        slot.detach()
        phone.send(b"1")
        slot.remove(phone, GONE)
        self.assertEqual(self.memory_budget.total, 0)
        binary = Binary("new")
        slot.attach(binary)
        slot.drain()
        self.assertEqual(binary.inbox, [])

    def test_in_grace_with_keep(self) -> None:
        """With keep the next binary is handed what a phone sent in grace, and its notice."""
        slot = self.slot(KEEP)
        slot.attach(Binary("old"))
        phone = self.phone(slot)
        slot.detach()
        phone.send(b"1")
        slot.remove(phone, GONE)
        binary = Binary("new")
        slot.attach(binary)
        slot.drain()
        self.assertEqual(binary.inbox, [data(phone, b"1"), notice(phone, GONE)])

    def test_left_behind_with_evict(self) -> None:
        """What waited for a slow binary dies with it when its phones are not handed on."""
        slot, slow = self.slot(EVICT), Binary("slow", room=0)
        slot.attach(slow)
        phone = self.phone(slot)
        phone.send(b"1")
        slot.remove(phone, GONE)
        slot.detach()
        self.assertEqual(self.memory_budget.total, 0)
        binary = Binary("new")
        slot.attach(binary)
        slot.drain()
        self.assertEqual(slow.inbox + binary.inbox, [])

    def test_left_behind_with_keep(self) -> None:
        """What waited for a slow binary goes to the next one when its phones are handed on."""
        slot, slow = self.slot(KEEP), Binary("slow", room=1)
        slot.attach(slow)
        phone = self.phone(slot)
        for number in (b"1", b"2"):
            phone.send(number)
        slot.remove(phone, GONE)
        slot.detach()
        binary = Binary("new")
        slot.attach(binary)
        slot.drain()
        self.assertEqual(slow.inbox, [data(phone, b"1")])
        self.assertEqual(binary.inbox, [data(phone, b"2"), notice(phone, GONE)])

    def test_remembered(self) -> None:
        """A conn_id is in use for as long as something of its phone waits."""
        slot, binary = self.slot(), Binary(room=0)
        slot.attach(binary)
        phone = self.phone(slot)
        slot.remove(phone, GONE)
        self.assertTrue(slot.knows(phone.conn_id))
        binary.room = None
        slot.drain()
        self.assertFalse(slot.knows(phone.conn_id))


class ReclaimTests(SlotCase):
    def test_evict(self) -> None:
        """With evict a binary that comes back finds no phone, and nothing of what they sent."""
        slot = self.slot(EVICT)
        slot.attach(Binary("old"))
        phones = [self.phone(slot), self.phone(slot, "00000002")]
        slot.detach()
        phones[0].send(b"1")
        binary = Binary("new")
        self.assertEqual(slot.attach(binary), phones)
        slot.drain()
        self.assertEqual(slot.phones, {})
        self.assertTrue(all(phone.gone for phone in phones))
        self.assertEqual(binary.inbox, [])
        self.assertEqual(self.memory_budget.total, 0)

    def test_keep(self) -> None:
        """With keep the phones stay, and the next binary gets their frames and their notices."""
        slot = self.slot(KEEP)
        slot.attach(Binary("old"))
        phone = self.phone(slot)
        slot.detach()
        phone.send(b"1")
        binary = Binary("new")
        self.assertEqual(slot.attach(binary), [])
        slot.drain()
        phone.send(b"2")
        slot.remove(phone, GONE)
        self.assertEqual(binary.inbox, [data(phone, b"1"), data(phone, b"2"), notice(phone, GONE)])

    def test_replaced_with_keep(self) -> None:
        """A binary that was replaced hears no more of the phones, its successor does."""
        slot, old, new = self.slot(KEEP), Binary("old"), Binary("new")
        slot.attach(old)
        phone = self.phone(slot)
        slot.attach(new)
        slot.remove(phone, GONE)
        self.assertEqual(old.inbox, [])
        self.assertEqual(new.inbox, [notice(phone, GONE)])

    @cases(POLICIES)
    def test_clear(self, policy: OnReclaim) -> None:
        """Clearing a slot takes all places and everything held, left-overs too."""
        slot, binary = self.slot(policy), Binary(room=0)
        slot.attach(binary)
        stays, goes = self.phone(slot), self.phone(slot, "00000002")
        stays.send(b"1")
        goes.send(b"2")
        slot.remove(goes, GONE)
        self.assertEqual(slot.clear(), [stays])
        self.assertEqual(self.memory_budget.total, 0)
        self.assertFalse(slot.knows(stays.conn_id) or slot.knows(goes.conn_id))
        binary.room = None
        slot.drain()
        self.assertEqual(binary.inbox, [])


class BoundTests(SlotCase):
    def leave_behind(self, slot: Slot, count: int, frames: int = 0) -> list[Phone]:
        """Have phones come, send and go while nothing is taken; return them."""
        phones = []
        for number in range(count):
            phone = self.phone(slot, f"{number:08x}")
            for _ in range(frames):
                phone.send(b"1")
            slot.remove(phone, GONE)
            phones.append(phone)
        return phones

    @cases(POLICIES)
    def test_left_overs_are_bounded(self, policy: OnReclaim) -> None:
        """Frames of phones that have gone take no more than all phones of a slot may hold.

        That they have gone is told of all of them, once.
        """
        slot, binary = self.slot(policy, hold_bytes=500, max_phones=2), Binary(room=0)
        slot.attach(binary)
        phones = self.leave_behind(slot, 100, frames=2)
        notices = [notice(phone, GONE) for phone in phones]
        self.assertLessEqual(
            self.memory_budget.total - sum(phone.pending.overhead for phone in phones),
            500 * 2 + sum(len(each) + ITEM_COST for each in notices),
        )
        binary.room = None
        slot.drain()
        told = [each for each in binary.inbox if b"close_code" in each]
        self.assertEqual(sorted(told), notices)
        self.assertEqual(self.memory_budget.total, 0)

    @cases(POLICIES)
    def test_bound_is_given_back(self, policy: OnReclaim) -> None:
        """What the binary has taken counts no more: the next left-overs have all their room."""
        slot, binary = self.slot(policy, hold_bytes=500, max_phones=2), Binary(room=0)
        slot.attach(binary)
        rounds = []
        for _ in range(3):
            self.leave_behind(slot, 20, frames=2)
            rounds.append(self.memory_budget.total)
            binary.room = None
            slot.drain()
            binary.room = 0
        self.assertEqual(len(set(rounds)), 1, rounds)
        self.assertEqual(self.memory_budget.total, 0)

    @cases(POLICIES)
    def test_none_is_dropped_within_the_bound(self, policy: OnReclaim) -> None:
        """Within that bound nothing gets lost, and it comes in the order of the phones' going."""
        slot, binary = self.slot(policy), Binary(room=0)
        slot.attach(binary)
        phones = self.leave_behind(slot, 20, frames=1)
        binary.room = None
        slot.drain()
        self.assertEqual(
            binary.inbox,
            [data(phone, b"1") for phone in phones] + [notice(phone, GONE) for phone in phones],
        )


class SheddingTests(SlotCase):
    def test_largest_goes(self) -> None:
        """When memory runs out the phone with the most held is closed, not the one that sent last.

        Its frames are dropped; the binary hears that it has gone.
        """
        slot, binary = (
            self.slot(memory_budget=bounded(1000), hold_bytes=10_000),
            Binary(room=0),
        )
        slot.attach(binary)
        loud, quiet = self.phone(slot), self.phone(slot, "00000002")
        legs = self.leg(loud), self.leg(quiet)
        loud.send(b"1" * 800)
        quiet.send(b"9" * 100)
        self.assertEqual([leg.shed for leg in legs], [1, 0])
        self.assertLessEqual(self.memory_budget.total, 1000)
        binary.room = None
        slot.drain()
        self.assertEqual(binary.inbox, [data(quiet, b"9" * 100), notice(loud, 1011)])

    def test_oneself(self) -> None:
        """The phone whose frame was too much may be the one that goes."""
        slot, binary = (
            self.slot(memory_budget=bounded(1000), hold_bytes=10_000),
            Binary(room=0),
        )
        slot.attach(binary)
        phone = self.phone(slot)
        leg = self.leg(phone)
        phone.send(b"1" * 2000)
        self.assertEqual(leg.shed, 1)
        binary.room = None
        slot.drain()
        self.assertEqual(binary.inbox, [notice(phone, 1011)])

    @cases(POLICIES)
    def test_left_overs_go_too(self, policy: OnReclaim) -> None:
        """What a phone left behind can be what is dropped, in place of one that is there.

        The frames, that is: the binary has to hear that the phone is gone.
        """
        slot, binary = (
            self.slot(policy, memory_budget=bounded(3300), hold_bytes=10_000),
            Binary(room=0),
        )
        slot.attach(binary)
        gone, stays = self.phone(slot), self.phone(slot, "00000002")
        legs = self.leg(gone), self.leg(stays)
        gone.send(b"1" * 1400)
        slot.remove(gone, GONE)
        stays.send(b"2" * 200)
        self.assertEqual([leg.shed for leg in legs], [0, 0])
        self.assertEqual(self.memory_budget.shed, 0)
        stays.send(b"3" * 200)
        self.assertEqual([leg.shed for leg in legs], [0, 0])
        self.assertEqual(self.memory_budget.shed, 1)
        self.assertLessEqual(self.memory_budget.total, 3300)
        binary.room = None
        slot.drain()
        self.assertCountEqual(
            binary.inbox,
            [data(stays, b"2" * 200), data(stays, b"3" * 200), notice(gone, GONE)],
        )

    @cases(POLICIES)
    def test_small_queues(self, policy: OnReclaim) -> None:
        """Shedding works where a notice is larger than what it stands for, over and over."""
        for budget in (100, 130, 200, 260, 400, 700, 900, 1500, 1700, 2500):
            slot, binary = self.slot(policy, memory_budget=bounded(budget)), Binary()
            slot.attach(binary)
            for _ in range(10):
                binary.room = 0
                phones = [self.phone(slot, f"{number:08x}") for number in range(3)]
                for phone in phones:
                    phone.send(b"1")
                for phone in phones:
                    if not phone.gone:
                        slot.remove(phone, GONE)
                    self.assertLessEqual(self.memory_budget.total, budget)
                binary.room = None
                slot.drain()
                self.assertEqual(self.memory_budget.total, 0)
                self.assertFalse(any(slot.knows(phone.conn_id) for phone in phones))
