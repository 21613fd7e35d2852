"""The routing envelope between relay and binary. Frames are copied as bytes, never re-encoded.

Source: "Routing envelope" in ``docs/protocol.md``. A frame is opaque and goes through byte for
byte. It must be exactly one JSON value, because an unchecked message (``1,"conn_id":"victim"``)
would forge an envelope.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from pyrycode_relay.protocol import close_codes, push_wake
from pyrycode_relay.protocol.push_wake import PushWake

_COPIED: Final = 16_384
"""Frames up to this many bytes are copied: as fast as a view, and the message can be freed."""

SUFFIX: Final = b"}"
"""The end of an envelope that begins with `data_prefix`."""


class EnvelopeFault(enum.Enum):
    """What is wrong with a binary's message: the text for the log, and the metric label."""

    TOO_DEEP = ("nested too deeply", "too_deep")
    NOT_AN_OBJECT = ("not a JSON object", "not_an_object")
    NO_CONN_ID = ("conn_id is missing or empty", "no_conn_id")
    CONN_ID_TYPE = ("conn_id is not a string", "wrong_type")
    CONN_ID_SURROGATE = ("conn_id has a lone surrogate", "wrong_type")
    """Such a conn_id is unknown, because the relay never makes one."""
    CLOSE_CODE = ("close_code is not an integer from 1 to 65535", "close_code")
    NOTHING_ASKED = ("neither frame nor close_code", "nothing_asked")

    def __init__(self, text: str, label: str) -> None:
        self.text = text
        self.label = label

    def __str__(self) -> str:
        return self.text


class EnvelopeError(ValueError):
    """A binary's message is not an envelope. The error contains no part of the message."""

    def __init__(self, fault: EnvelopeFault) -> None:
        super().__init__(fault)
        self.fault = fault


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """A binary's message about one phone: a frame for it, a close directive, or both.

    ``frame`` is None if the key is absent or null. A large frame is a view, which keeps the whole
    message in memory.
    """

    conn_id: str
    frame: bytes | memoryview | None
    close_code: int | None


class _Fields(msgspec.Struct):
    conn_id: str | UnsetType | None = UNSET
    frame: msgspec.Raw | UnsetType = UNSET
    close_code: int | UnsetType = UNSET
    push_wake: msgspec.Raw | UnsetType = UNSET


class _ConnId(msgspec.Struct):
    conn_id: msgspec.Raw | UnsetType = UNSET


_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_any = msgspec.json.Decoder(msgspec.Raw).decode
_locate_conn_id = msgspec.json.Decoder(_ConnId).decode
_decode_conn_id = msgspec.json.Decoder(str | None).decode
_encode_text = msgspec.json.Encoder().encode
_NULL: Final = b"null"


def _without_surrogates(data: bytes) -> bytes:
    r"""Return ``data`` with ``\ud`` and ``\uD`` replaced by ``\uf``.

    msgspec rejects a lone surrogate escape (``\ud800``), which RFC 8259's grammar allows. The
    result is JSON by msgspec exactly if ``data`` is JSON by the grammar, and each value is in the
    same place. In a string, ``\ud`` is the beginning of an escape and ``\uf`` is another one, or
    its backslash is the second of ``\\`` and the letters are plain text. Outside of strings neither
    is JSON. The result has no new key with a meaning, because those are ASCII.
    """
    return data.replace(rb"\ud", rb"\uf").replace(rb"\uD", rb"\uf")


def is_json(data: bytes) -> bool:
    r"""Whether ``data`` (valid UTF-8) is exactly one JSON value by RFC 8259's grammar.

    White space around the value, lone surrogate escapes and numbers beyond any float are allowed.
    Nesting deeper than the interpreter's recursion limit is refused: about 900 levels in CPython
    3.11, and 10,000 in later versions.
    """
    try:
        _decode_any(data)
    except msgspec.DecodeError:
        changed = _without_surrogates(data)
        return changed != data and is_json(changed)
    except RecursionError:
        return False
    return True


def data_prefix(conn_id: str) -> bytes:
    """Return the part of an envelope before a phone's frame; `SUFFIX` is the part after it."""
    return b'{"conn_id":' + _encode_text(conn_id) + b',"frame":'


def close_notice(conn_id: str, code: int) -> bytes:
    """Return the envelope that tells a binary that a phone's connection has ended."""
    return b'{"conn_id":%s,"close_code":%d}' % (_encode_text(conn_id), code)


def unwrap(message: bytes) -> Envelope | PushWake:
    """Parse a binary's message, which is valid UTF-8.

    Raises `EnvelopeError` if it is malformed. No message raises anything else.
    """
    try:
        fields = _decode_fields(message)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        fields = _fields_with_surrogates(message, error)
    conn_id, frame, code = fields.conn_id, fields.frame, fields.close_code
    if conn_id is UNSET or not conn_id:
        return _without_conn_id(fields)
    content: bytes | memoryview | None = None
    if frame is not UNSET:
        content = bytes(frame) if len(frame) <= _COPIED else memoryview(frame)
    if content is None or content == _NULL:
        if code is UNSET:
            raise EnvelopeError(EnvelopeFault.NOTHING_ASKED)
        return Envelope(conn_id, None, _code(code))
    return Envelope(conn_id, content, None if code is UNSET else _code(code))


def _without_conn_id(fields: _Fields) -> PushWake:
    wake = fields.push_wake
    if wake is not UNSET and bytes(wake) != _NULL:
        return push_wake.parse(wake)
    missing = fields.conn_id is not None
    raise EnvelopeError(EnvelopeFault.NO_CONN_ID if missing else EnvelopeFault.CONN_ID_TYPE)


def _code(code: int) -> int:
    if not close_codes.MIN_DIRECTIVE <= code <= close_codes.MAX_DIRECTIVE:
        raise EnvelopeError(EnvelopeFault.CLOSE_CODE)
    return code


def _which_fault(error: Exception) -> EnvelopeFault:
    # The error's own text is not passed on, because it could quote the message.
    text = str(error)
    if isinstance(error, RecursionError):
        return EnvelopeFault.TOO_DEEP
    if text.endswith("$.conn_id`"):
        return EnvelopeFault.CONN_ID_TYPE
    if text.endswith("$.close_code`"):
        return EnvelopeFault.CLOSE_CODE
    return EnvelopeFault.NOT_AN_OBJECT


def _fields_with_surrogates(message: bytes, error: Exception) -> _Fields:
    """Return the fields of a message that msgspec rejects with ``error``.

    Raises `EnvelopeError`, unless surrogate escapes are the only fault.
    """
    changed = bytearray(_without_surrogates(message))
    if isinstance(error, msgspec.ValidationError) or changed == message:
        raise EnvelopeError(_which_fault(error)) from None
    try:
        fields = _decode_fields(changed)
        raw_conn_id = _locate_conn_id(changed).conn_id
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as other:
        raise EnvelopeError(_which_fault(other)) from None
    # Each msgspec.Raw is a view of these bytes, so it now shows what the binary sent.
    memoryview(changed)[:] = message
    if raw_conn_id is not UNSET:
        try:
            fields.conn_id = _decode_conn_id(raw_conn_id)
        except msgspec.DecodeError:
            raise EnvelopeError(EnvelopeFault.CONN_ID_SURROGATE) from None
    return fields
