"""Conflicting claims: one probe of the incumbent decides for every newcomer.

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
        """Hold what the binary sends until its claim is decided."""


class Verdict(enum.Enum):
    """The outcome of an incumbent's probe for one newcomer."""

    TAKE_OVER = enum.auto()
    """The incumbent is dead, and this newcomer came first."""
    REJECTED = enum.auto()
    """The server-id has a live binary."""
    GONE = enum.auto()
    """The newcomer has left."""


class Contests:
    """The claims of one relay, and the newcomers that wait for an incumbent's probe."""

    max_waiting: ClassVar = 16
    """Maximum newcomers for one incumbent: an attacker who knows a server-id cannot tie up more."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._waiting: dict[BinaryLeg, list[tuple[Newcomer, Deferred[Verdict]]]] = {}

    async def claim(self, server_id: str, newcomer: Newcomer) -> Claimed | Verdict:
        """Claim ``server_id`` for ``newcomer``; probe the incumbent if there is one.

        Returns the claim, or the verdict if the claim failed.
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
        """Give each newcomer its verdict, in order of arrival."""
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
