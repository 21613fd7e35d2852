"""One server-id: its binary, its phones, and what the phones send to the binary.

A frame goes to the binary at once. While the binary is slow or absent, frames wait with their
phone; over a byte budget the phone's socket is not read. Waiting frames go out phone by phone in
turn, each phone's in the order it sent them. Source: "Registry" and "Flow control and liveness"
in ``docs/protocol.md``.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from pyrycode_relay.limits import Limits, OnReclaim
from pyrycode_relay.protocol.envelope import SUFFIX, close_notice, data_prefix
from pyrycode_relay.registry.drain_time import Pace
from pyrycode_relay.registry.legs import BinaryLeg, PhoneLeg
from pyrycode_relay.registry.memory_budget import MemoryBudget
from pyrycode_relay.registry.queues import PendingFrames

_DEPARTED_COST: Final = 576
"""Bytes that a departed phone takes while its frames or its close notice wait, without its ids."""


class Phone:
    """A phone's place in a slot."""

    __slots__ = ("close_requested", "conn_id", "gone", "leg", "pending", "prefix", "slot")

    def __init__(
        self, slot: Slot, conn_id: str, leg: PhoneLeg, budget: int, memory_budget: MemoryBudget
    ) -> None:
        self.slot = slot
        self.conn_id = conn_id
        self.leg = leg
        """The phone's connection; deleted if the phone has gone while its frames or notice wait."""
        self.pending = PendingFrames(budget, memory_budget.phones, self.shed, slot.pace)
        self.prefix = data_prefix(conn_id)
        self.close_requested = False
        """Whether the binary's directive closes this phone."""
        self.gone = False

    def send(self, frame: bytes) -> None:
        """Send a frame (one JSON value) to the binary, or let it wait."""
        slot = self.slot
        binary = slot.binary
        # Waiting frames go first, even if this one arrives while they are being sent.
        if binary is not None and binary.writable and not slot.waiting:
            binary.send(self.prefix, frame, SUFFIX)
        else:
            slot.hold(self, frame)

    def shed(self) -> None:
        """Drop this phone's waiting frames, because they would take longest to drain."""
        self.slot.shed(self)


