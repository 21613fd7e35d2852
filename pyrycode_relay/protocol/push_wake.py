"""Push wakes: requests, refusals and outcomes.

Source: "Push wake" in ``docs/protocol.md``. A token identifies a device, so it is a secret. No text
of these types contains it.
"""

from __future__ import annotations

import enum
import re
from typing import Final

import msgspec

MAX_TOKEN: Final = 4096
"""Largest token, in bytes of UTF-8."""

_REPLY: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)


@enum.unique
class WakeRefusal(enum.Enum):
    """Why a wake is not sent: the text for the log, and the metric label; in order of the checks.

    ``is_limit`` is true if the wake was valid but exceeded a limit.
    """

    OFF = ("push is not configured", "off")
    MALFORMED = ("push_wake is malformed", "malformed")
    PLATFORM = ("platform is unknown or not configured", "platform")
    TOKEN = ("token is empty or over 4096 bytes", "token")
    DRAINING = ("no wake is sent while the relay drains", "draining")
    RATE = ("too many push wakes for server-id", "rate", True)
    BUSY = ("too many sends under way", "busy", True)

    def __init__(self, text: str, label: str, is_limit: bool = False) -> None:
        self.text = text
        self.label = label
        self.is_limit = is_limit

    def __str__(self) -> str:
        return self.text


@enum.unique
class WakeOutcome(enum.Enum):
    """The outcome of a wake: the metric label, and the word in a `push_result`."""

    SENT = ("sent", "sent")
    UNREGISTERED = ("unregistered", "unregistered")
    """The token is dead: it will never reach the device again."""
    SEND_FAILED = ("send_failed", "failed")
    TOKEN_FETCH_FAILED = ("token_fetch_failed", "failed")
    """The relay could not get its access token for the provider."""
    DROPPED = ("dropped", "dropped")

    def __init__(self, label: str, word: str) -> None:
        self.label = label
        self.word = word


class WakeRequest(msgspec.Struct, frozen=True, gc=False):
    """A binary's request for a wake. An absent platform or token is empty.

    ``reply`` is the binary's name for the wake. If it is not None, the binary gets the outcome.
    """

    platform: str = ""
    token: str = ""
    reply: str | None = None

    def __repr__(self) -> str:
        return f"WakeRequest(platform={self.platform!r})"


class PushWake(msgspec.Struct, frozen=True, gc=False):
    """An envelope with a request for a wake; ``request`` is None if it is malformed."""

    request: WakeRequest | None


_decode = msgspec.json.Decoder(WakeRequest).decode


def parse(content: msgspec.Raw) -> PushWake:
    """Parse the value of ``push_wake``."""
    try:
        request = _decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return PushWake(None)
    if request.reply is not None and _REPLY.fullmatch(request.reply) is None:
        return PushWake(None)
    return PushWake(request)


def push_result(reply: str, outcome: WakeOutcome) -> bytes:
    """Return the message to a binary with the outcome of the wake that it named ``reply``."""
    return msgspec.json.encode({"push_result": {"reply": reply, "outcome": outcome.word}})
