"""The table of all settings: names, kinds, defaults and help texts.

Each setting is an option on the command line (``--write-stall=30``), a variable in the environment
(``PYRYCODE_RELAY_WRITE_STALL=30``) and a line of a configuration file (``write-stall = 30``).
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pyrycode_relay.config import toml_file
from pyrycode_relay.config.values import (
    ADDRESS,
    ADDRESS_OR_NONE,
    BYTES,
    BYTES_OR_NONE,
    COUNT,
    COUNT_OR_NONE,
    DOMAIN,
    EMAIL,
    FILE_OR_NONE,
    FORMAT,
    HTTPS,
    LEVEL,
    PATH,
    RATE,
    RECLAIM,
    SECONDS,
    SECONDS_OR_NONE,
    SHARE,
    SOURCE,
    SWITCH,
    TLS_ADDRESS,
    Kind,
)
from pyrycode_relay.limits import Limits

ENVIRONMENT_PREFIX: Final = "PYRYCODE_RELAY_"


@dataclass(frozen=True, slots=True)
class Option:
    """A setting: its name on the command line, its kind, its default as a text, and its help.

    ``many`` means that it may be given more than once. Then its value is a tuple, and in a text
    (the default, the environment) the parts are separated by spaces.
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

    @property
    def is_switch(self) -> bool:
        """Whether it has no value on the command line."""
        return self.kind is SWITCH

    @property
    def default_value(self) -> Any:
        """The value of the default."""
        values = [self.kind.parse(text) for text in self.split(self.default)]
        return tuple(values) if self.many else values[0]

    def split(self, text: str) -> Sequence[str]:
        """Return the texts of the single values in a text."""
        return text.split() if self.many else (text,)

    def written(self, value: Any) -> str:
        """Return a value as a configuration file has it."""
        show = self.kind.show
        if self.is_switch:
            return "true" if value else "false"
        if self.many:
            return f"[{', '.join(toml_file.written(show(each)) for each in value)}]"
        return toml_file.written(show(value))


_LIMITS: Final = Limits()


def _limit(name: str, kind: Kind, help: str) -> Option:
    """Return the option for a field of `Limits`, which has the default."""
    return Option(name, kind, kind.show(getattr(_LIMITS, name.replace("-", "_"))), help)


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
    _limit(
        "grace",
        SECONDS_OR_NONE,
        "Seconds a server-id stays held when its binary has dropped: long enough to restart "
        "a daemon or change networks.",
    ),
    _limit(
        "on-reclaim",
        RECLAIM,
        "What happens to the phones when their binary comes back. evict: they are closed "
        "4404 and redial, right for daemons that keep a secret session for each connection. "
        "keep: they stay and get what was held.",
    ),
    _limit(
        "max-phones",
        COUNT,
        "Phones for each server-id: more than one person owns, few enough to bound what a "
        "leaked id costs.",
    ),
    _limit(
        "max-message-bytes",
        BYTES,
        "Bytes of payload of one message; a binary may send 4096 more, for the envelope.",
    ),
    _limit(
        "outbox-bytes",
        BYTES,
        "Bytes that may wait for one phone, each frame counting its length + 64: a burst of "
        "hundreds of frames fits. Past it the phone is closed 1011.",
    ),
    _limit(
        "hold-bytes",
        BYTES,
        "Bytes of one phone that are held while its binary is slow or absent. Past it the "
        "phone's socket is not read, so nothing is lost.",
    ),
    _limit(
        "memory-budget",
        BYTES,
        "Bytes of all queues together (256M is the default). Past it the connection with the "
        "largest queue is closed 1011, of the phones or of the binaries, whichever take more.",
    ),
    _limit(
        "send-buffer",
        BYTES_OR_NONE,
        "Bytes the kernel may queue for one connection (it doubles the number); 0 leaves the "
        "size to the kernel, which goes up to several megabytes.",
    ),
    _limit(
        "write-stall",
        SECONDS,
        "Seconds in which a peer must take at least some of what waits for it.",
    ),
    _limit(
        "message-timeout",
        SECONDS,
        "Seconds from a message's first byte to its last; between messages there is no limit.",
    ),
    _limit(
        "heartbeat-interval",
        SECONDS,
        "Seconds of silence after which a peer is pinged, give or take 10 %: below the idle "
        "time-outs of common NATs.",
    ),
    _limit(
        "heartbeat-timeout",
        SECONDS,
        "Seconds in which a pinged peer must show a sign of life: a phone may be changing "
        "networks.",
    ),
    _limit(
        "probe-timeout",
        SECONDS,
        "Seconds a binary has to answer when another one claims its server-id.",
    ),
    _limit(
        "close-timeout",
        SECONDS,
        "Seconds for a polite close; then the socket is aborted. A slow link needs a few.",
    ),
    _limit(
        "header-timeout",
        SECONDS,
        "Seconds for a complete request, so that no one holds a socket by dribbling headers.",
    ),
    _limit(
        "drain-timeout",
        SECONDS,
        "Seconds from SIGTERM to the end of the process; must be below the service manager's "
        "own limit.",
    ),
    _limit(
        "upgrade-rate",
        RATE,
        "Upgrades a minute that an address may ask for, on all paths together: a client that "
        "redials every six seconds. More are answered 429. An IPv6 address counts as its /64. "
        "0 turns it off.",
    ),
    _limit(
        "upgrade-burst",
        COUNT,
        "Upgrades that an address may ask for at once, after a while without any: a household's "
        "phones and daemons when its network comes back.",
    ),
    _limit(
        "max-connections-per-address",
        COUNT_OR_NONE,
        "WebSockets that an address may have at a time: an office behind one address, and no "
        "more than a small share of the relay. More are answered 503. 0 turns it off.",
    ),
    _limit(
        "max-connections",
        COUNT_OR_NONE,
        "WebSockets at a time, of all addresses. More are answered 503. 0 is as many as the limit "
        "of open files is enough for, up to 100000; the relay raises its soft limit to the hard "
        "one.",
    ),
    _limit(
        "max-waiting",
        COUNT_OR_NONE,
        "Connections at a time, besides, whose request has not come yet or whose answer has not "
        "gone. Of more, the one that has waited longest is dropped. 0 is an eighth of the limit "
        "of open files, up to 2048.",
    ),
    _limit(
        "reserve-binaries",
        SHARE,
        "Share of the WebSockets that is kept for binaries, so that phones cannot lock them out.",
    ),
    _limit(
        "limits-dry-run",
        SWITCH,
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


def example() -> Iterator[str]:
    """Yield the lines of a configuration file with each setting, its help and its default."""
    yield "# A configuration of pyrycode-relay, for"
    yield "#     twistd --pidfile= -n pyrycode-relay --config=relay.toml"
    yield "# Every setting stands here with its default, commented out. What stands in the"
    yield "# environment (PYRYCODE_RELAY_GRACE=60) or on the command line (--grace=60) wins."
    for option in OPTIONS:
        yield ""
        yield from textwrap.wrap(
            option.help, 88, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
        )
        yield f"# {option.name} = {option.written(option.default_value)}"
