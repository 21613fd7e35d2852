"""The relay's settings: names, units, defaults, and what is wrong with the values given.

Every setting can be given on the command line (``--write-stall=30``), in the environment
(``PYRYCODE_RELAY_WRITE_STALL=30``) and in a configuration file (``write-stall = 30``); the command
line wins over the environment, and that over the file. All mistakes of a configuration are
reported together.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import re
import socket
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from twisted.internet.endpoints import UNIXServerEndpoint, serverFromString

from pyrycode_relay import addresses
from pyrycode_relay.config import toml_file
from pyrycode_relay.config.toml_file import ConfigFile
from pyrycode_relay.events import Level
from pyrycode_relay.limits import Limits, OnReclaim
from pyrycode_relay.startup_error import StartupError

ENVIRONMENT_PREFIX: Final = "PYRYCODE_RELAY_"

_UNITS: Final = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30}
_BYTES = re.compile(r"(\d+)\s*([kmg]?)(?:i?b)?", re.IGNORECASE)
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?")
_EMAIL = re.compile(r"[!-+\--?A-~]+@[a-z0-9.-]+", re.ASCII | re.IGNORECASE)
"""Whatever has one @ and none of what would make it two addresses, or another header."""
_MAX_SECONDS: Final = 86_400.0
_MAX_BYTES: Final = 2**40
_ON: Final = frozenset({"1", "on", "true", "yes"})
_OFF: Final = frozenset({"", "0", "off", "false", "no"})

LISTEN_BACKLOG: Final = 1024
"""Connections the kernel completes before they are accepted: a reconnect storm is one burst."""


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


def _count_or_none(text: str) -> int:
    return 0 if text.strip() == "0" else _count(text)


def _rate(text: str) -> float:
    value = float(text)
    # Of a smaller one the next upgrade would be due in longer than a client can be told to wait.
    if value and not 0.01 <= value <= 1_000_000:
        raise ValueError
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 0.9:
        raise ValueError
    return value


def endpoint_string(address: str) -> str:
    """Return the Twisted endpoint string for an address in short form, or the string itself.

    ``:8080`` is every IPv4 and, where there is any, IPv6 address. Raises `ValueError` for what
    is neither.
    """
    host, colon, port = address.rpartition(":")
    if colon and (not host or _is_ip(host)):
        if not (port.isascii() and port.isdigit() and int(port) <= 65535):
            raise ValueError(port)
        interface = (host.strip("[]") or _every_interface()).replace(":", r"\:")
        return f"tcp:{int(port)}:interface={interface}:backlog={LISTEN_BACKLOG}"
    try:
        serverFromString(None, address)
    except Exception as error:
        # Each endpoint's parser has its own ways to fail.
        raise ValueError(address) from error
    return address


def is_loopback(address: str) -> bool:
    """Whether nobody but this machine can reach an address that `endpoint_string` takes.

    What cannot be told, as of a socket that a service manager passes on, is not.
    """
    endpoint = serverFromString(None, endpoint_string(address))
    if isinstance(endpoint, UNIXServerEndpoint):
        return True
    try:
        return ipaddress.ip_address(getattr(endpoint, "_interface", "")).is_loopback
    except ValueError:
        return False


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


def _tls_address(text: str) -> str:
    if text.startswith("ssl:"):
        raise ValueError(text)
    endpoint_string(text)
    return text


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ValueError(text)
    return Path(text)


def _file_or_none(text: str) -> Path | None:
    if not text:
        return None
    path = _path(text)
    try:
        there = path.is_file()
    except OSError:  # Too long a name, or a directory that we may not enter.
        there = False
    if not there:
        raise ValueError(text)
    return path


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
    """Return a DNS name in lower case. Addresses are none: a client sends no SNI for them."""
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


def _level(text: str) -> Level:
    try:
        return Level[text.upper()]
    except KeyError:
        raise ValueError from None


def _switch(text: str) -> bool:
    word = text.strip().lower()
    if word not in _ON | _OFF:
        raise ValueError
    return word in _ON


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of value: how it is read, what is allowed, in words, and how it is written.

    ``parse`` raises `ValueError` (or `KeyError`, `OverflowError`) for what it does not take.
    """

    parse: Callable[[str], Any]
    allowed: str
    show: Callable[[Any], str] = str
    words: tuple[str, ...] = ()
    """All values, where they are few words; a shell offers them."""


