"""The relay's settings: names, units, defaults, and what is wrong with the values given.

Every setting can be given on the command line (``--write-stall=30``) and in the environment
(``PYRYCODE_RELAY_WRITE_STALL=30``); the command line wins. All mistakes of a configuration are
reported together.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from twisted.internet.endpoints import serverFromString

from pyrycode_relay.events import Level
from pyrycode_relay.limits import Limits, OnReclaim

ENVIRONMENT_PREFIX: Final = "PYRYCODE_RELAY_"

_UNITS: Final = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_BYTES = re.compile(r"(\d+)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)
_MAX_SECONDS: Final = 86_400.0
_MAX_BYTES: Final = 2**40

LISTEN_BACKLOG: Final = 1024
"""Connections the kernel completes before they are accepted: a reconnect storm is one burst."""


class ConfigurationError(ValueError):
    """A configuration that cannot be used; ``problems`` has one sentence for each mistake."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= _MAX_SECONDS:
        raise ValueError
    return value


def _seconds_or_none(text: str) -> float:
    return 0.0 if float(text) == 0 else _seconds(text)


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
    if not 0 < value <= 1_000_000:
        raise ValueError
    return value


def _level(text: str) -> Level:
    try:
        return Level[text.upper()]
    except KeyError:
        raise ValueError from None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: how it is read, and what is allowed, in words."""

    parse: Callable[[str], Any]
    allowed: str


SECONDS: Final = Kind(_seconds, "a number of seconds above 0, up to 86400")
SECONDS_OR_NONE: Final = Kind(_seconds_or_none, "a number of seconds from 0 to 86400")
BYTES: Final = Kind(_bytes, "a number of bytes above 0, such as 4096, 64K or 256M")
BYTES_OR_NONE: Final = Kind(_bytes_or_none, "a number of bytes, such as 4096 or 64K, or 0")
COUNT: Final = Kind(_count, "a whole number from 1 to 1000000")
RECLAIM: Final = Kind(OnReclaim, "evict or keep")
FORMAT: Final = Kind({"text": False, "json": True}.__getitem__, "text or json")
LEVEL: Final = Kind(_level, "debug, info, warn or error")


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: its name on the command line, its kind, its default and its help."""

    name: str
    kind: Kind
    default: str
    help: str

    @property
    def field(self) -> str:
        """The name of the attribute that has the value."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """The name of the environment variable."""
        return ENVIRONMENT_PREFIX + self.field.upper()


LISTEN: Final = "insecure-listen"
"""The one setting that may be given more than once."""
LISTEN_VARIABLE: Final = ENVIRONMENT_PREFIX + "INSECURE_LISTEN"
LISTEN_HELP: Final = (
    "Where to serve plain WebSockets: :8080, 127.0.0.1:8080, [::1]:8080 or a Twisted endpoint "
    "string (tcp:, unix:, systemd:). May be given more than once; in the environment, separate "
    "by spaces. Plain means unencrypted: for loopback, or behind something that ends TLS."
)

OPTIONS: Final = (
    Option(
        "grace",
        SECONDS_OR_NONE,
        "30",
        "Seconds a server-id stays held when its binary has dropped: long enough to restart "
        "a daemon or change networks.",
    ),
    Option(
        "on-reclaim",
        RECLAIM,
        "evict",
        "What happens to the phones when their binary comes back. evict: they are closed "
        "4404 and redial, right for daemons that keep a secret session for each connection. "
        "keep: they stay and get what was held.",
    ),
    Option(
        "max-phones",
        COUNT,
        "16",
        "Phones for each server-id: more than one person owns, few enough to bound what a "
        "leaked id costs.",
    ),
    Option(
        "max-message-bytes",
        BYTES,
        "262144",
        "Bytes of payload of one message; a binary may send 4096 more, for the envelope.",
    ),
    Option(
        "outbox-bytes",
        BYTES,
        "4194304",
        "Bytes that may wait for one phone, each frame counting its length + 64: a burst of "
        "hundreds of frames fits. Past it the phone is closed 1011.",
    ),
    Option(
        "hold-bytes",
        BYTES,
        "1048576",
        "Bytes of one phone that are held while its binary is slow or absent. Past it the "
        "phone's socket is not read, so nothing is lost.",
    ),
    Option(
        "memory-budget",
        BYTES,
        "268435456",
        "Bytes of all queues together (256M is the default). Past it the connection with the "
        "largest queue is closed 1011.",
    ),
    Option(
        "send-buffer",
        BYTES_OR_NONE,
        "131072",
        "Bytes the kernel may queue for one connection (it doubles the number); 0 leaves the "
        "size to the kernel, which goes up to several megabytes.",
    ),
    Option(
        "write-stall",
        SECONDS,
        "30",
        "Seconds in which a peer must take at least some of what waits for it.",
    ),
    Option(
        "message-timeout",
        SECONDS,
        "30",
        "Seconds from a message's first byte to its last; between messages there is no limit.",
    ),
    Option(
        "heartbeat-interval",
        SECONDS,
        "30",
        "Seconds of silence after which a peer is pinged, give or take 10 %: below the idle "
        "time-outs of common NATs.",
    ),
    Option(
        "heartbeat-timeout",
        SECONDS,
        "30",
        "Seconds in which a pinged peer must show a sign of life: a phone may be changing "
        "networks.",
    ),
    Option(
        "probe-timeout",
        SECONDS,
        "10",
        "Seconds a binary has to answer when another one claims its server-id.",
    ),
    Option(
        "close-timeout",
        SECONDS,
        "5",
        "Seconds for a polite close; then the socket is aborted. A slow link needs a few.",
    ),
    Option(
        "header-timeout",
        SECONDS,
        "5",
        "Seconds for a complete request, so that no one holds a socket by dribbling headers.",
    ),
    Option(
        "drain-timeout",
        SECONDS,
        "10",
        "Seconds from SIGTERM to the end of the process; must be below the service manager's "
        "own limit.",
    ),
    Option("log-format", FORMAT, "text", "Lines for people (text) or for machines (json)."),
    Option(
        "log-level", LEVEL, "info", "The quietest level that is logged: debug, info, warn or error."
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration that can be used."""

    listen: tuple[str, ...]
    """Addresses as they were given; `endpoint_string` makes endpoints of them."""
    limits: Limits
    log_json: bool = False
    log_level: Level = Level.INFO

    @classmethod
    def read(
        cls,
        listen: Sequence[str],
        given: Mapping[str, str],
        environment: Mapping[str, str],
    ) -> Settings:
        """Read what the command line gave (``listen``, and ``given`` by name) and the environment.

        Raises `ConfigurationError` with everything that is wrong.
        """
        problems: list[str] = []
        values: dict[str, Any] = {}
        for option in OPTIONS:
            source, text = _source(option, given, environment)
            try:
                values[option.field] = option.kind.parse(text)
            except (ValueError, KeyError, OverflowError):
                problems.append(f"{source} is {text!r}; allowed: {option.kind.allowed}.")
        addresses, source = list(listen), f"--{LISTEN}"
        if not addresses and LISTEN_VARIABLE in environment:
            addresses, source = environment[LISTEN_VARIABLE].split(), LISTEN_VARIABLE
        for address in addresses:
            try:
                endpoint_string(address)
            except ValueError as error:
                problems.append(f"{source} is {address!r}; {error}.")
        if not addresses:
            problems.append(f"Nothing to listen on; give --{LISTEN}=:8080 or another address.")
        if problems:
            raise ConfigurationError(problems)
        log_json, log_level = values.pop("log_format"), values.pop("log_level")
        return cls(tuple(addresses), Limits(**values), log_json, log_level)

    def lines(self) -> Iterator[str]:
        """Yield the settings, one ``name = value`` a line, for people to read."""
        for address in self.listen:
            yield f"{LISTEN} = {endpoint_string(address)}"
        for field in fields(self.limits):
            value = getattr(self.limits, field.name)
            text = value.value if isinstance(value, OnReclaim) else f"{value:g}"
            if isinstance(value, int):
                text = str(value)
            yield f"{field.name.replace('_', '-')} = {text}"
        yield f"log-format = {'json' if self.log_json else 'text'}"
        yield f"log-level = {self.log_level.name.lower()}"


