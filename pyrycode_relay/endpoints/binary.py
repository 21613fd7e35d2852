"""``/v1/server`` and ``/v2/server``: a binary claims its server-id and speaks in envelopes.

Gate, claim (or contest), envelopes in, release. Source: sections 1, 3 and 4 of
``docs/protocol.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from autobahn.websocket.types import ConnectionDeny

from pyrycode_relay.endpoints.context import Exchange
from pyrycode_relay.events import Event
from pyrycode_relay.limits import ENVELOPE_ALLOWANCE
from pyrycode_relay.protocol import close_codes, header_gate
from pyrycode_relay.protocol.close_codes import EndCause
from pyrycode_relay.protocol.envelope import (
    Envelope,
    EnvelopeError,
    EnvelopeFault,
    PushWake,
    unwrap,
)
from pyrycode_relay.registry.queues import Hold
from pyrycode_relay.registry.registry import Claim, Claimed, Conflict
from pyrycode_relay.websocket.connection import RelayProtocol
from pyrycode_relay.websocket.factory import Environment, RelayFactory
from pyrycode_relay.websocket.stage import Stage

if TYPE_CHECKING:
    from autobahn.websocket.types import ConnectionRequest

    from pyrycode_relay.registry.slot import Phone, Slot


class BinaryProtocol(RelayProtocol):
    """A binary's connection."""

    __slots__ = ("_early", "_parting", "server_id", "slot", "version")

    backlog_cause: ClassVar[EndCause] = EndCause.BINARY_BACKLOG_FULL
    stalled_cause: ClassVar[EndCause] = EndCause.BINARY_WRITE_STALLED
    factory: BinaryFactory

    def __init__(self, factory: BinaryFactory) -> None:
        super().__init__(factory)
        self.slot: Slot | None = None
        """The slot this binary holds; None before its claim has succeeded and after its end."""
        self.server_id = ""
        self.version = ""
        self._parting: EndCause | None = None
        self._early: Hold | None = None

    @property
    def _exchange(self) -> Exchange:
        return self.factory.exchange

    def onConnect(self, request: ConnectionRequest) -> None:
        """Let the request pass the header gate, or raise ``ConnectionDeny(400)``."""
        try:
            header_gate.gate_binary(request.headers)
        except header_gate.HeaderError as error:
            raise ConnectionDeny(ConnectionDeny.BAD_REQUEST) from error
        self.server_id = header_gate.server_id(request.headers)
        self.version = header_gate.version(request.headers)

    def opened(self) -> None:
        """Claim the server-id; where a binary holds it already, find out whether it lives."""
        self._take(self._exchange.registry.claim(self.server_id, self))

    def _take(self, claim: Claim) -> None:
        if isinstance(claim, Claimed):
            self._serve(claim)
        else:
            self._contest(claim)

    def _contest(self, conflict: Conflict) -> None:
        incumbent = cast(BinaryProtocol, conflict.incumbent)
        if self._early is None:
            self._early = Hold(self._limits.hold_bytes, self.factory.account, self.lose)
        if not self.factory.contests.join(incumbent, self):
            self.lose()

    def lose(self) -> None:
        """Give way to the incumbent, which is alive."""
        self._exchange.observer.saw(
            Event.SERVER_ID_CONFLICT, server_id=self.server_id, remote=self.remote
        )
        self.close(EndCause.CONFLICT)

    def succeed(self, incumbent: BinaryProtocol) -> None:
        """Take the place of ``incumbent``, which did not answer."""
        self._take(self._exchange.registry.take_over(self.server_id, incumbent, self))

    def _serve(self, claimed: Claimed) -> None:
        exchange = self._exchange
        self.slot = claimed.slot
        if claimed.displaced is not None:
            exchange.observer.saw(
                Event.SERVER_ID_TAKEOVER, server_id=self.server_id, remote=self.remote
            )
            displaced = cast(BinaryProtocol, claimed.displaced)
            displaced.close(EndCause.HEARTBEAT_TIMEOUT, flush=False)
        if claimed.reclaimed:
            exchange.observer.saw(
                Event.SERVER_RECLAIMED, server_id=self.server_id, remote=self.remote
            )
        exchange.observer.saw(
            Event.SERVER_CLAIMED,
            server_id=self.server_id,
            binary_version=self.version,
            remote=self.remote,
        )
        exchange.dismiss(claimed.evicted, EndCause.RECLAIMED)
        claimed.slot.drain()
        self._catch_up()

    def _catch_up(self) -> None:
        """Take what this binary sent before its claim was decided."""
        early, self._early = self._early, None
        if early is None:
            return
        while self.slot is not None and (message := early.pop()) is not None:
            self.message(message)
        early.retire()
        self.resume_reading()

    def drained(self) -> None:
        """Hand over what was held while this binary was slow."""
        if self.slot is not None:
            self.slot.drain()
        if self._parting is not None:
            self.close_when_drained(self._parting)

    def close_when_drained(self, cause: EndCause) -> None:
        """Close the connection when everything held for this binary has been handed over."""
        if self.slot is not None and self.slot.waiting:
            self._parting = cause
        else:
            self.close(cause)

    def message(self, payload: bytes) -> None:
        """Do what an envelope asks for. A malformed one is logged and dropped, no more."""
        slot = self.slot
        if slot is None:
            self._keep_for_later(payload)
            return
        try:
            envelope = unwrap(payload)
        except EnvelopeError as error:
            self._complain(Event.BINARY_ENVELOPE_REFUSED, error.fault)
            return
        if isinstance(envelope, PushWake):
            self._complain(Event.PUSH_WAKE_DROPPED, "push is not configured")
            return
        phone = slot.phones.get(envelope.conn_id)
        if phone is None or phone.directed:
            self._complain(Event.BINARY_UNKNOWN_CONN_ID, "no such phone")
            return
        self._forward(phone, envelope)

    def _keep_for_later(self, message: bytes) -> None:
        """Hold a message until the claim is decided; past the budget read no more."""
        early = self._early
        if early is not None:
            early.push(message)
            if early.full:
                self.pause_reading()

    def _forward(self, phone: Phone, envelope: Envelope) -> None:
        if envelope.frame is not None and not phone.leg.deliver(envelope.frame):
            return
        if envelope.close_code is not None:
            phone.directed = True
            phone.leg.close_after_queue(close_codes.directed(envelope.close_code))

    def _complain(self, event: Event, reason: EnvelopeFault | str) -> None:
        self._exchange.observer.saw(
            event, server_id=self.server_id, remote=self.remote, reason=reason
        )

    def ended(self, close_code: int, cause: EndCause) -> None:
        """Release the slot, if this connection still holds it."""
        self._exchange.observer.saw(
            Event.BINARY_CLOSED,
            server_id=self.server_id,
            remote=self.remote,
            close_code=close_code,
            reason=cause,
        )
        if self._early is not None:
            self._early.retire()
        slot, self.slot = self.slot, None
        if slot is not None and self._exchange.registry.release(slot, self):
            self._exchange.observer.saw(Event.SERVER_RELEASED, server_id=self.server_id)


