"""The table of all settings: names, kinds, defaults and help texts.

Each setting is an option on the command line (``--write-stall=30``), a variable in the environment
(``PYRYCODE_RELAY_WRITE_STALL=30``) and a line of a configuration file (``write-stall = 30``).
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from pyrycode_relay.config import toml_file
from pyrycode_relay.config.values import (
    ADDRESS,
    ADDRESS_OR_NONE,
    ALLOWED_HOST,
    BYTES,
    BYTES_OR_NONE,
    COUNT,
    COUNT_OR_NONE,
    DIRECTORY,
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
    SECRET,
    SHARE,
    SHELL,
    SOURCE,
    SUBJECT,
    SWITCH,
    TLS_ADDRESS,
    WORKERS,
    Kind,
)
from pyrycode_relay.limits import ENVELOPE_ALLOWANCE, ITEM_COST, Limits

ENVIRONMENT_PREFIX: Final = "PYRYCODE_RELAY_"


@dataclass(frozen=True, slots=True)
class Option:
    """A setting: its name on the command line, its kind, its default as a text, and its help.

    ``many`` means that it may be given more than once. Then its value is a tuple, and in a text
    (the default, the environment) the parts are separated by spaces. ``example`` is a value that
    an operator may give; a switch has none.
    """

    name: str
    kind: Kind
    default: str
    help: str
    many: bool = False
    example: str = ""

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

    @property
    def usage(self) -> str:
        """The option with a placeholder for its value."""
        return f"--{self.name}" + ("" if self.is_switch else f"={self.kind.placeholder}")

    def split(self, text: str) -> Sequence[str]:
        """Return the texts of the single values in a text."""
        return text.split() if self.many else (text,)

    def written(self, value: Any) -> str:
        """Return a value as a configuration file has it: numbers bare, texts in quotes."""
        if self.is_switch:
            return "true" if value else "false"
        if self.many:
            return f"[{', '.join(map(self._written, value))}]"
        return self._written(value)

    def _written(self, value: Any) -> str:
        text = self.kind.show(value)
        return text if type(value) in {int, float} else toml_file.quoted(text)


@dataclass(frozen=True, slots=True)
class CommandOption:
    """An option of the command line that is no setting."""

    name: str
    help: str
    kind: Kind = SWITCH

    @property
    def usage(self) -> str:
        """The option with a placeholder for its value."""
        return f"--{self.name}" + ("" if self.kind is SWITCH else f"={self.kind.placeholder}")


COMMAND_OPTIONS: Final = (
    CommandOption(
        "config",
        "Configuration file: TOML, with the names of these options (grace = 30), and with lists "
        "for those that may be given more than once. The environment and the command line win "
        "over it.",
        PATH,
    ),
    CommandOption(
        "check-config",
        "Check the configuration. Print the settings as a configuration file, each with the "
        "place that it comes from, then the certificates and a verdict, and exit.",
    ),
    CommandOption(
        "example-config",
        "Print a configuration file with every setting, its help and its default, and exit.",
    ),
    CommandOption(
        "completion",
        "Print a script for a shell that completes the options of pyrycode-relay, and exit.",
        SHELL,
    ),
)

_LIMITS: Final = Limits()


def _limit(name: str, kind: Kind, help: str, example: str = "") -> Option:
    """Return the option for a field of `Limits`, which has the default."""
    default = kind.show(getattr(_LIMITS, name.replace("-", "_")))
    return Option(name, kind, default, help, example=example)


OPTIONS: Final = (
    Option(
        "insecure-listen",
        ADDRESS,
        "",
        "Address that serves plain WebSockets, without encryption: :8080, 127.0.0.1:8080, "
        "[::1]:8080, localhost:8080 or a Twisted endpoint string (tcp:, unix:, systemd:). Use it "
        "on loopback, or behind a proxy that ends TLS. May be given more than once.",
        many=True,
        example="127.0.0.1:8080",
    ),
    Option(
        "proxy-protocol",
        SWITCH,
        "no",
        "Require a PROXY header (v1 or v2) at the start of each connection. The header names "
        "the caller. A connection without one is dropped, and so is one from an address that is "
        "not a --trusted-proxy.",
    ),
    Option(
        "trusted-proxy",
        SOURCE,
        "",
        "Proxy that may name the caller's address, in the PROXY protocol, X-Forwarded-For and "
        "Forwarded: 127.0.0.1, 10.0.0.0/8, fd00::/8, or unix for every process that can open "
        "the relay's UNIX sockets. Trust only your own proxies. Otherwise callers choose the "
        "address by which they are logged and limited. May be given more than once.",
        many=True,
        example="10.0.0.0/8",
    ),
    Option(
        "tls-listen",
        TLS_ADDRESS,
        "",
        "Address that serves WebSockets over TLS, in the forms of --insecure-listen. With a "
        "certificate (--tls-cert, --tls-dir or --domain), the default is :443. May be given more "
        "than once.",
        many=True,
        example=":8443",
    ),
    Option(
        "tls-cert",
        PATH,
        "",
        "PEM file with a certificate, followed by those that lead to its CA (fullchain.pem). "
        "The relay reads it again when it changes and on SIGHUP. May be given more than once, "
        "each with its --tls-key: for other names, or for an RSA and an ECDSA certificate of "
        "the same name.",
        many=True,
        example="fullchain.pem",
    ),
    Option(
        "tls-key",
        PATH,
        "",
        "PEM file with the private key of the --tls-cert at the same position. Only its owner "
        "may have permission to read it: chmod 600. May be given more than once.",
        many=True,
        example="privkey.pem",
    ),
    Option(
        "tls-dir",
        DIRECTORY,
        "",
        "Directory of certificates. NAME.pem has the chain, and the key is in the same file, in "
        "NAME.key or in NAME-key.pem. The name that a client asks for selects its certificate. "
        "May be given more than once.",
        many=True,
        example="/etc/pyrycode-relay/tls",
    ),
    Option(
        "domain",
        DOMAIN,
        "",
        "DNS name of the relay. Over TLS, a handshake for another name is refused, and a request "
        "for another Host is answered 421. Without --tls-cert and --tls-dir, the relay obtains one "
        "certificate for all names from an ACME CA and renews it in time. By using it you agree "
        "to the CA's terms of service. May be given more than once.",
        many=True,
        example="relay.example.org",
    ),
    Option(
        "acme-listen",
        ADDRESS,
        "",
        "Address that answers the ACME CA's http-01 challenges, and everything else with 404, "
        "in the forms of --insecure-listen. If the certificate comes from the CA, the default is "
        ":80, because CAs send the challenges there. May be given more than once.",
        many=True,
        example=":8080",
    ),
    Option(
        "acme-directory",
        HTTPS,
        "https://acme-v02.api.letsencrypt.org/directory",
        "URL of the ACME CA's directory.",
        example="https://ca.example.org/directory",
    ),
    Option(
        "acme-email",
        EMAIL,
        "",
        "E-mail address to which the ACME CA may write about the account and its certificates.",
        example="ops@example.org",
    ),
    Option(
        "acme-ca-file",
        FILE_OR_NONE,
        "",
        "PEM file with the authorities to trust for the ACME CA's own certificate, instead of "
        "the public ones: for a private CA, or a test.",
        example="ca.pem",
    ),
    Option(
        "cert-cache",
        DIRECTORY,
        "~/.pyrycode-relay/certs",
        "Directory for the ACME account and its certificates. Only the relay's user has access "
        "to it (0700).",
        example="/var/lib/pyrycode-relay",
    ),
    _limit(
        "grace",
        SECONDS,
        "Seconds that a server-id stays held after its binary has disconnected: long enough to "
        "restart a daemon or to change networks.",
        example="60",
    ),
    _limit(
        "on-reclaim",
        RECLAIM,
        "Whether the phones are closed or kept when their binary returns. evict closes them "
        "with 4404, and they redial: right for daemons that keep a secret session for each "
        "connection. keep leaves them connected and delivers what was held.",
        example="keep",
    ),
    _limit(
        "max-phones",
        COUNT,
        "Maximum phones for each server-id: more than one person owns, and few enough to bound "
        "the cost of a leaked id.",
        example="4",
    ),
    _limit(
        "max-message-bytes",
        BYTES,
        f"Maximum bytes of payload in one message. A binary may send {ENVELOPE_ALLOWANCE} more, "
        "for the envelope.",
        example="64K",
    ),
    _limit(
        "outbox-bytes",
        BYTES,
        "Maximum bytes queued for one phone: enough for the largest attachments, which daemons "
        f"send in one burst of 31 MB. Each frame counts as its length + {ITEM_COST}. A phone with "
        "more is closed with 1011.",
        example="128M",
    ),
    _limit(
        "hold-bytes",
        BYTES,
        "Maximum bytes of one phone's frames that are held while its binary is slow or absent. "
        "Beyond it the relay does not read the phone's socket, so nothing is lost.",
        example="256K",
    ),
    _limit(
        "memory-budget",
        BYTES,
        "Maximum bytes in all queues together. Beyond it the relay closes with 1011 the connection "
        "whose queue would take longest to drain, at the rate at which its peer has taken bytes "
        "lately: a phone, or a binary if the binaries' queues hold more.",
        example="512M",
    ),
    _limit(
        "send-buffer",
        BYTES_OR_NONE,
        "Bytes that the kernel may queue for one connection; the kernel doubles the number. 0 "
        "leaves the size to the kernel, which goes up to several megabytes.",
        example="64K",
    ),
    _limit(
        "write-stall",
        SECONDS,
        "Seconds in which a peer must accept at least some of the data that waits for it. A peer "
        "that does not is closed with 1011.",
        example="60",
    ),
    _limit(
        "message-timeout",
        SECONDS,
        "Seconds from a message's first byte to its last. A slower peer is closed with 1008. "
        "Between messages there is no limit.",
        example="60",
    ),
    _limit(
        "heartbeat-interval",
        SECONDS,
        "Seconds of silence after which the relay pings a peer, give or take 10 %: less than "
        "the idle time-outs of common NATs.",
        example="25",
    ),
    _limit(
        "heartbeat-timeout",
        SECONDS,
        "Seconds in which a pinged peer must show a sign of life: long enough for a phone that "
        "changes networks. Otherwise the peer is closed with 1011.",
        example="20",
    ),
    _limit(
        "probe-timeout",
        SECONDS,
        "Seconds in which a binary must answer when another one claims its server-id. Otherwise "
        "that binary is closed with 1011, and the other one replaces it.",
        example="5",
    ),
    _limit(
        "close-timeout",
        SECONDS,
        "Seconds for the closing handshake, of which a slow link needs a few. What is queued gets "
        "half of them. Then the relay aborts the connection.",
        example="3",
    ),
    _limit(
        "header-timeout",
        SECONDS,
        "Seconds from the start of a connection within which its request must be complete. Without "
        "the limit, a client that sends headers byte by byte could hold a connection.",
        example="10",
    ),
    _limit(
        "drain-timeout",
        SECONDS,
        "Seconds from SIGTERM to the end of the process. It must be below the service manager's "
        "own limit.",
        example="25",
    ),
    _limit(
        "upgrade-rate",
        RATE,
        "Upgrades per minute that an address may request, on all paths together: enough for a "
        "client that redials every six seconds. More are answered 429. An IPv6 address counts "
        "as its /64. 0 turns the limit off.",
        example="60",
    ),
    _limit(
        "upgrade-burst",
        COUNT,
        "Upgrades that an address may request at once after a pause: enough for a household's "
        "phones and daemons when its network returns.",
        example="100",
    ),
    _limit(
        "max-connections-per-address",
        COUNT_OR_NONE,
        "Maximum WebSockets from one address: enough for an office behind one address, and only "
        "a small share of the relay. More are answered 503. 0 turns the limit off.",
        example="1000",
    ),
    _limit(
        "max-connections",
        COUNT_OR_NONE,
        "Maximum WebSockets from all addresses. More are answered 503. 0 means as many as the "
        "limit of open files allows, up to 100000. The relay raises its soft limit to the hard "
        "one.",
        example="20000",
    ),
    _limit(
        "max-waiting",
        COUNT_OR_NONE,
        "Maximum connections that wait for a request or a response, in addition to "
        "--max-connections. Beyond it the one that has waited longest is dropped. 0 means an "
        "eighth of the limit of open files, up to 2048.",
        example="500",
    ),
    _limit(
        "reserve-binaries",
        SHARE,
        "Share of the WebSockets that is reserved for binaries, so that phones cannot lock them "
        "out.",
        example="0.2",
    ),
    _limit(
        "limits-dry-run",
        SWITCH,
        "Count and log what the limits on upgrades and connections would refuse, but let it pass: "
        "a trial on a relay in use. Connections beyond the limit of open files are refused anyway.",
    ),
    Option(
        "fcm-credentials",
        SECRET,
        "",
        "JSON file with the key of a Google service account. With it, the relay sends push wakes "
        "through Firebase Cloud Messaging. The environment variable may contain the JSON itself. "
        "Install pyrycode-relay[push] for it.",
        example="service-account.json",
    ),
    Option(
        "fcm-endpoint",
        HTTPS,
        "https://fcm.googleapis.com",
        "URL of Firebase Cloud Messaging, without a path.",
        example="https://fcm.example.org",
    ),
    Option(
        "webpush-key",
        FILE_OR_NONE,
        "",
        "PEM file with the key (ECDSA, P-256) by which the relay identifies itself to Web Push "
        "services: pyrycode-relay-webpush-key makes it. Only its owner may have permission to "
        "read it. With it and --webpush-subject, the relay sends push wakes to Web Push "
        "subscriptions.",
        example="webpush.pem",
    ),
    Option(
        "webpush-subject",
        SUBJECT,
        "",
        "How the operators of Web Push services can reach you: mailto:ops@example.org or an "
        "https:// URL. They see it with every wake.",
        example="mailto:ops@example.org",
    ),
    Option(
        "push-allow-host",
        ALLOWED_HOST,
        "",
        "Host that a Web Push subscription may name: updates.push.services.mozilla.com, or with "
        "a leading dot every name below it, but not the name itself: .push.services.mozilla.com. "
        "Wakes for other hosts fail. Without the option, any host on the public internet is "
        "allowed. May be given more than once.",
        many=True,
        example=".push.services.mozilla.com",
    ),
    Option(
        "push-ca-file",
        FILE_OR_NONE,
        "",
        "PEM file with the authorities to trust for the push providers' certificates, instead of "
        "the public ones: for a test, or a proxy that ends TLS.",
        example="ca.pem",
    ),
    Option(
        "push-timeout",
        SECONDS,
        "10",
        "Seconds for each request to a push provider. Then the wake fails.",
        example="5",
    ),
    Option(
        "workers",
        WORKERS,
        "1",
        "Number of processes that serve the relay, or auto for one on each core that it may use. "
        "With more than 1, a parent process opens the sockets and restarts workers that end. "
        "SIGUSR2 replaces them one by one: a new setting or version takes effect, and no "
        "connection is refused.",
        example="4",
    ),
    _limit(
        "worker-timeout",
        SECONDS,
        "Seconds without a sign of life from a worker. Then the parent kills it and starts another "
        "one.",
        example="20",
    ),
    _limit(
        "worker-backoff",
        SECONDS,
        "Maximum seconds before a worker that has ended is started again. The first restart comes "
        "at once, each further one in a row later. A worker that has served for so long counts as "
        "well.",
        example="60",
    ),
    Option(
        "production",
        SWITCH,
        "no",
        "Refuse to run in a way that is unsafe on the open internet: with plain WebSockets "
        "beyond this machine, as root, or with more capabilities than are needed to bind low "
        "ports.",
    ),
    Option(
        "admin-listen",
        ADDRESS_OR_NONE,
        "127.0.0.1:9090",
        "Address that serves the operator, in plain HTTP and without a password: /metrics for "
        "Prometheus, a status page at /, and its data as /status.json. Empty turns it off.",
        example="127.0.0.1:9100",
    ),
    Option(
        "admin-allow-remote",
        SWITCH,
        "no",
        "Allow --admin-listen to be an address beyond loopback, and answer requests for any host "
        "name. Use it only on a network on which everybody may see the relay's status.",
    ),
    Option(
        "status-ids",
        SWITCH,
        "no",
        "Show server-ids and addresses on the status page and in /status.json. Otherwise hashes "
        "stand for them, and everybody who may see the page sees only those.",
    ),
    Option(
        "log-format",
        FORMAT,
        "text",
        "Format of the log: text for people, json for machines.",
        example="json",
    ),
    Option(
        "log-level",
        LEVEL,
        "info",
        "Lowest level that is logged: debug, info, warn or error.",
        example="debug",
    ),
)

SECTIONS: Final = {
    "insecure-listen": "Addresses and proxies",
    "tls-listen": "Certificates",
    "grace": "Daemons and their phones",
    "max-message-bytes": "Memory",
    "write-stall": "Time-outs",
    "upgrade-rate": "Limits on connections",
    "fcm-credentials": "Push wakes",
    "workers": "Workers",
    "production": "Operation",
}
"""The title of each section, by the section's first option."""


def sections() -> Iterator[tuple[str, Sequence[Option]]]:
    """Yield the title and the options of each section."""
    starts = [number for number, option in enumerate(OPTIONS) if option.name in SECTIONS]
    for start, end in pairwise([*starts, len(OPTIONS)]):
        yield SECTIONS[OPTIONS[start].name], OPTIONS[start:end]


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name: the nearest of the ``known`` names."""
    near = difflib.get_close_matches(name, [*known], 1)
    return f"did you mean {near[0]}?" if near else "--help lists them all."


def example() -> Iterator[str]:
    """Yield the lines of a configuration file with each setting, its help and its default."""
    yield "# A configuration of pyrycode-relay, for"
    yield "#     pyrycode-relay --config=relay.toml"
    yield "# Each setting is here with its default, commented out. The environment"
    yield "# (PYRYCODE_RELAY_GRACE=60) and the command line (--grace=60) win over this file."
    for title, options in sections():
        yield ""
        yield ""
        yield f"# == {title} =="
        for option in options:
            yield ""
            yield from textwrap.wrap(
                option.help, 88, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False
            )
            yield f"# {option.name} = {option.written(option.default_value)}"