def _source(
    option: Option, given: Mapping[str, str], environment: Mapping[str, str]
) -> tuple[str, str]:
    """Return where an option's value stands, for a sentence about it, and the value's text."""
    if option.name in given:
        return f"--{option.name}", given[option.name]
    if option.variable in environment:
        return option.variable, environment[option.variable]
    return f"--{option.name}", option.default


def endpoint_string(address: str) -> str:
    """Return the Twisted endpoint string for an address in short form, or the string itself.

    ``:8080`` is every IPv4 and, where there is any, IPv6 address. Raises `ValueError` with what
    is allowed.
    """
    host, colon, port = address.rpartition(":")
    if colon and (not host or _is_ip(host)):
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError("a port is a number from 0 to 65535")
        interface = (host.strip("[]") or _every_interface()).replace(":", r"\:")
        return f"tcp:{int(port)}:interface={interface}:backlog={LISTEN_BACKLOG}"
    try:
        serverFromString(None, address)
    except Exception as error:
        # Each endpoint's parser has its own ways to fail.
        raise ValueError(
            "allowed: :8080, 127.0.0.1:8080, [::1]:8080 or a Twisted endpoint string "
            "(tcp:, unix:, systemd:)"
        ) from error
    return address


def _every_interface() -> str:
    """Return the IPv6 wildcard, which takes IPv4 along, or IPv4's where there is no IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::", 0))
    except OSError:
        return "0.0.0.0"  # noqa: S104 - what was asked for
    return "::"


def _is_ip(host: str) -> bool:
    try:
        if host.startswith("[") and host.endswith("]"):
            ipaddress.IPv6Address(host[1:-1])
        else:
            ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return True
