"""One server-id: its binary, its phones, and what the phones send to the binary.

A frame goes to the binary at once, or, while the binary is slow or absent, is held with its
phone up to a byte budget; past it the phone's socket is not read. Held frames go out phone by
phone in turn, each phone's in the order it sent them. Source: sections 4 and 5 of
``docs/protocol.md``.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from pyrycode_relay.limits import Limits, OnReclaim
from pyrycode_relay.protocol.close_codes import Close
from pyrycode_relay.protocol.envelope import SUFFIX, close_notice, data_prefix
from pyrycode_relay.registry.queues import Frame, Hold, Ledger

_DEPARTED_COST: Final = 512
"""Bytes that a phone takes that has left something behind, without its ids."""


class BinaryLeg(Protocol):
    """What the state needs of a binary's connection."""

    @property
    def writable(self) -> bool:
        """Whether the connection takes more at the moment."""

    def send(self, *parts: Frame) -> None:
        """Write one message, given in parts."""


class PhoneLeg(Protocol):
    """What the state needs of a phone's connection."""

    def pause_reading(self) -> None:
        """Stop reading the socket; what the phone sends waits in its kernel."""

    def resume_reading(self) -> None:
        """Read the socket again."""

    def backlog_full(self) -> None:
        """Close the connection, for its queue was the largest when memory ran out."""

    def deliver(self, frame: Frame) -> bool:
        """Send a frame, now or after what is queued; False when the phone had to be closed."""

    def close_after_queue(self, close: Close) -> None:
        """Close the connection after everything that is queued."""


class Phone:
    """A phone's place in a slot."""

    __slots__ = ("conn_id", "directed", "gone", "hold", "leg", "prefix", "slot")

    def __init__(
        self, slot: Slot, conn_id: str, leg: PhoneLeg, budget: int, ledger: Ledger
    ) -> None:
        self.slot = slot
        self.conn_id = conn_id
        self.leg = leg
        """The phone's connection; deleted when the phone has gone and left something behind."""
        self.hold = Hold(budget, ledger.phones, self.shed)
        self.prefix = data_prefix(conn_id)
        self.directed = False
        """Whether the binary has asked for this phone's closing."""
        self.gone = False

    def send(self, frame: bytes) -> None:
        """Bring a frame (one JSON value) on its way to the binary, now or held."""
        slot = self.slot
        binary = slot.binary
        # What waits goes first, even if a frame should come in while it is being sent.
        if binary is not None and binary.writable and not slot.waiting:
            binary.send(self.prefix, frame, SUFFIX)
        else:
            slot.hold(self, frame)

    def shed(self) -> None:
        """Give up what is held of this phone, because its queue is the largest."""
        self.slot.shed(self)


