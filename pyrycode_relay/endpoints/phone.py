"""``/v1/client`` and ``/v2/client``: a phone registers with a server-id and exchanges frames.

Steps: header gate, registration, frames, end. Source: sections 1, 3 and 4 of ``docs/protocol.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from autobahn.websocket.types import ConnectionDeny

from pyrycode_relay.endpoints.context import RelayContext
from pyrycode_relay.events import Event
from pyrycode_relay.protocol import header_gate
from pyrycode_relay.protocol.close_codes import EndCause, Refusal
from pyrycode_relay.protocol.envelope import is_json
from pyrycode_relay.registry.queues import Payload
from pyrycode_relay.tally import FRAME, PhoneTally
from pyrycode_relay.websocket.connection import RelayProtocol
from pyrycode_relay.websocket.factory import Environment, RelayFactory

if TYPE_CHECKING:
    from autobahn.websocket.types import ConnectionRequest

    from pyrycode_relay.registry.slot import Phone

_REFUSED = {
    Refusal.NO_SERVER: Event.PHONE_REGISTER_NO_SERVER,
    Refusal.AT_CAP: Event.PHONE_REGISTER_AT_CAP,
}


class PhoneProtocol(RelayProtocol):
    """A phone's connection."""

    __slots__ = ("phone", "server_id", "since", "traffic")

    backlog_cause: ClassVar[EndCause] = EndCause.PHONE_BACKLOG_FULL
    stalled_cause: ClassVar[EndCause] = EndCause.PHONE_WRITE_STALLED
    factory: PhoneFactory

    def __init__(self, factory: PhoneFactory) -> None:
        super().__init__(factory)
        self.phone: Phone | None = None
        """The registered phone; None before registration and after the end."""
        self.server_id = ""
        self.since = 0.0
        self.traffic = 0
        """Frames and bytes in both directions, packed into one number; see `FRAME`."""

    @property
    def _context(self) -> RelayContext:
        return self.factory.context

    def onConnect(self, request: ConnectionRequest) -> None:
        """Check the request at the header gate. Raises ``ConnectionDeny(400)``.

        The gate checks that a token is present. Its value is not kept.
        """
        try:
            self.factory.gate(request.headers)
        except header_gate.HeaderError as error:
            raise ConnectionDeny(ConnectionDeny.BAD_REQUEST) from error
        self.server_id = header_gate.server_id(request.headers)

    @property
    def identity(self) -> tuple[str, str]:
        """The server-id, and an empty text."""
        return self.server_id, ""

    def identify(self, server_id: str, version: str) -> None:  # noqa: ARG002
        """Set the server-id."""
        self.server_id = server_id

    def opened(self) -> None:
        """Register with the server-id, or close the phone with the refusal's cause."""
        context = self._context
        outcome = context.registry.register(self.server_id, self)
        if isinstance(outcome, Refusal):
            context.observer.saw(_REFUSED[outcome], server_id=self.server_id, remote=self.remote)
            self.close(outcome.value)
            return
        self.phone = outcome.phone
        self.since = context.clock.seconds()
        context.observer.saw(
            Event.PHONE_REGISTERED,
            server_id=self.server_id,
            id_hash=context.id_hash.of(self.server_id),
            conn_id=self.phone.conn_id,
            device_name=self.device_name,
            remote=self.remote,
        )

    def message(self, payload: bytes) -> None:
        """Forward a message to the binary. Close the phone if it is not one JSON value."""
        phone = self.phone
        if phone is None or phone.close_requested:
            # The binary has asked for the phone's close, so its messages are dropped.
            return
        if not is_json(payload):
            self._context.observer.saw(
                Event.PHONE_FRAME_REFUSED,
                server_id=self.server_id,
                conn_id=phone.conn_id,
                remote=self.remote,
                reason=EndCause.NOT_JSON,
            )
            self.close(EndCause.NOT_JSON)
            return
        counted = FRAME + len(payload)
        self.traffic += counted
        self.factory.tally.received += counted
        phone.send(payload)

    def oversized(self, size: int, limit: int) -> None:
        """Log that a message is refused for its size."""
        self._context.observer.saw(
            Event.MESSAGE_TOO_BIG,
            server_id=self.server_id,
            remote=self.remote,
            size=size,
            limit=limit,
        )

    def deliver(self, frame: Payload) -> bool:
        """Send a frame from the binary to the phone, now or after the queued frames."""
        counted = FRAME + len(frame)
        self.traffic += counted
        self.factory.tally.sent += counted
        if self.writable and not self.outbox.cost:
            self.send(frame)
            return True
        return super().deliver(frame)

    def ended(self, close_code: int, cause: EndCause) -> None:
        """Unregister the phone and log its session."""
        context = self._context
        context.observer.saw(
            Event.PHONE_CLOSED,
            server_id=self.server_id,
            remote=self.remote,
            close_code=close_code,
            reason=cause,
        )
        phone, self.phone = self.phone, None
        if phone is None:
            return
        context.registry.unregister(phone, close_code)
        frames, size = divmod(self.traffic, FRAME)
        context.observer.saw(
            Event.PHONE_UNREGISTERED,
            server_id=self.server_id,
            conn_id=phone.conn_id,
            close_code=close_code,
            duration=round(context.clock.seconds() - self.since, 3),
            frames=frames,
            bytes=size,
            reason=cause,
        )


class PhoneFactory(RelayFactory[PhoneProtocol]):
    """Makes phones' connections; ``gate`` is the header gate of their protocol version."""

    tally: PhoneTally

    def __init__(self, context: RelayContext, gate: header_gate.Gate) -> None:
        super().__init__(
            PhoneProtocol,
            Environment(
                clock=context.clock,
                limits=context.limits,
                group=context.memory_budget.phones,
                max_message_bytes=context.limits.max_message_bytes,
                random=context.random,
                poller=context.poller,
                tally=context.tally.phones,
            ),
        )
        self.context = context
        self.gate = gate