def _shown_number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)


SECONDS: Final = Kind(_seconds, "a number of seconds above 0, up to 86400", _shown_number)
SECONDS_OR_NONE: Final = Kind(
    _seconds_or_none, "a number of seconds from 0 to 86400", _shown_number
)
BYTES: Final = Kind(_bytes, "a number of bytes above 0, such as 4096, 64K or 256M")
BYTES_OR_NONE: Final = Kind(_bytes_or_none, "a number of bytes, such as 4096 or 64K, or 0")
COUNT: Final = Kind(_count, "a whole number from 1 to 1000000")
COUNT_OR_NONE: Final = Kind(_count_or_none, "a whole number from 0 to 1000000")
RATE: Final = Kind(_rate, "a number from 0.01 to 1000000, or 0", _shown_number)
SHARE: Final = Kind(_share, "a share from 0 to 0.9", _shown_number)
SWITCH: Final = Kind(_switch, "yes or no", lambda value: "yes" if value else "no")
RECLAIM: Final = Kind(OnReclaim, "evict or keep", lambda value: str(value.value), ("evict", "keep"))
FORMAT: Final = Kind(
    {"text": False, "json": True}.__getitem__,
    "text or json",
    lambda value: "json" if value else "text",
    ("text", "json"),
)
LEVEL: Final = Kind(
    _level,
    "debug, info, warn or error",
    lambda value: str(value.name.lower()),
    tuple(level.name.lower() for level in Level),
)
ADDRESS: Final = Kind(
    # Kept as it was given: what a wildcard means depends on the machine.
    lambda text: endpoint_string(text) and text,
    ":8080, 127.0.0.1:8080, [::1]:8080 (ports to 65535) or a Twisted endpoint string (tcp:, "
    "unix:, or systemd: for a socket that systemd passes to this process)",
    endpoint_string,
)
SOURCE: Final = Kind(
    addresses.source,
    "a network without bits behind its prefix, such as 10.0.0.0/8 or fd00::/8, an address, or unix",
)
TLS_ADDRESS: Final = Kind(
    _tls_address,
    ":443, 127.0.0.1:443, [::1]:443 (ports to 65535) or a Twisted endpoint string that is plain "
    "by itself (tcp:, unix:, or systemd: for a socket that systemd passes to this process)",
    endpoint_string,
)
PATH: Final = Kind(_path, "a path, which is not empty")
FILE_OR_NONE: Final = Kind(
    _file_or_none, "the path of a file that is there, or nothing", lambda value: str(value or "")
)
HTTPS: Final = Kind(_https, "a URL that begins with https://")
EMAIL: Final = Kind(_email, "one address such as ops@example.org, or nothing")
DOMAIN: Final = Kind(_domain, "a DNS name such as relay.example.org")

ADDRESS_OR_NONE: Final = Kind(
    lambda text: text and endpoint_string(text) and text,
    f"{ADDRESS.allowed}, or nothing at all",
    lambda value: endpoint_string(value) if value else "",
)


