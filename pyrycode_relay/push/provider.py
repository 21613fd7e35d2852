"""The interface of a push provider: one method to send, and the outcomes that it can have.

The model is sygnal's ``Pushkin``. A provider sends one message with one try. `service.PushService`
decides when and how often, and reports the outcome.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Protocol

from pyrycode_relay.protocol.push_wake import WakeOutcome


@enum.unique
class SendFault(enum.Enum):
    """Why a send failed: the text for the log, the label, and the outcome it amounts to.

    ``blames_provider`` is true only if the provider, or the way to it, is out of order, and no
    token that a binary chooses can cause the fault. Only these faults count for the breaker:
    otherwise one binary with bad tokens could turn push off for all.
    """

    UNREGISTERED = ("the token is no longer registered", "unregistered", WakeOutcome.UNREGISTERED)
    FORBIDDEN_HOST = ("the host that the token names is not allowed", "forbidden_host")
    INVALID_TOKEN = ("the token is invalid", "invalid_token")
    BAD_REQUEST = ("the provider calls the request bad", "bad_request")
    REFUSED = ("the provider refused", "refused")
    RATE_LIMITED = ("the provider limits the rate", "rate_limited")
    UNAUTHORIZED = ("the provider does not accept the relay's credentials", "unauthorized")
    UNAVAILABLE = ("the provider is unavailable", "unavailable")
    REDIRECTED = ("the provider redirects", "redirected")
    MALFORMED = ("the provider's answer is malformed", "malformed_answer")
    UNREACHABLE = ("the provider cannot be reached", "unreachable")
    TLS = ("the provider's certificate or its TLS is refused", "tls")
    DISCONNECTED = ("the connection was lost before the answer", "disconnected")
    TIMEOUT = ("the provider did not answer in time", "timeout")
    TOKEN_FETCH = (
        "the relay got no access token",
        "token_fetch",
        WakeOutcome.TOKEN_FETCH_FAILED,
    )
    BREAKER = ("the provider is paused after repeated failures", "breaker")
    CANCELLED = ("the relay shut down", "cancelled")
    BUG = ("a bug in the relay", "bug")

    def __init__(
        self, text: str, label: str, outcome: WakeOutcome = WakeOutcome.SEND_FAILED
    ) -> None:
        self.text = text
        self.label = label
        self.outcome = outcome

    @property
    def blames_provider(self) -> bool:
        """Whether the fault counts for the provider's breaker."""
        return self in _BLAMING

    def __str__(self) -> str:
        return self.text


_BLAMING = frozenset(
    {
        SendFault.UNAUTHORIZED,
        SendFault.UNAVAILABLE,
        SendFault.REDIRECTED,
        SendFault.MALFORMED,
        SendFault.UNREACHABLE,
        SendFault.TLS,
        SendFault.DISCONNECTED,
        SendFault.TIMEOUT,
        SendFault.TOKEN_FETCH,
    }
)


@dataclass(frozen=True, slots=True)
class Sent:
    """The provider has accepted the message.

    ``message_id`` is the provider's name for it, checked for the log; it may be empty.
    """

    message_id: str = ""


@dataclass(frozen=True, slots=True)
class Failed:
    """The provider has not accepted the message; its ``str`` is the text for the log.

    Args:
        fault: Why.
        details: Words of the answer that are fit for the log: a status, codes of a closed form.
        retryable: Whether another try may succeed.
        retry_after: Seconds to wait before it; None if the provider gives no number.

    """

    fault: SendFault
    details: tuple[str, ...] = ()
    retryable: bool = field(default=False, kw_only=True)
    retry_after: float | None = field(default=None, kw_only=True)

    @property
    def outcome(self) -> WakeOutcome:
        """The outcome that this amounts to if it is the last try."""
        return self.fault.outcome

    @property
    def label(self) -> str:
        """The class of the failure, as a label."""
        return self.fault.label

    def __str__(self) -> str:
        return f"{self.fault} ({' '.join(self.details)})" if self.details else str(self.fault)


Outcome = Sent | Failed


class Provider(Protocol):
    """A provider of push messages.

    ``is_one_server`` is false if a token names its server. Then a failure says nothing about the
    next send, so no breaker counts it, and only a part of all sends may be under way.
    """

    is_one_server: bool

    async def send(self, token: str, ttl: float) -> Outcome:
        """Send a wake to the device that ``token`` names, with one try.

        The message is worthless ``ttl`` seconds from now. No exception but a bug's is raised; if
        the coroutine is cancelled, nothing of the send remains.
        """

    async def close(self) -> None:
        """Close what is kept open between sends."""