class Slot:
    """A claimed server-id: its binary is connected, or in grace."""

    def __init__(self, server_id: str, limits: Limits, memory_budget: MemoryBudget) -> None:
        self.server_id = server_id
        self.binary: BinaryLeg | None = None
        self.phones: dict[str, Phone] = {}
        self.waiting: deque[Phone] = deque()
        """The phones with waiting frames or a waiting notice, in the order of their turns."""
        self.departed_traffic = 0
        """Frames and bytes of the phones that have left, packed as `PhoneLeg.traffic`."""
        self._limits = limits
        self._memory_budget = memory_budget
        self._keeps = limits.on_reclaim is OnReclaim.KEEP
        # Departed phones may take as much as all phones of a slot.
        self._departed_budget = limits.hold_bytes * limits.max_phones
        self._departed_bytes = 0
        self._departed: set[str] = set()

    def knows(self, conn_id: str) -> bool:
        """Whether a phone has ``conn_id``, or a departed one whose frames or notice still wait."""
        return conn_id in self.phones or conn_id in self._departed

    def traffic(self) -> int:
        """Return frames and bytes of all phones so far, packed as `PhoneLeg.traffic`.

        Phones that lost their places at once (`clear`) no longer count.
        """
        return self.departed_traffic + sum(each.leg.traffic for each in self.phones.values())

    def add(self, conn_id: str, leg: PhoneLeg) -> Phone:
        """Give a phone its place."""
        phone = Phone(self, conn_id, leg, self._limits.hold_bytes, self._memory_budget)
        self.phones[conn_id] = phone
        return phone

    def pace(self) -> Pace:
        """Return what the binary has lately taken of the frames of one waiting phone.

        Waiting phones take turns. An absent binary takes nothing.
        """
        if self.binary is None:
            return Pace()
        taken, seconds = self.binary.pace()
        return Pace(taken // max(1, len(self.waiting)), seconds)

    def shed(self, phone: Phone) -> None:
        """Drop a phone's waiting frames, because they would take longest to drain."""
        if phone.gone:
            self._shed_departed(phone)
        else:
            self._forget(phone)
            phone.leg.backlog_full()

    def remove(self, phone: Phone, close_code: int) -> None:
        """Take the phone's place away; send the binary its close notice if one is due.

        Waiting frames, and the close notice behind them, stay until the binary takes them.
        """
        del self.phones[phone.conn_id]
        phone.gone = True
        self.departed_traffic += phone.leg.traffic
        if not self._owes_notice(phone):
            self._forget(phone)
            return
        notice = close_notice(phone.conn_id, close_code)
        binary = self.binary
        if binary is not None and binary.writable and not phone.pending:
            self._forget(phone)
            binary.send(notice)
            return
        self._keep_for_binary(phone, notice)

    def _owes_notice(self, phone: Phone) -> bool:
        """Whether this binary, or the next one, gets a close notice for ``phone``.

        A phone with a place was registered with this binary, or handed to it. The next binary is
        handed phones under ``keep`` only.
        """
        return not phone.close_requested and (self.binary is not None or self._keeps)

    def _keep_for_binary(self, phone: Phone, notice: bytes) -> None:
        pending = phone.pending
        was_waiting = bool(pending)
        # The phone stays in memory; its connection must not.
        del phone.leg
        pending.add_close_notice(notice, _DEPARTED_COST + len(phone.conn_id) + len(phone.prefix))
        if not self._owes_notice(phone):
            self._forget(phone)  # adding the notice made the memory budget close the binary
        if not pending:
            return
        if self._departed_bytes + pending.cost - pending.overhead > self._departed_budget:
            # There is room for the notice, but not for the frames.
            pending.drop_frames()
        self._departed_bytes += pending.cost - pending.overhead
        self._departed.add(phone.conn_id)
        if not was_waiting:
            self.waiting.append(phone)

    def _shed_departed(self, phone: Phone) -> None:
        """Drop a departed phone's frames; drop its notice only if no frames are left."""
        pending = phone.pending
        before = pending.cost - pending.overhead
        pending.drop_frames()
        after = pending.cost - pending.overhead
        if after == before:
            self._forget(phone)
        elif phone.conn_id in self._departed:
            self._departed_bytes -= before - after

    def _forget(self, phone: Phone) -> None:
        """Drop a phone's waiting frames and close notice."""
        if phone.conn_id in self._departed:
            self._departed.discard(phone.conn_id)
            self._departed_bytes -= phone.pending.cost - phone.pending.overhead
        if phone.gone:
            phone.pending.retire()
        else:
            phone.pending.clear()
        if phone in self.waiting:
            self.waiting.remove(phone)

    def hold(self, phone: Phone, frame: bytes) -> None:
        """Let a frame wait until the binary takes it; over the budget stop reading the phone."""
        pending = phone.pending
        if not pending:
            self.waiting.append(phone)
        pending.push(frame)
        if pending.full and not phone.gone:
            phone.leg.pause_reading()

    def drain(self) -> None:
        """Send the binary what waits for it, while it is writable."""
        waiting = self.waiting
        while waiting and self.binary is not None and self.binary.writable:
            phone = waiting.popleft()
            self._hand_over(phone, self.binary)

    def _hand_over(self, phone: Phone, binary: BinaryLeg) -> None:
        """Send a phone's next item: its oldest frame, or its close notice."""
        pending = phone.pending
        before = pending.cost
        frame = pending.pop()
        if frame is None:
            notice = pending.close_notice
            self._forget(phone)
            if notice is not None:
                binary.send(notice)
            return
        if phone.gone:
            self._departed_bytes -= before - pending.cost
        if pending:
            self.waiting.append(phone)
        binary.send(phone.prefix, frame, SUFFIX)
        if pending.low and not phone.gone:
            phone.leg.resume_reading()

    def attach(self, binary: BinaryLeg) -> list[Phone]:
        """Give the slot to ``binary``; return the phones to evict.

        These have lost their places and their waiting frames. Under ``keep`` no phone is evicted:
        ``binary`` gets all phones, and the waiting frames and notices of departed ones.
        """
        self.binary = binary
        return [] if self._keeps else self.clear()

    def detach(self) -> None:
        """Leave the slot without a binary: its grace begins."""
        self.binary = None
        if not self._keeps:
            # The next binary gets no notice of these phones.
            for phone in [phone for phone in self.waiting if phone.gone]:
                self._forget(phone)

    def clear(self) -> list[Phone]:
        """Take away all places and everything that waits; return the phones there were."""
        phones = list(self.phones.values())
        self.phones.clear()
        for phone in [*self.waiting]:
            self._forget(phone)
        for phone in phones:
            phone.gone = True
            phone.pending.retire()
        return phones