class Slot:
    """A server-id that is claimed: by a live binary, or by one whose return is waited for."""

    def __init__(self, server_id: str, limits: Limits, ledger: Ledger) -> None:
        self.server_id = server_id
        self.binary: BinaryLeg | None = None
        self.phones: dict[str, Phone] = {}
        self.waiting: deque[Phone] = deque()
        """The phones with something held, in the order in which they are next."""
        self._limits = limits
        self._ledger = ledger
        self._keeps = limits.on_reclaim is OnReclaim.KEEP
        # What phones left behind may take as much as all phones of a slot may hold.
        self._legacy_budget = limits.hold_bytes * limits.max_phones
        self._legacy = 0
        self._departed: set[str] = set()

    def knows(self, conn_id: str) -> bool:
        """Whether ``conn_id`` is in use: by a phone, or by what a phone left behind."""
        return conn_id in self.phones or conn_id in self._departed

    def add(self, conn_id: str, leg: PhoneLeg) -> Phone:
        """Give the phone its place."""
        phone = Phone(self, conn_id, leg, self._limits.hold_bytes, self._ledger)
        self.phones[conn_id] = phone
        return phone

    def shed(self, phone: Phone) -> None:
        """Give up a phone whose held frames are the largest queue of all."""
        if phone.gone:
            self._shed_legacy(phone)
        else:
            self._forget(phone)
            phone.leg.backlog_full()

    def remove(self, phone: Phone, close_code: int) -> None:
        """Take the phone's place away, and see to it that its binary hears of it if it should.

        Held frames and the close notice behind them stay until the binary takes them.
        """
        del self.phones[phone.conn_id]
        phone.gone = True
        if not self._owes_notice(phone):
            self._forget(phone)
            return
        notice = close_notice(phone.conn_id, close_code)
        binary = self.binary
        if binary is not None and binary.writable and not phone.hold:
            self._forget(phone)
            binary.send(notice)
            return
        self._bequeath(phone, notice)

    def _owes_notice(self, phone: Phone) -> bool:
        """Whether the binary that is there, or the next one, has to hear that ``phone`` is gone.

        A phone that still has its place was registered with the binary that is there, or handed
        to it. The next binary is handed phones under ``keep`` only.
        """
        return not phone.directed and (self.binary is not None or self._keeps)

    def _bequeath(self, phone: Phone, notice: bytes) -> None:
        hold = phone.hold
        was_waiting = bool(hold)
        # Otherwise the connection would stay in memory with the phone.
        del phone.leg
        hold.say_farewell(notice, _DEPARTED_COST + len(phone.conn_id) + len(phone.prefix))
        if not self._owes_notice(phone):
            self._forget(phone)  # the memory budget took its binary
        if not hold:
            return  # or the notice, at once
        if self._legacy + hold.cost - hold.overhead > self._legacy_budget:
            # Its frames are too much to keep; that it has gone is not.
            hold.drop_frames()
        self._legacy += hold.cost - hold.overhead
        self._departed.add(phone.conn_id)
        if not was_waiting:
            self.waiting.append(phone)

    def _shed_legacy(self, phone: Phone) -> None:
        """Give up what a phone left behind: its frames, and the notice only where it is alone."""
        hold = phone.hold
        before = hold.cost - hold.overhead
        hold.drop_frames()
        after = hold.cost - hold.overhead
        if after == before:
            self._forget(phone)
        elif phone.conn_id in self._departed:
            self._legacy -= before - after

    def _forget(self, phone: Phone) -> None:
        """Drop whatever is held of a phone that has gone."""
        if phone.conn_id in self._departed:
            self._departed.discard(phone.conn_id)
            self._legacy -= phone.hold.cost - phone.hold.overhead
        if phone.gone:
            phone.hold.retire()
        else:
            phone.hold.clear()
        if phone in self.waiting:
            self.waiting.remove(phone)

    def hold(self, phone: Phone, frame: bytes) -> None:
        """Hold a frame until the binary takes it; past the budget stop reading the phone."""
        hold = phone.hold
        if not hold:
            self.waiting.append(phone)
        hold.push(frame)
        if hold.full:
            phone.leg.pause_reading()

    def drain(self) -> None:
        """Hand the binary what is held, as long as there is one that takes it."""
        waiting = self.waiting
        while waiting and self.binary is not None and self.binary.writable:
            phone = waiting.popleft()
            self._hand_over(phone, self.binary)

    def _hand_over(self, phone: Phone, binary: BinaryLeg) -> None:
        """Send one thing of what a phone has waiting: its next frame, or its farewell."""
        hold = phone.hold
        before = hold.cost
        frame = hold.pop()
        if frame is None:
            farewell = hold.farewell
            self._forget(phone)
            if farewell is not None:
                binary.send(farewell)
            return
        if phone.gone:
            self._legacy -= before - hold.cost
        if hold:
            self.waiting.append(phone)
        binary.send(phone.prefix, frame, SUFFIX)
        if hold.low and not phone.gone:
            phone.leg.resume_reading()

    def attach(self, binary: BinaryLeg) -> list[Phone]:
        """Give the slot to ``binary``; return the phones that have to go because of that.

        Those have lost their places already and leave nothing behind. Under ``keep`` none has
        to go: all phones, and what others left behind, are handed to ``binary``.
        """
        self.binary = binary
        return [] if self._keeps else self.clear()

    def detach(self) -> None:
        """Leave the slot without a binary: its grace begins."""
        self.binary = None
        if not self._keeps:
            # No later binary is told of these phones.
            for phone in [phone for phone in self.waiting if phone.gone]:
                self._forget(phone)

    def clear(self) -> list[Phone]:
        """Take all phones' places and everything held away; return the phones there were."""
        phones = list(self.phones.values())
        self.phones.clear()
        for phone in [*self.waiting]:
            self._forget(phone)
        for phone in phones:
            phone.gone = True
            phone.hold.retire()
        return phones
