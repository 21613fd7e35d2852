"""``/v1/server`` and ``/v2/server``: a binary claims its server-id and exchanges envelopes.

Steps: header gate, claim, envelopes, release. Source: sections 1, 3 and 4 of ``docs/protocol.md``.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, ClassVar

from autobahn.websocket.types import ConnectionDeny
from twisted.internet.defer import Deferred

from pyrycode_relay.endpoints.contest import Contests, Verdict
from pyrycode_relay.endpoints.context import RelayContext
from pyrycode_relay.events import Event
from pyrycode_relay.limits import ENVELOPE_ALLOWANCE
from pyrycode_relay.protocol import close_codes, header_gate
from pyrycode_relay.protocol.close_codes import EndCause
from pyrycode_relay.protocol.envelope import (
    Envelope,
    EnvelopeError,
    EnvelopeFault,
    unwrap,
)
from pyrycode_relay.protocol.push_wake import PushWake, WakeOutcome, push_result
from pyrycode_relay.registry.queues import PendingFrames
from pyrycode_relay.registry.registry import Claimed
from pyrycode_relay.tally import FRAME
from pyrycode_relay.websocket.connection import RelayProtocol
from pyrycode_relay.websocket.factory import Environment, RelayFactory
from pyrycode_relay.websocket.stage import Stage

if TYPE_CHECKING:
    from autobahn.websocket.types import ConnectionRequest

    from pyrycode_relay.registry.slot import Phone, Slot


class BinaryProtocol(RelayProtocol):
    """A binary's connection."""

    __slots__ = (
        "_closing_cause",
        "_early",
        "_since",
        "_traffic_before",
        "server_id",
        "slot",
        "version",
    )

    backlog_cause: ClassVar[EndCause] = EndCause.BINARY_BACKLOG_FULL
    stalled_cause: ClassVar[EndCause] = EndCause.BINARY_WRITE_STALLED
    factory: BinaryFactory

    def __init__(self, factory: BinaryFactory) -> None:
        super().__init__(factory)
        self.slot: Slot | None = None
        """The slot this binary holds; None until its claim succeeds, and after its end."""
        self.server_id = ""
        self.version = ""
        self._closing_cause: EndCause | None = None
        self._early: PendingFrames | None = None
        self._since = 0.0
        self._traffic_before = 0

    @property
    def _context(self) -> RelayContext:
        return self.factory.context

    def onConnect(self, request: ConnectionRequest) -> None:
        """Check the request at the header gate. Raises ``ConnectionDeny(400)``."""
        try:
            header_gate.gate_binary(request.headers)
        except header_gate.HeaderError as error:
            raise ConnectionDeny(ConnectionDeny.BAD_REQUEST) from error
        self.server_id = header_gate.server_id(request.headers)
        self.version = header_gate.version(request.headers)

    @property
    def identity(self) -> tuple[str, str]:
        """The server-id and the binary's version."""
        return self.server_id, self.version

    def identify(self, server_id: str, version: str) -> None:
        """Set the server-id and the binary's version."""
        self.server_id, self.version = server_id, version

    def opened(self) -> None:
        """Claim the server-id."""
        Deferred.fromCoroutine(self._claim())

    async def _claim(self) -> None:
        """Claim the server-id, if necessary after a probe; then serve, or close with 4409."""
        try:
            claim = await self.factory.contests.claim(self.server_id, self)
            if isinstance(claim, Claimed):
                self._serve(claim)
            elif claim is Verdict.REJECTED:
                self.reject_claim()
        except Exception:
            self.bug()

    @property
    def serving(self) -> bool:
        """Whether the connection is open and not about to close."""
        return self.stage is Stage.SERVING

    def hold_messages(self) -> None:
        """Hold what the binary sends until its claim is decided."""
        if self._early is None:
            group = self.factory.group
            self._early = PendingFrames(self._limits.hold_bytes, group, self.reject_claim)

    def reject_claim(self) -> None:
        """Close the connection, because another binary holds the server-id."""
        holder = self._context.registry.holder(self.server_id)
        self._context.observer.saw(
            Event.SERVER_ID_CONFLICT,
            server_id=self.server_id,
            remote=self.remote,
            holder="none" if holder is None else holder.remote,
        )
        self.close(EndCause.CONFLICT)

    def _serve(self, claimed: Claimed) -> None:
        context = self._context
        self.slot = claimed.slot
        self._since = context.clock.seconds()
        self._traffic_before = claimed.slot.traffic()
        if claimed.displaced is not None:
            context.observer.saw(
                Event.SERVER_ID_TAKEOVER, server_id=self.server_id, remote=self.remote
            )
            claimed.displaced.close(EndCause.HEARTBEAT_TIMEOUT, flush=False)
        if claimed.reclaimed:
            context.observer.saw(
                Event.SERVER_RECLAIMED, server_id=self.server_id, remote=self.remote
            )
        context.observer.saw(
            Event.SERVER_CLAIMED,
            server_id=self.server_id,
            id_hash=context.id_hash.of(self.server_id),
            binary_version=self.version,
            remote=self.remote,
        )
        context.dismiss(claimed.evicted, EndCause.RECLAIMED)
        claimed.slot.drain()
        self._catch_up()

    def _catch_up(self) -> None:
        """Handle what this binary sent before its claim was decided."""
        early, self._early = self._early, None
        if early is None:
            return
        while self.slot is not None and (message := early.pop()) is not None:
            self.message(message)
        early.retire()
        self.resume_reading()

    def drained(self) -> None:
        """Deliver the frames that were held while this binary was slow."""
        if self.slot is not None:
            self.slot.drain()
        if self._closing_cause is not None:
            self.close_when_drained(self._closing_cause)

    def close_when_drained(self, cause: EndCause) -> None:
        """Close the connection after all frames held for this binary have been delivered."""
        if self.slot is not None and self.slot.waiting:
            self._closing_cause = cause
        else:
            self.close(cause)

    def message(self, payload: bytes) -> None:
        """Carry out an envelope. A malformed one is logged and dropped; the binary stays."""
        slot = self.slot
        if slot is None:
            self._hold(payload)
            return
        try:
            envelope = unwrap(payload)
        except EnvelopeError as error:
            self._report(Event.BINARY_ENVELOPE_REFUSED, error.fault)
            return
        if isinstance(envelope, PushWake):
            self._wake(envelope)
            return
        phone = slot.phones.get(envelope.conn_id)
        if phone is None or phone.close_requested:
            self._miss(slot, phone, envelope.conn_id)
            return
        self._forward(phone, envelope)

    def _miss(self, slot: Slot, phone: Phone | None, conn_id: str) -> None:
        """Drop an envelope for a phone that leaves, has left, or never was there."""
        if phone is not None or self._context.registry.has_left(slot, conn_id):
            self._context.observer.saw(
                Event.BINARY_LATE_ENVELOPE, server_id=self.server_id, remote=self.remote
            )
        else:
            self._report(Event.BINARY_UNKNOWN_CONN_ID, "no such phone")

    def oversized(self, size: int, limit: int) -> None:
        """Log that a message is refused for its size."""
        self._context.observer.saw(
            Event.MESSAGE_TOO_BIG,
            server_id=self.server_id,
            remote=self.remote,
            size=size,
            limit=limit,
        )

    def _hold(self, message: bytes) -> None:
        """Hold a message until the claim is decided. If the budget is full, stop reading."""
        early = self._early
        if early is not None:
            early.push(message)
            if early.full:
                self.pause_reading()

    def _forward(self, phone: Phone, envelope: Envelope) -> None:
        if envelope.frame is not None and not phone.leg.deliver(envelope.frame):
            return
        # If memory ran out while the frame was written, the phone may be gone.
        if envelope.close_code is not None and not phone.gone:
            phone.close_requested = True
            phone.leg.close_after_queue(close_codes.for_directive(envelope.close_code))

    def _wake(self, wake: PushWake) -> None:
        """Wake a phone's device, and send the binary the outcome if it asks for it."""
        request = wake.request
        answer = None
        if request is not None and request.reply is not None:
            answer = partial(self._woken, request.reply)
        self._context.waker.wake(self.server_id, self.remote, request, answer)

    def _woken(self, reply: str, outcome: WakeOutcome) -> None:
        if self.serving:
            self.deliver(push_result(reply, outcome))

    def _report(self, event: Event, reason: EnvelopeFault | str) -> None:
        self._context.observer.saw(
            event, server_id=self.server_id, remote=self.remote, reason=reason
        )

    def ended(self, close_code: int, cause: EndCause) -> None:
        """Release the slot if this connection still holds it."""
        self._context.observer.saw(
            Event.BINARY_CLOSED,
            server_id=self.server_id,
            remote=self.remote,
            close_code=close_code,
            reason=cause,
        )
        if self._early is not None:
            self._early.retire()
        slot, self.slot = self.slot, None
        if slot is None:
            return
        frames, size = divmod(slot.traffic() - self._traffic_before, FRAME)
        if self._context.registry.release(slot, self):
            self._context.observer.saw(
                Event.SERVER_RELEASED,
                server_id=self.server_id,
                remote=self.remote,
                close_code=close_code,
                duration=round(self._context.clock.seconds() - self._since, 3),
                frames=frames,
                bytes=size,
                reason=cause,
            )


class BinaryFactory(RelayFactory[BinaryProtocol]):
    """Makes binaries' connections."""

    def __init__(self, context: RelayContext) -> None:
        super().__init__(
            BinaryProtocol,
            Environment(
                clock=context.clock,
                limits=context.limits,
                group=context.memory_budget.binaries,
                max_message_bytes=context.limits.max_message_bytes + ENVELOPE_ALLOWANCE,
                random=context.random,
                poller=context.poller,
                tally=context.tally.binaries,
            ),
        )
        self.context = context
        self.contests = Contests(context.registry)
