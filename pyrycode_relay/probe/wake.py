"""The probe's push wake: what to send, and what its outcome means."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pyrycode_relay.probe.report import ProbeError, Status
from pyrycode_relay.probe.target import TargetError

_MAX_TOKEN: Final = 4096
"""Largest token, in bytes of UTF-8."""

_PLATFORM: Final = re.compile(r"[A-Za-z0-9_-]{1,32}", re.ASCII)

SENT: Final = "sent"

_MEANINGS: Final = {
    "unregistered": "The push token is dead; the device must register again.",
    "failed": "The relay could not send the push wake; push_wake_failed in its log says why.",
    "dropped": "The relay refused the push wake, because push is off, the platform is not "
    "configured, the token is malformed, or a limit is reached; push_wake_dropped in its log says "
    "which.",
}
"""What each outcome but `SENT` means; see "Push wake" in ``docs/protocol.md``."""


@dataclass(frozen=True, slots=True)
class Wake:
    """A push wake to send. The token is a secret: it names a device."""

    platform: str
    token: str = field(repr=False)
    reply: str = field(default_factory=lambda: secrets.token_urlsafe(12))
    """The probe's name for the wake, random. The relay repeats it in its answer."""

    @classmethod
    def parse(cls, text: str) -> Wake:
        """Parse ``PLATFORM:TOKEN``, or ``PLATFORM:@FILE`` for a token in a file.

        Raises `TargetError`, which quotes nothing: each part could be the token.
        """
        platform, separator, token = text.partition(":")
        if not separator or not _PLATFORM.fullmatch(platform):
            raise TargetError("--wake is invalid; allowed: PLATFORM:TOKEN or PLATFORM:@FILE.")
        if token.startswith("@"):
            token = _read(Path(token[1:]))
        if not 0 < len(token.encode("utf-8", "surrogateescape")) <= _MAX_TOKEN:
            raise TargetError(f"The token of --wake is empty or over {_MAX_TOKEN} bytes.")
        return cls(platform, token)

    def envelope(self) -> str:
        """Return the binary's message to the relay."""
        fields = {"platform": self.platform, "token": self.token, "reply": self.reply}
        return json.dumps({"push_wake": fields})

    def outcome(self, answer: str | bytes) -> str:
        """Return the outcome that the relay's answer contains. Raises `ProbeError`."""
        try:
            result: Any = json.loads(answer)["push_result"]
            reply, outcome = result["reply"], result["outcome"]
        except (ValueError, KeyError, TypeError, RecursionError):
            reply = outcome = None
        if reply != self.reply or outcome not in (SENT, *_MEANINGS):
            raise ProbeError(Status.MISBEHAVES, "The answer to the push wake is not a push_result.")
        return str(outcome)


def check(outcome: str) -> None:
    """Raise `ProbeError` unless the wake was sent."""
    if outcome != SENT:
        raise ProbeError(Status.NOT_WOKEN, _MEANINGS[outcome])


def _read(path: Path) -> str:
    """Return the token in a file, without the white space around it. Raises `TargetError`."""
    try:
        with path.open("rb") as file:
            # Larger than a token is enough to know that it is too large.
            return file.read(2 * _MAX_TOKEN).decode().strip()
    except OSError as error:
        cause = error.strerror
    except ValueError:
        cause = "it is not text"
    # The path is not shown, because it could be a token behind a stray @.
    raise TargetError(f"The file of --wake cannot be read: {cause}.")