@dataclass(frozen=True, slots=True)
class Option:
    """One setting: its name on the command line, its kind, its default and its help.

    ``many`` is for one that may be given more than once: its value is a tuple, and where it
    stands as one text (its default, the environment) its parts are separated by spaces.
    """

    name: str
    kind: Kind
    default: str
    help: str
    many: bool = False

    @property
    def field(self) -> str:
        """The name of the attribute that has the value."""
        return self.name.replace("-", "_")

    @property
    def variable(self) -> str:
        """The name of the environment variable."""
        return ENVIRONMENT_PREFIX + self.field.upper()

    def written(self, value: Any) -> str:
        """Return a value as it stands in a configuration file."""
        show = self.kind.show
        if self.is_switch:
            return "true" if value else "false"
        if self.many:
            return f"[{', '.join(toml_file.written(show(each)) for each in value)}]"
        return toml_file.written(show(value))

    @property
    def is_switch(self) -> bool:
        """Whether it stands alone on the command line, without a value."""
        return self.kind is SWITCH


OPTIONS: Final = (
    Option(
        "insecure-listen",
        ADDRESS,
        "",
        "Where to serve plain WebSockets: :8080, 127.0.0.1:8080, [::1]:8080 or a Twisted endpoint "
        "string (tcp:, unix:, systemd:). May be given more than once. Plain means unencrypted: "
        "for loopback, or behind something that ends TLS.",
        many=True,
    ),
    Option(
        "proxy-protocol",
        SWITCH,
        "no",
        "Connections begin with a PROXY header (v1 or v2), which says who is calling; one without, "
        "or from elsewhere than a trusted proxy, is dropped.",
    ),
    Option(
        "trusted-proxy",
        SOURCE,
        "",
        "A proxy whose word on the caller's address is taken, in the PROXY protocol, "
        "X-Forwarded-For and Forwarded: 127.0.0.1, 10.0.0.0/8, fd00::/8, or unix for whoever can "
        "open our UNIX sockets. May be given more than once. Trust no more than your own proxies, "
        "or callers choose the address they are logged and limited by.",
        many=True,
    ),
    Option(
        "tls-listen",
        TLS_ADDRESS,
        "",
        "Where to serve WebSockets over TLS, in the same forms. May be given more than once. "
        ":443 when there is a certificate (--tls-cert, --tls-dir or --domain) and nothing is "
        "given here.",
        many=True,
    ),
    Option(
        "tls-cert",
        PATH,
        "",
        "A PEM file with a certificate and, behind it, those that lead to its CA (fullchain.pem). "
        "Read again when it changes, and on SIGHUP. May be given more than once, each with its "
        "--tls-key: other names, or an RSA and an ECDSA certificate for the same.",
        many=True,
    ),
    Option(
        "tls-key",
        PATH,
        "",
        "The PEM file with the private key of the --tls-cert at the same place. Nobody but its "
        "owner may be able to read it: chmod 600.",
        many=True,
    ),
    Option(
        "tls-dir",
        PATH,
        "",
        "A directory of certificates: NAME.pem with the chain, and its key in the same file, in "
        "NAME.key or in NAME-key.pem. Which one a client gets is decided by the name it asks "
        "for. May be given more than once.",
        many=True,
    ),
    Option(
        "domain",
        DOMAIN,
        "",
        "A name the relay is reached by. Over TLS, a handshake that asks for another name is "
        "refused and a request for another Host is answered 421. Without --tls-cert and --tls-dir, "
        "one certificate for all names comes from an ACME CA, to whose terms of service you agree "
        "thereby, and is renewed in time. May be given more than once.",
        many=True,
    ),
    Option(
        "acme-listen",
        ADDRESS,
        "",
        "Where the ACME CA's http-01 challenges are answered, and everything else with 404: "
        "in the same forms, :80 when nothing is given here, for that is where a CA asks. May be "
        "given more than once.",
        many=True,
    ),
    Option(
        "acme-directory",
        HTTPS,
        "https://acme-v02.api.letsencrypt.org/directory",
        "The ACME CA, by its directory's URL.",
    ),
    Option(
        "acme-email",
        EMAIL,
        "",
        "Where the ACME CA may write to, about your account and your certificates.",
    ),
    Option(
        "acme-ca-file",
        FILE_OR_NONE,
        "",
        "A PEM file with the authorities to trust for the ACME CA's own certificate, instead of "
        "the public ones: for a CA of your own, or a test.",
    ),
    Option(
        "cert-cache",
        PATH,
        "~/.pyrycode-relay/certs",
        "The directory that the ACME account and its certificates are kept in, for the relay's "
        "user alone (0700).",
    ),
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
        "largest queue is closed 1011, of the phones or of the binaries, whichever take more.",
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
    Option(
        "upgrade-rate",
        RATE,
        "10",
        "Upgrades a minute that an address may ask for, on all paths together: a client that "
        "redials every six seconds. More are answered 429. An IPv6 address counts as its /64. "
        "0 turns it off.",
    ),
    Option(
        "upgrade-burst",
        COUNT,
        "20",
        "Upgrades that an address may ask for at once, after a while without any: a household's "
        "phones and daemons when its network comes back.",
    ),
    Option(
        "max-connections-per-address",
        COUNT_OR_NONE,
        "64",
        "WebSockets that an address may have at a time: an office behind one address, and no "
        "more than a small share of the relay. More are answered 503. 0 turns it off.",
    ),
    Option(
        "max-connections",
        COUNT_OR_NONE,
        "0",
        "WebSockets at a time, of all addresses. More are answered 503. 0 is as many as the limit "
        "of open files is enough for, up to 100000; the relay raises its soft limit to the hard "
        "one.",
    ),
    Option(
        "max-waiting",
        COUNT_OR_NONE,
        "0",
        "Connections at a time, besides, whose request has not come yet or whose answer has not "
        "gone. Of more, the one that has waited longest is dropped. 0 is an eighth of the limit "
        "of open files, up to 2048.",
    ),
    Option(
        "reserve-binaries",
        SHARE,
        "0.1",
        "Share of the WebSockets that is kept for binaries, so that phones cannot lock them out.",
    ),
    Option(
        "limits-dry-run",
        SWITCH,
        "no",
        "Only count and log what these limits would refuse, to try them out on a relay that is in "
        "use. What the open files are not enough for is refused nevertheless.",
    ),
    Option(
        "production",
        SWITCH,
        "no",
        "Refuse to run with what a relay on the open internet must not have: plain WebSockets "
        "beyond this machine, root, or more capabilities than to bind low ports.",
    ),
    Option(
        "admin-listen",
        ADDRESS_OR_NONE,
        "127.0.0.1:9090",
        "Where the operator's side is served, in plain HTTP and without a password: /metrics for "
        "Prometheus, a status page at / and the same as /status.json. Empty turns it off.",
    ),
    Option(
        "admin-allow-remote",
        SWITCH,
        "no",
        "Serve the operator's side on an address that is not loopback too, and by any host name: "
        "for a network on which everybody may see how the relay does.",
    ),
    Option("log-format", FORMAT, "text", "Lines for people (text) or for machines (json)."),
    Option(
        "log-level", LEVEL, "info", "The quietest level that is logged: debug, info, warn or error."
    ),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration that can be used; each field is the `Option` of its name.

    Those that bound something are in ``limits``. ``sources`` says of each option, by name,
    where its value comes from.
    """

    insecure_listen: tuple[str, ...] = ()
    """Addresses as they were given; `endpoint_string` makes endpoints of them."""
    proxy_protocol: bool = False
    trusted_proxy: tuple[addresses.Source, ...] = ()
    tls_listen: tuple[str, ...] = ()
    tls_cert: tuple[Path, ...] = ()
    tls_key: tuple[Path, ...] = ()
    """As many as there are in ``tls_cert``, and in the same order."""
    tls_dir: tuple[Path, ...] = ()
    domain: tuple[str, ...] = ()
    """DNS names in lower case."""
    acme_listen: tuple[str, ...] = ()
    acme_directory: str = ""
    acme_email: str = ""
    acme_ca_file: Path | None = None
    cert_cache: Path = Path()
    """As it was given: what ~ is, matters only where it is used."""
    limits: Limits = dataclasses.field(default_factory=Limits)
    production: bool = False
    admin_listen: str = ""
    """The operator's address as it was given; nothing is none."""
    admin_allow_remote: bool = False
    log_format: bool = False
    """Whether the log is JSON."""
    log_level: Level = Level.INFO
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, compare=False)

    @classmethod
    def read(
        cls,
        given: Mapping[str, Sequence[str]],
        environment: Mapping[str, str],
        file: ConfigFile = ConfigFile(),  # noqa: B008 - it is frozen
    ) -> Settings:
        """Read what the command line gave, by name and in its order, the environment and a file.

        Raises `StartupError` with everything that is wrong.
        """
        problems = [*_misplaced(file)]
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for option in OPTIONS:
            source, texts = _source(option, given, environment, file)
            sources[option.name] = source or "default"
            found = []
            for text in texts:
                try:
                    found.append(option.kind.parse(text))
                except (ValueError, KeyError, OverflowError):
                    place = source or f"--{option.name}"
                    if source and source == file.path:
                        place = f"{file.path}: {option.name}"
                    problems.append(f"{place} is {text!r}; allowed: {option.kind.allowed}.")
            values[option.field] = tuple(found) if option.many else found and found[-1]
        if not values["tls_listen"] and any(values[each] for each in _TLS_SOURCES):
            values["tls_listen"] = (_TLS_PORT,)
        if not values["acme_listen"] and _is_acme(values):
            values["acme_listen"] = (_ACME_PORT,)
        if not problems:
            problems.extend(_contradictions(values))
        elif not any(_source(each, given, environment, file)[1] for each in _LISTENERS):
            problems.append(_NOWHERE)
        if problems:
            raise StartupError(*problems)
        bounds = {field.name: values.pop(field.name) for field in dataclasses.fields(Limits)}
        return cls(limits=Limits(**bounds), sources=sources, **values)

    @property
    def acme(self) -> bool:
        """Whether the certificate comes from an ACME CA."""
        return _is_acme({"domain": self.domain, "tls_cert": self.tls_cert, "tls_dir": self.tls_dir})

    def value(self, option: Option) -> Any:
        """Return what ``option`` is set to."""
        holder = self if hasattr(self, option.field) else self.limits
        return getattr(holder, option.field)

    def lines(self) -> Iterator[str]:
        """Yield the settings, one a line, each with where it comes from.

        Together they are a configuration file that says the same.
        """
        for option in OPTIONS:
            line = f"{option.name} = {option.written(self.value(option))}"
            yield f"{line:<40}  # {self.sources.get(option.name, 'default')}"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, 88, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
    )