class Contests:
    """Newcomers that wait for an incumbent's answer; one probe serves all of one incumbent.

    At most ``max_waiting`` wait for one incumbent, so that opening many connections with a
    known server-id ties up no more than that.
    """

    max_waiting = 16

    def __init__(self) -> None:
        self._waiting: dict[BinaryProtocol, list[BinaryProtocol]] = {}

    def join(self, incumbent: BinaryProtocol, newcomer: BinaryProtocol) -> bool:
        """Have ``newcomer`` wait for the incumbent's answer; False when too many do."""
        waiting = self._waiting.get(incumbent)
        if waiting is None:
            self._waiting[incumbent] = [newcomer]
            incumbent.probe(lambda alive: self._decide(incumbent, alive))
        elif len(waiting) >= self.max_waiting:
            return False
        else:
            waiting.append(newcomer)
        return True

    def _decide(self, incumbent: BinaryProtocol, alive: bool) -> None:
        """Tell the newcomers, those that are still there, in the order in which they came."""
        present = [
            newcomer for newcomer in self._waiting.pop(incumbent) if newcomer.stage is Stage.SERVING
        ]
        if alive:
            losers = present
        else:
            losers = present[1:]
            if present:
                present[0].succeed(incumbent)
        for newcomer in losers:
            newcomer.lose()


class BinaryFactory(RelayFactory[BinaryProtocol]):
    """Makes binaries' connections."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(
            BinaryProtocol,
            Environment(
                clock=exchange.clock,
                limits=exchange.limits,
                account=exchange.ledger.binaries,
                max_message_bytes=exchange.limits.max_message_bytes + ENVELOPE_ALLOWANCE,
                random=exchange.random,
                poller=exchange.poller,
                tally=exchange.tally.binaries,
            ),
        )
        self.exchange = exchange
        self.contests = Contests()
