"""The holders of server-ids: claims, takeovers, grace, reclaims, expiry, and phones' places.

The registry uses no sockets and gets its clock from the caller. Every call returns what happened;
the endpoints turn that into close codes, log events and frames. Source: "Registry" in
``docs/protocol.md``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from pyrycode_relay.limits import Limits
from pyrycode_relay.protocol.close_codes import Refusal
from pyrycode_relay.protocol.probe_ids import is_probe
from pyrycode_relay.registry.departures import RecentDepartures
from pyrycode_relay.registry.legs import BinaryLeg, PhoneLeg
from pyrycode_relay.registry.memory_budget import MemoryBudget
from pyrycode_relay.registry.slot import Phone, Slot


@dataclass(frozen=True, slots=True)
class Claimed:
    """The binary holds the slot now; ``evicted`` phones have lost their places.

    ``reclaimed`` is true if it came within the grace of an earlier binary. ``displaced`` is the
    incumbent that it replaced by a takeover.
    """

    slot: Slot
    evicted: tuple[Phone, ...] = ()
    displaced: BinaryLeg | None = None
    reclaimed: bool = False


@dataclass(frozen=True, slots=True)
class Conflict:
    """Another binary holds the slot: ``incumbent``."""

    incumbent: BinaryLeg


@dataclass(frozen=True, slots=True)
class Registered:
    """The phone has its place."""

    phone: Phone


Claim: TypeAlias = Claimed | Conflict
OnExpiry: TypeAlias = Callable[[Slot, list[Phone]], None]


def _random_suffix() -> str:
    """Return the 8 lower-case hex digits that end a ``conn_id``."""
    return os.urandom(4).hex()


class Registry:
    """All slots of this relay.

    ``clock`` runs the grace timers. ``on_expiry`` is called with a slot whose grace has
    ended, once the slot is removed, and with the phones that were in it. ``suffix`` makes the
    random end of a ``conn_id``.
    """

    def __init__(
        self,
        clock: IReactorTime,
        limits: Limits,
        memory_budget: MemoryBudget,
        on_expiry: OnExpiry,
        suffix: Callable[[], str] = _random_suffix,
    ) -> None:
        self._clock = clock
        self._limits = limits
        self._memory_budget = memory_budget
        self._on_expiry = on_expiry
        self._suffix = suffix
        self._slots: dict[str, Slot] = {}
        self._grace: dict[Slot, IDelayedCall] = {}
        self._departures = RecentDepartures(clock.seconds)

    @property
    def binaries(self) -> int:
        """How many binaries are connected; one in grace does not count."""
        return len(self._slots) - len(self._grace)

    @property
    def in_grace(self) -> int:
        """How many slots wait for their binary to come back."""
        return len(self._grace)

    @property
    def phones(self) -> int:
        """How many phones have a place."""
        return sum(len(slot.phones) for slot in self._slots.values())

    @property
    def held_frames(self) -> int:
        """How many frames wait for a binary that is slow or absent."""
        return sum(phone.pending.frames for slot in self._slots.values() for phone in slot.waiting)

    def holder(self, server_id: str) -> BinaryLeg | None:
        """Return the binary that holds a server-id; None if it is free or in grace."""
        slot = self._slots.get(server_id)
        return None if slot is None else slot.binary

    def claim(self, server_id: str, binary: BinaryLeg) -> Claim:
        """Give the slot to ``binary`` if it is free or in grace."""
        slot = self._slots.get(server_id)
        reclaimed = slot is not None
        if slot is None:
            slot = self._slots[server_id] = Slot(server_id, self._limits, self._memory_budget)
        elif slot.binary is not None:
            return Conflict(slot.binary)
        else:
            self._grace.pop(slot).cancel()
        return Claimed(slot, self._evicted(slot.attach(binary)), reclaimed=reclaimed)

    def take_over(self, server_id: str, incumbent: BinaryLeg, binary: BinaryLeg) -> Claim:
        """Give the slot to ``binary`` in place of ``incumbent``, which did not answer.

        A slot that is free or in grace by now is claimed. One that a third binary holds is a
        conflict.
        """
        slot = self._slots.get(server_id)
        if slot is None or slot.binary is not incumbent:
            return self.claim(server_id, binary)
        return Claimed(slot, self._evicted(slot.attach(binary)), displaced=incumbent)

    def release(self, slot: Slot, binary: BinaryLeg) -> bool:
        """Start the grace of a slot whose binary has gone; False if ``binary`` did not hold it.

        A probe does not come back, so its slot has a grace of 0 s.
        """
        if slot.binary is not binary:
            return False
        slot.detach()
        grace = 0.0 if is_probe(slot.server_id) else self._limits.grace
        self._grace[slot] = self._clock.callLater(grace, self._expire, slot)
        return True

    def _expire(self, slot: Slot) -> None:
        del self._grace[slot]
        del self._slots[slot.server_id]
        self._on_expiry(slot, [*self._evicted(slot.clear())])

    def _evicted(self, phones: Iterable[Phone]) -> tuple[Phone, ...]:
        evicted = tuple(phones)
        for phone in evicted:
            self._departures.add(phone.slot.server_id, phone.conn_id)
        return evicted

    def register(self, server_id: str, leg: PhoneLeg) -> Registered | Refusal:
        """Give a phone a place in the slot of ``server_id``, whether its binary is there or not."""
        slot = self._slots.get(server_id)
        if slot is None:
            return Refusal.NO_SERVER
        if len(slot.phones) >= self._limits.max_phones:
            return Refusal.AT_CAP
        conn_id = self._new_conn_id(slot)
        return Registered(slot.add(conn_id, leg))

    def _new_conn_id(self, slot: Slot) -> str:
        while True:
            conn_id = f"client-{slot.server_id}-{self._suffix()}"
            if not slot.knows(conn_id):
                return conn_id

    def unregister(self, phone: Phone, close_code: int) -> None:
        """Take a phone's place away, if it has not lost it already.

        ``close_code`` is what the close notice to its binary says.
        """
        if not phone.gone:
            self._departures.add(phone.slot.server_id, phone.conn_id)
            phone.slot.remove(phone, close_code)

    def has_left(self, slot: Slot, conn_id: str) -> bool:
        """Whether ``conn_id`` is that of a phone of ``slot`` that has left lately."""
        return self._departures.has(slot.server_id, conn_id)

    def close(self) -> None:
        """Remove every slot without notifying anyone, and stop the timers."""
        for timer in self._grace.values():
            timer.cancel()
        self._grace.clear()
        for slot in self._slots.values():
            slot.clear()
        self._slots.clear()
