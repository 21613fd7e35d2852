"""The state that both endpoints share: clock, limits, registry, memory budget, counts."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from twisted.internet.interfaces import IReactorTime

from pyrycode_relay.endpoints.waker import PushOff, Waker
from pyrycode_relay.events import Event, Observer
from pyrycode_relay.id_hash import IdHash
from pyrycode_relay.limits import Limits
from pyrycode_relay.protocol.close_codes import EndCause
from pyrycode_relay.registry.memory_budget import MemoryBudget
from pyrycode_relay.registry.registry import Registry
from pyrycode_relay.registry.slot import Phone, Slot
from pyrycode_relay.tally import Tally
from pyrycode_relay.websocket.poller import Poller


class RelayContext:
    """The state of one relay, and the services that its connections use.

    Args:
        clock: Runs all timers.
        limits: The relay's limits.
        observer: Receives events.
        random: Spreads actions that must not happen all at once.
        poller: Watches the sockets.
        waker: Sends push wakes; None if push is off.

    """

    def __init__(
        self,
        clock: IReactorTime,
        limits: Limits,
        observer: Observer,
        random: Random,
        poller: Poller,
        waker: Waker | None = None,
    ) -> None:
        self.clock = clock
        self.limits = limits
        self.observer = observer
        self.random = random
        self.poller = poller
        self.waker: Waker = waker or PushOff(observer)
        self.tally = Tally()
        self.id_hash = IdHash()
        """Stands for server-ids on the status page, and in the log beside them."""
        self.memory_budget = MemoryBudget(limits.memory_budget, clock.seconds)
        self.registry = Registry(clock, limits, self.memory_budget, self._expired)

    def dismiss(self, phones: Iterable[Phone], cause: EndCause) -> None:
        """Close phones that have lost their places."""
        for phone in phones:
            phone.leg.close(cause)

    def _expired(self, slot: Slot, phones: list[Phone]) -> None:
        self.observer.saw(Event.SERVER_EXPIRED, server_id=slot.server_id)
        self.dismiss(phones, EndCause.GRACE_EXPIRED)
