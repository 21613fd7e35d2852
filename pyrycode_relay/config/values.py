"""The kinds of values that a setting can have, each with its parser."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from pyrycode_relay import addresses
from pyrycode_relay.config.listen import endpoint_string
from pyrycode_relay.events import Level
from pyrycode_relay.limits import OnReclaim

_UNITS: Final = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_BYTES: Final = re.compile(r"(\d+)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)
_LABEL: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?")
_EMAIL: Final = re.compile(r"[!-+\--?A-~]+@[a-z0-9.-]+", re.ASCII | re.IGNORECASE)
"""Any text with one @, and without the characters that would add an address or a header."""
_MAX_SECONDS: Final = 86_400
_MAX_BYTES: Final = 2**40
_MAX_COUNT: Final = 1_000_000
_MIN_RATE: Final = 0.01
"""Below this rate the next upgrade is due later than a client can be told to wait."""
_MAX_SHARE: Final = 0.9
_SHELLS: Final = ("bash", "fish", "zsh")
_ON: Final = frozenset({"1", "on", "true", "yes"})
_OFF: Final = frozenset({"", "0", "off", "false", "no"})


MOST_WORKERS: Final = 16
"""The memory of the shared limits has room for 16 workers, and for their successors."""
AUTO: Final = 0
"""The value of "auto": as many workers as the process may use cores."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value.

    ``parse`` reads a text; it raises `ValueError`, `KeyError` or `OverflowError` for a text that
    is not allowed. ``allowed`` describes the allowed texts. ``placeholder`` stands for a value in
    the help. ``show`` turns a value into a text.
    """

    parse: Callable[[str], Any]
    allowed: str
    placeholder: str
    show: Callable[[Any], str] = str
    words: tuple[str, ...] = ()
    """All values, if they are a few words: a shell offers them."""


@dataclass(frozen=True, slots=True)
class Secret:
    """A secret: the file that has it, or the text itself, which is never shown."""

    path: Path | None = None
    text: str = field(default="", repr=False)

    def read(self, limit: int) -> str:
        """Return the text, of at most ``limit`` bytes. Raises `OSError` or `ValueError`."""
        if self.path is None:
            return self.text
        with self.path.open("rb") as file:
            content = file.read(limit + 1)
        if len(content) > limit:
            raise ValueError("the file is too large")
        return content.decode()


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= _MAX_SECONDS:
        raise ValueError
    return value


def _bytes(text: str) -> int:
    match = _BYTES.fullmatch(text.strip())
    if match is None:
        raise ValueError
    value = int(match[1]) * _UNITS[match[2].lower()]
    if not 0 < value <= _MAX_BYTES:
        raise ValueError
    return value


def _bytes_or_none(text: str) -> int:
    return 0 if text.strip() == "0" else _bytes(text)


def _count(text: str) -> int:
    value = int(text)
    if not 0 < value <= _MAX_COUNT:
        raise ValueError
    return value


def _count_or_none(text: str) -> int:
    return 0 if text.strip() == "0" else _count(text)


def _workers(text: str) -> int:
    if text.strip() == "auto":
        return AUTO
    value = int(text)
    if not 0 < value <= MOST_WORKERS:
        raise ValueError
    return value


def _rate(text: str) -> float:
    value = float(text)
    if value and not _MIN_RATE <= value <= _MAX_COUNT:
        raise ValueError
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= _MAX_SHARE:
        raise ValueError
    return value


def _switch(text: str) -> bool:
    word = text.strip().lower()
    if word not in _ON | _OFF:
        raise ValueError
    return word in _ON


def _level(text: str) -> Level:
    return Level[text.upper()]


def _address(text: str) -> str:
    """Return an address as it was given: the meaning of a wildcard depends on the machine."""
    endpoint_string(text)
    return text


def _address_or_none(text: str) -> str:
    return text and _address(text)


def _tls_address(text: str) -> str:
    if text.startswith("ssl:"):
        raise ValueError(text)
    return _address(text)


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(text)
    return Path(text)


def _file_or_none(text: str) -> Path | None:
    if not text:
        return None
    path = _path(text)
    try:
        exists = path.is_file()
    except OSError:  # The name is too long, or the relay may not enter a directory.
        exists = False
    if not exists:
        raise ValueError(text)
    return path


def _secret(text: str) -> Secret | None:
    """Return where a secret is. Every text is accepted, because an error would show it."""
    if text.lstrip().startswith("{"):
        return Secret(text=text)
    return Secret(Path(text)) if text else None


def _https(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "https" or not parts.hostname or parts.username is not None:
        raise ValueError(text)
    if not text.isascii() or not text.isprintable() or " " in text or parts.port == 0:
        raise ValueError(text)
    return text


def _email(text: str) -> str:
    if text and not _EMAIL.fullmatch(text):
        raise ValueError(text)
    return text


def _domain(text: str) -> str:
    """Return a DNS name in lower case.

    IP addresses are refused because clients send no SNI for them.
    """
    name = text.lower()
    labels = name.split(".")
    if (
        not text.isascii()
        or len(name) > 253
        or labels[-1].isdigit()
        or not all(map(_LABEL.fullmatch, labels))
    ):
        raise ValueError(text)
    return name


def _allowed_host(text: str) -> str:
    """Return a DNS name, which may have a leading dot, or an IP address, as URLs have them."""
    try:
        return str(ip_address(text))
    except ValueError:
        return f".{_domain(text[1:])}" if text.startswith(".") else _domain(text)


def _subject(text: str) -> str:
    if text.startswith("mailto:"):
        if not _email(text.removeprefix("mailto:")):
            raise ValueError(text)
        return text
    return text and _https(text)


def _shown_number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


SECONDS: Final = Kind(
    _seconds, f"a number of seconds above 0, up to {_MAX_SECONDS}", "SECONDS", _shown_number
)
BYTES: Final = Kind(_bytes, "a number of bytes above 0, such as 4096, 64K or 256M", "BYTES")
BYTES_OR_NONE: Final = Kind(_bytes_or_none, "a number of bytes, such as 4096 or 64K, or 0", "BYTES")
COUNT: Final = Kind(_count, f"a whole number from 1 to {_MAX_COUNT}", "NUMBER")
COUNT_OR_NONE: Final = Kind(_count_or_none, f"a whole number from 0 to {_MAX_COUNT}", "NUMBER")
WORKERS: Final = Kind(
    _workers,
    f"a whole number from 1 to {MOST_WORKERS}, or auto",
    "NUMBER",
    lambda value: "auto" if value == AUTO else str(value),
)
RATE: Final = Kind(_rate, f"a number from {_MIN_RATE} to {_MAX_COUNT}, or 0", "RATE", _shown_number)
SHARE: Final = Kind(_share, f"a share from 0 to {_MAX_SHARE}", "SHARE", _shown_number)
SWITCH: Final = Kind(_switch, "yes or no", "", lambda value: "yes" if value else "no")
RECLAIM: Final = Kind(
    OnReclaim,
    "evict or keep",
    "evict|keep",
    lambda value: str(value.value),
    ("evict", "keep"),
)
FORMAT: Final = Kind(
    {"text": False, "json": True}.__getitem__,
    "text or json",
    "text|json",
    lambda value: "json" if value else "text",
    ("text", "json"),
)
LEVEL: Final = Kind(
    _level,
    "debug, info, warn or error",
    "LEVEL",
    lambda value: str(value.name.lower()),
    tuple(level.name.lower() for level in Level),
)
ADDRESS: Final = Kind(
    _address,
    ":8080, 127.0.0.1:8080, [::1]:8080, localhost:8080 (ports to 65535, names of this machine) or "
    "a Twisted endpoint string (tcp:, unix:, or systemd: for a socket that systemd passes to this "
    "process)",
    "ADDRESS",
    endpoint_string,
)
ADDRESS_OR_NONE: Final = Kind(
    _address_or_none,
    f"{ADDRESS.allowed}, or nothing at all",
    "ADDRESS",
    lambda value: endpoint_string(value) if value else "",
)
TLS_ADDRESS: Final = Kind(
    _tls_address,
    ":443, 127.0.0.1:443, [::1]:443, localhost:443 (ports to 65535, names of this machine) or a "
    "Twisted endpoint string without TLS (tcp:, unix:, or systemd: for a socket that systemd "
    "passes to this process)",
    "ADDRESS",
    endpoint_string,
)
SOURCE: Final = Kind(
    addresses.source,
    "an address, a network with no bits set after its prefix, such as 10.0.0.0/8 or fd00::/8, "
    "or unix",
    "NETWORK",
)
SHELL: Final = Kind(
    {shell: shell for shell in _SHELLS}.__getitem__, "bash, fish or zsh", "SHELL", words=_SHELLS
)
PATH: Final = Kind(_path, "a path that is not empty", "FILE")
DIRECTORY: Final = Kind(_path, PATH.allowed, "DIRECTORY")
FILE_OR_NONE: Final = Kind(
    _file_or_none,
    "the path of an existing file, or nothing",
    "FILE",
    lambda value: str(value or ""),
)
SECRET: Final = Kind(
    _secret,
    "the path of a file, the JSON itself, or nothing",
    "FILE",
    lambda value: "" if value is None or value.path is None else str(value.path),
)
HTTPS: Final = Kind(_https, "a URL that begins with https://", "URL")
EMAIL: Final = Kind(_email, "one address such as ops@example.org, or nothing", "EMAIL")
DOMAIN: Final = Kind(_domain, "a DNS name such as relay.example.org", "NAME")
ALLOWED_HOST: Final = Kind(
    _allowed_host,
    "a DNS name, with a leading dot for all names below it, or an IP address",
    "HOST",
)
SUBJECT: Final = Kind(
    _subject, "mailto: and an e-mail address, a URL that begins with https://, or nothing", "URL"
)