def example() -> Iterator[str]:
    """Yield the lines of a configuration file with every setting, its reason and its default."""
    yield "# A configuration of pyrycode-relay, for"
    yield "#     twistd --pidfile= -n pyrycode-relay --config=relay.toml"
    yield "# Every setting stands here with its default, commented out. What stands in the"
    yield "# environment (PYRYCODE_RELAY_GRACE=60) or on the command line (--grace=60) wins."
    for option in OPTIONS:
        values = [option.kind.parse(text) for text in _texts(option, option.default)]
        yield ""
        yield from _wrapped(option.help)
        yield f"# {option.name} = {option.written(values if option.many else values[0])}"


_TLS_PORT: Final = ":443"
_ACME_PORT: Final = ":80"
_TLS_SOURCES: Final = ("tls_cert", "tls_dir", "domain")
"""What there can be a certificate from, and TLS with it."""
_LISTENERS: Final = tuple(
    option for option in OPTIONS if option.field in {"insecure_listen", "tls_listen", *_TLS_SOURCES}
)
_NOWHERE: Final = (
    "Nothing to listen on; give --domain, or --tls-cert and --tls-key, or --insecure-listen=:8080 "
    "or another address."
)


def _is_acme(values: Mapping[str, Any]) -> bool:
    return bool(values["domain"]) and not values["tls_cert"] and not values["tls_dir"]


