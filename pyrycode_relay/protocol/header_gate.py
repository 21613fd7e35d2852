"""The headers of a WebSocket request: their names, their limits, and the gate that checks them.

Source: "Header gate" in ``docs/protocol.md``. Values are as Autobahn and twisted.web pass them:
bytes decoded as latin-1, one character per byte.
"""

from __future__ import annotations

import enum
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeAlias

SERVER_ID: Final = "x-pyrycode-server"
VERSION: Final = "x-pyrycode-version"
TOKEN: Final = "x-pyrycode-token"  # noqa: S105 - the header's name
DEVICE_NAME: Final = "x-pyrycode-device-name"
USER_AGENT: Final = "user-agent"

MAX_SERVER_ID: Final = 256
"""Bytes. The id is the routing key and part of every ``conn_id``."""
MAX_VALUE: Final = 4096
"""Bytes of a version, user-agent or token: far more than a real one, far less than all headers."""
MAX_DEVICE_NAME: Final = 128
"""Characters of a device name that reach the log."""

SINGLE: Final = (SERVER_ID, VERSION, TOKEN, DEVICE_NAME, USER_AGENT)
"""Headers that may occur at most once. If there were two, it would be unclear which one counts."""

GATED: Final = (SERVER_ID, VERSION, TOKEN, USER_AGENT)
"""Headers that the gate checks. No other header of a request reaches ``onConnect``."""

_WHITE: Final = " \t"
"""White space around a header's value. Plain str.strip would also strip NBSP, a byte above 0x7F."""
_PRINTABLE: Final = frozenset(map(chr, range(0x20, 0x7F)))

# Control bytes, which no header may contain. str.splitlines, and so Autobahn's header parser, ends
# a line at some of them and at `_NEXT_LINE`.
_CONTROLS: Final = bytes(byte for byte in range(0x20) if byte != 0x09) + b"\x7f"
_NEXT_LINE: Final = b"\x85"

_HIDDEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode categories that could move or hide text in a terminal: control and format characters
(bidirectional ones included), lone surrogates, line and paragraph separators."""

_HEADERS: Final = "reject_headers"


class UpgradeRefusal(enum.Enum):
    """Why a request is not upgraded: the text for the log, and the outcome in the metrics.

    The metric of refused requests uses the name, in lower case.
    """

    NOT_READY = ("the relay drains", "reject_not_ready")
    NO_HANDSHAKE = ("not a WebSocket handshake", "reject_handshake")
    NO_SERVER_ID = (f"{SERVER_ID} is missing", _HEADERS)
    NO_VERSION = (f"{VERSION} is missing", _HEADERS)
    NO_TOKEN = (f"{TOKEN} is missing", _HEADERS)
    NO_USER_AGENT = (f"{USER_AGENT} is missing", _HEADERS)
    LONG_SERVER_ID = (f"{SERVER_ID} is too long", _HEADERS)
    LONG_VERSION = (f"{VERSION} is too long", _HEADERS)
    LONG_TOKEN = (f"{TOKEN} is too long", _HEADERS)
    LONG_USER_AGENT = (f"{USER_AGENT} is too long", _HEADERS)
    UNPRINTABLE_SERVER_ID = (f"{SERVER_ID} has a byte that is not printable ASCII", _HEADERS)
    UNPRINTABLE_VERSION = (f"{VERSION} has a byte that is not printable ASCII", _HEADERS)
    REPEATED_HEADER = ("a routing header occurs more than once", _HEADERS)
    CONTROL_BYTE = ("a header has a control byte", _HEADERS)
    NOT_ASCII = ("a server-id or version has a byte that is not ASCII", _HEADERS)

    def __init__(self, text: str, label: str) -> None:
        self.text = text
        self.label = label

    def __str__(self) -> str:
        return self.text


class HeaderError(ValueError):
    """The gate refuses a request. The error contains none of the request's values."""

    def __init__(self, refusal: UpgradeRefusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


_MISSING: Final = {
    SERVER_ID: UpgradeRefusal.NO_SERVER_ID,
    VERSION: UpgradeRefusal.NO_VERSION,
    TOKEN: UpgradeRefusal.NO_TOKEN,
    USER_AGENT: UpgradeRefusal.NO_USER_AGENT,
}
_TOO_LONG: Final = {
    SERVER_ID: UpgradeRefusal.LONG_SERVER_ID,
    VERSION: UpgradeRefusal.LONG_VERSION,
    TOKEN: UpgradeRefusal.LONG_TOKEN,
    USER_AGENT: UpgradeRefusal.LONG_USER_AGENT,
}
_UNPRINTABLE: Final = {
    SERVER_ID: UpgradeRefusal.UNPRINTABLE_SERVER_ID,
    VERSION: UpgradeRefusal.UNPRINTABLE_VERSION,
}


def _required(headers: Mapping[str, str], name: str, limit: int) -> str:
    value = headers.get(name, "").strip(_WHITE)
    if not value:
        raise HeaderError(_MISSING[name])
    if len(value) > limit:
        raise HeaderError(_TOO_LONG[name])
    return value


def _printable(value: str, name: str) -> str:
    if not _PRINTABLE.issuperset(value):
        raise HeaderError(_UNPRINTABLE[name])
    return value


def server_id(headers: Mapping[str, str]) -> str:
    """Return the server-id of a request that passed its gate."""
    return headers[SERVER_ID].strip(_WHITE)


def version(headers: Mapping[str, str]) -> str:
    """Return the binary's version from a request that passed its gate."""
    return headers[VERSION].strip(_WHITE)


def _gate_common(headers: Mapping[str, str]) -> None:
    _printable(_required(headers, SERVER_ID, MAX_SERVER_ID), SERVER_ID)
    _required(headers, USER_AGENT, MAX_VALUE)


def gate_binary(headers: Mapping[str, str]) -> None:
    """Check a binary's request. Keys are lower-case header names. Raises `HeaderError`."""
    _gate_common(headers)
    _printable(_required(headers, VERSION, MAX_VALUE), VERSION)


def gate_phone_v1(headers: Mapping[str, str]) -> None:
    """Check a v1 phone's request, which must have a token. Raises `HeaderError`."""
    _gate_common(headers)
    _required(headers, TOKEN, MAX_VALUE)


def gate_phone_v2(headers: Mapping[str, str]) -> None:
    """Check a v2 phone's request, which needs no token. Raises `HeaderError`."""
    _gate_common(headers)
    if len(headers.get(TOKEN, "")) > MAX_VALUE:
        raise HeaderError(UpgradeRefusal.LONG_TOKEN)


Gate: TypeAlias = Callable[[Mapping[str, str]], None]
Fields: TypeAlias = Iterable[tuple[bytes, Sequence[bytes]]]
"""A header block: lower-case names, each with its values in order."""


def check_block(fields: Fields) -> None:
    r"""Refuse a header block that a later parser could read differently.

    Raises `HeaderError` for

    - a control byte in any value;
    - ``\x85`` in any value, unless it is a device name in well-formed UTF-8;
    - a byte above 0x7F in a server-id or version, because Autobahn strips some of them;
    - a routing header that occurs more than once.
    """
    single = {name.encode() for name in SINGLE}
    ascii_only = {SERVER_ID.encode(), VERSION.encode()}
    for name, values in fields:
        if name in single and len(values) > 1:
            raise HeaderError(UpgradeRefusal.REPEATED_HEADER)
        for value in values:
            if len(value.translate(None, _CONTROLS)) != len(value):
                raise HeaderError(UpgradeRefusal.CONTROL_BYTE)
            if name in ascii_only and not value.isascii():
                raise HeaderError(UpgradeRefusal.NOT_ASCII)
            if _NEXT_LINE in value and not (name == DEVICE_NAME.encode() and _is_utf8(value)):
                raise HeaderError(UpgradeRefusal.CONTROL_BYTE)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def device_name(raw: bytes) -> str:
    """Return a device name for the log, cut at 128 characters and without `_HIDDEN` ones.

    The name is free text, so bytes that are not UTF-8 are replaced.
    """
    text = raw.decode("utf-8", "replace")[:MAX_DEVICE_NAME]
    return "".join(c for c in text if unicodedata.category(c) not in _HIDDEN).strip()
