"""Claims that meet an incumbent: one probe decides for every binary that waits.

Source: "Registry" in ``docs/protocol.md``. A live binary is never displaced.
"""

from __future__ import annotations

import enum
from typing import ClassVar, Protocol

from twisted.internet.defer import Deferred

from pyrycode_relay.registry.legs import BinaryLeg
from pyrycode_relay.registry.registry import Claimed, Conflict, Registry


class Newcomer(BinaryLeg, Protocol):
    """A binary whose claim is not decided yet."""

    @property
    def serving(self) -> bool:
        """Whether the connection is still open."""

    def hold_messages(self) -> None:
        """Keep what the binary sends until its claim is decided."""


class Verdict(enum.Enum):
    """What a probe of the incumbent means for a newcomer."""

    TAKE_OVER = enum.auto()
    """The incumbent is dead, and this newcomer came first."""
    REJECTED = enum.auto()
    """The server-id has a live binary."""
    GONE = enum.auto()
    """The newcomer has left."""


class Contests:
    """The claims of one relay, and the newcomers that wait for an incumbent's answer."""

    max_waiting: ClassVar = 16
    """Newcomers that may wait for one incumbent; it bounds what a known server-id ties up."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._waiting: dict[BinaryLeg, list[tuple[Newcomer, Deferred[Verdict]]]] = {}

    async def claim(self, server_id: str, newcomer: Newcomer) -> Claimed | Verdict:
        """Claim ``server_id`` for ``newcomer``; probe the incumbent if there is one.

        Returns the claim, or why there is none.
        """
        claim = self._registry.claim(server_id, newcomer)
        while isinstance(claim, Conflict):
            newcomer.hold_messages()
            verdict = await self._verdict(claim.incumbent, newcomer)
            if verdict is not Verdict.TAKE_OVER:
                return verdict
            claim = self._registry.take_over(server_id, claim.incumbent, newcomer)
        return claim

    def _verdict(self, incumbent: BinaryLeg, newcomer: Newcomer) -> Deferred[Verdict]:
        verdict: Deferred[Verdict] = Deferred()
        waiting = self._waiting.get(incumbent)
        if waiting is None:
            self._waiting[incumbent] = [(newcomer, verdict)]
            incumbent.probe(lambda alive: self._decide(incumbent, alive))
        elif len(waiting) < self.max_waiting:
            waiting.append((newcomer, verdict))
        else:
            verdict.callback(Verdict.REJECTED)
        return verdict

    def _decide(self, incumbent: BinaryLeg, alive: bool) -> None:
        """Tell the newcomers in the order in which they came."""
        taken = alive
        verdicts: list[tuple[Deferred[Verdict], Verdict]] = []
        for newcomer, deferred in self._waiting.pop(incumbent):
            if not newcomer.serving:
                verdicts.append((deferred, Verdict.GONE))
            else:
                verdicts.append((deferred, Verdict.REJECTED if taken else Verdict.TAKE_OVER))
                taken = True
        for deferred, verdict in verdicts:
            deferred.callback(verdict)