def _contradictions(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield what is wrong with values that are each fine by themselves."""
    if not values["insecure_listen"] and not values["tls_listen"]:
        yield _NOWHERE
    for name, address in [(n, a) for n in ("insecure", "tls") for a in values[f"{n}_listen"]]:
        kind = address.partition(":")[0].lower()
        if kind == "haproxy":
            yield (
                f"--{name}-listen is {address!r}, which takes a PROXY header from anybody; give "
                "the address behind haproxy:, --proxy-protocol and --trusted-proxy."
            )
        if kind == "ssl" and values["proxy_protocol"]:
            yield (
                f"--insecure-listen is {address!r}, where a PROXY header would stand inside TLS; "
                "with --proxy-protocol give --tls-listen in its place."
            )
    if values["proxy_protocol"] and not values["trusted_proxy"]:
        yield (
            "--proxy-protocol is given and no proxy is trusted; say whose header counts, as in "
            "--trusted-proxy=10.0.0.0/8."
        )
    if len(values["tls_cert"]) != len(values["tls_key"]):
        yield (
            f"--tls-cert is given {_times(values['tls_cert'])} and --tls-key "
            f"{_times(values['tls_key'])}; give one --tls-key for each --tls-cert, in their order."
        )
    if values["tls_listen"] and not any(values[each] for each in _TLS_SOURCES):
        yield (
            f"--tls-listen is {values['tls_listen'][0]!r} and there is no certificate; give "
            "--tls-cert and --tls-key, --tls-dir, or --domain."
        )
    operators = values["admin_listen"]
    if operators and not values["admin_allow_remote"] and not is_loopback(operators):
        yield (
            f"--admin-listen is {operators!r}, which others may reach; give 127.0.0.1:9090, "
            "or --admin-allow-remote if they may."
        )
    if values["acme_listen"] and not _is_acme(values):
        yield (
            f"--acme-listen is {values['acme_listen'][0]!r} and no certificate comes from an ACME "
            "CA; leave it out, or give --domain without --tls-cert and --tls-dir."
        )
    if _is_acme(values):
        try:
            values["cert_cache"].expanduser()
        except RuntimeError:
            yield (
                f"--cert-cache is {str(values['cert_cache'])!r} and that home is not known; give "
                "a path from the root, such as /var/lib/pyrycode-relay/certs."
            )


def _times(values: Sequence[object]) -> str:
    return "once" if len(values) == 1 else f"{len(values)} times"


def _misplaced(file: ConfigFile) -> Iterator[str]:
    """Yield what a configuration file should not say, whatever the value."""
    options = {option.name: option for option in OPTIONS}
    for name in file.texts:
        if name not in options:
            near = difflib.get_close_matches(name, options, 1)
            hint = f"did you mean {near[0]}?" if near else "--help names them all."
            yield f"{file.path}: {name} is no setting; {hint}"
        elif name in file.lists and not options[name].many:
            yield f"{file.path}: {name} is a list, and takes one value."


def _source(
    option: Option,
    given: Mapping[str, Sequence[str]],
    environment: Mapping[str, str],
    file: ConfigFile,
) -> tuple[str, Sequence[str]]:
    """Return where an option's value stands (nothing for its default), and its texts there."""
    if option.name in given:
        return f"--{option.name}", given[option.name]
    if option.variable not in environment and option.name in file.texts:
        return file.path, file.texts[option.name]
    text, source = option.default, ""
    if option.variable in environment:
        text, source = environment[option.variable], option.variable
    return source, _texts(option, text)


def _texts(option: Option, text: str) -> Sequence[str]:
    """Return the values in a text that has all of an option's."""
    return text.split() if option.many else (text,)
