"""The kinds of values: what each accepts, what it refuses, and how it writes a value."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.config import values
from pyrycode_relay.config.values import (
    ADDRESS,
    ADDRESS_OR_NONE,
    ALLOWED_HOST,
    AUTO,
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
    Secret,
)
from pyrycode_relay.events import Level
from pyrycode_relay.limits import OnReclaim
from tests.unit.bench import Cases, cases, examples

KINDS = {name.lower(): kind for name, kind in vars(values).items() if isinstance(kind, Kind)}


def no_address(*_: object, **__: object) -> None:
    """Stand in for `socket.getaddrinfo` on a machine that knows no name."""
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


LONG_FORM = {ADDRESS, ADDRESS_OR_NONE, TLS_ADDRESS}
"""The kinds that write a value in another form than they read it."""

SOME_BYTES = {
    "4096": 4096,
    "64K": 65536,
    "64k": 65536,
    "2M": 2**21,
    "2 MiB": 2**21,
    "2mb": 2**21,
    "1G": 2**30,
    " 1024 ": 1024,
}
SOME_SECONDS = {"0.5": 0.5, "7": 7.0, "86400": 86400.0, "1e1": 10.0}
ADDRESSES = {text: text for text in (":8080", "127.0.0.1:8080", "tcp:8080", "unix:/run/relay.sock")}

ACCEPTED: dict[str, tuple[Kind, dict[str, Any]]] = {
    "seconds": (SECONDS, SOME_SECONDS),
    "bytes": (BYTES, SOME_BYTES),
    "bytes_or_none": (BYTES_OR_NONE, SOME_BYTES | {"0": 0, " 0 ": 0}),
    "count": (COUNT, {"1": 1, "1000000": 1_000_000}),
    "count_or_none": (COUNT_OR_NONE, {"0": 0, "64": 64}),
    "workers": (WORKERS, {"1": 1, "16": 16, "auto": AUTO}),
    "rate": (RATE, {"0": 0, "0.01": 0.01, "2.5": 2.5, "1e3": 1000}),
    "share": (SHARE, {"0": 0, "0.25": 0.25, "0.9": 0.9}),
    "switch": (
        SWITCH,
        dict.fromkeys(("1", "on", "true", "yes", "YES", " on "), True)
        | dict.fromkeys(("", "0", "off", "false", "no"), False),
    ),
    "reclaim": (RECLAIM, {policy.value: policy for policy in OnReclaim}),
    "format": (FORMAT, {"text": False, "json": True}),
    "level": (LEVEL, {level.name.lower(): level for level in Level}),
    "address": (ADDRESS, ADDRESSES),
    "address_or_none": (ADDRESS_OR_NONE, ADDRESSES | {"": ""}),
    "tls_address": (TLS_ADDRESS, ADDRESSES),
    "path": (PATH, {"a": Path("a"), "~/certs": Path("~/certs")}),
    "file_or_none": (FILE_OR_NONE, {__file__: Path(__file__), "": None}),
    "secret": (
        SECRET,
        {
            "a.json": Secret(Path("a.json")),
            '{"a":1}': Secret(text='{"a":1}'),
            ' \n{"a":1}': Secret(text=' \n{"a":1}'),
            "": None,
        },
    ),
    "https": (
        HTTPS,
        {
            text: text
            for text in (
                "https://ca.example/dir",
                "https://[::1]:14000/dir",
                "https://localhost:1/",
            )
        },
    ),
    "email": (
        EMAIL,
        {text: text for text in ("ops@example.org", "first.last+relay@mail.example.org", "")},
    ),
    "allowed_host": (
        ALLOWED_HOST,
        {
            "Push.Example.ORG": "push.example.org",
            ".Example.ORG": ".example.org",
            "192.0.2.1": "192.0.2.1",
            "2001:DB8:0::1": "2001:db8::1",
        },
    ),
    "subject": (
        SUBJECT,
        {
            text: text
            for text in ("mailto:ops@example.org", "https://example.org/contact?about=push", "")
        },
    ),
    "domain": (
        DOMAIN,
        {"Relay.Example.ORG": "relay.example.org", "localhost": "localhost", "a-b.x1": "a-b.x1"},
    ),
}

NO_SECONDS = ["", "soon", "-1", "nan", "inf", "-inf", "86401", "30s", "1e400", "0x10"]
NO_BYTES = ["", "much", "-1", "1.5M", "1T", "K", "9" * 30, "9" * 5000, "1e3", "inf"]
NO_COUNT = ["-1", "1.5", "many", "", "1000001", "9" * 5000]
NO_ADDRESS = ["8080", "localhost", "localhost:x", ":65536", "tcp:http-or-so"]

REFUSED: dict[str, tuple[Kind, list[str]]] = {
    "seconds": (SECONDS, [*NO_SECONDS, "0"]),
    "bytes": (BYTES, [*NO_BYTES, "0"]),
    "bytes_or_none": (BYTES_OR_NONE, NO_BYTES),
    "count": (COUNT, [*NO_COUNT, "0"]),
    "count_or_none": (COUNT_OR_NONE, NO_COUNT),
    "workers": (WORKERS, ["", "0", "-1", "17", "1.5", "all"]),
    "rate": (RATE, ["", "-1", "5e-324", "0.009", "nan", "inf", "1000001", "10/min"]),
    "share": (SHARE, ["", "-0.1", "0.91", "1", "nan", "10%"]),
    "switch": (SWITCH, ["2", "y", "evict"]),
    "reclaim": (RECLAIM, ["", "drop", "Evict"]),
    "format": (FORMAT, ["", "xml", "JSON"]),
    "level": (LEVEL, ["", "loud"]),
    "address": (ADDRESS, [*NO_ADDRESS, ""]),
    "address_or_none": (ADDRESS_OR_NONE, NO_ADDRESS),
    "tls_address": (TLS_ADDRESS, [*NO_ADDRESS, "", "ssl:443"]),
    "source": (SOURCE, ["10.0.0.1/8", "10.0.0.0/33", "localhost", "", "fe80::%eth0/64", "10"]),
    "path": (PATH, ["", "a\0b"]),
    "directory": (DIRECTORY, ["", "a\0b"]),
    "shell": (SHELL, ["", "ksh", "Bash"]),
    "file_or_none": (FILE_OR_NONE, ["no-such-file.pem", "/", "x" * 5000, "a\0b"]),
    "https": (
        HTTPS,
        [
            "",
            "http://ca.example/dir",
            "https:///dir",
            "https://me:secret@ca.example/dir",
            "https://ca.example:65536/dir",
            "https://ca.example:0/dir",
            "https://ca.example/d ir",
            "https://ca.example/dir\n",
            "https://cä.example/dir",
        ],
    ),
    # No text is refused before it is used, because a refusal shows the text.
    "secret": (SECRET, []),
    "email": (EMAIL, ["a@example.org,b@example.org", "ops", "a@example.org?subject=x", "@b"]),
    "allowed_host": (
        ALLOWED_HOST,
        [
            *("", ".", "..a", "a.", "*.example.org", "https://example.org", "example.org:443"),
            *("example.org/a", ".192.0.2.1", "[::1]", "ä.org", "192.0.2.0/24", "127.1"),
        ],
    ),
    "subject": (
        SUBJECT,
        [
            *("ops@example.org", "mailto:", "mailto:ops", "mailto:a@b,c@d", "http://example.org"),
            *("https://", "mailto:a@example.org?subject=x", "mailto:a@example.org\n", " "),
        ],
    ),
    "domain": (
        DOMAIN,
        [
            *("", ".", "a.", "-a", "a-", "*.a", "a b", "127.0.0.1", "[::1]", "a:443", "ä.org"),
            *("a" * 64, ".".join(["a" * 60] * 5), "a/b", "\u212a.org"),
        ],
    ),
}


class KindTests(Cases):
    @cases(ACCEPTED)
    def test_accepted(self, kind: Kind, table: dict[str, Any]) -> None:
        """A text that is allowed becomes its value."""
        for text, value in table.items():
            self.assertEqual(kind.parse(text), value, text)

    def test_sources(self) -> None:
        """A source is an address, a network or UNIX sockets."""
        found = [str(SOURCE.parse(text)) for text in ("127.0.0.1", "fd00::/8", "unix")]
        self.assertEqual(found, ["127.0.0.1/32", "fd00::/8", "unix"])

    @cases(REFUSED)
    def test_refused(self, kind: Kind, texts: list[str]) -> None:
        """A text that is not allowed is refused."""
        for text in texts:
            self.assertTrue(self.is_refused(kind.parse, text), text)

    def is_refused(self, parse: Callable[[str], Any], text: str) -> bool:
        """Whether a parser refuses a text, by one of the errors it may raise."""
        try:
            parse(text)
        except (ValueError, KeyError, OverflowError):
            return True
        return False

    @cases({name: (kind,) for name, kind in KINDS.items()})
    def test_in_words(self, kind: Kind) -> None:
        """Each kind has words for what is allowed, and all kinds are tried here."""
        self.assertRegex(kind.allowed, r"\A\S.*[^.]\Z")
        self.assertTrue(any(kind is tried for tried, _ in REFUSED.values()))

    @examples(200)
    @given(st.sampled_from([*KINDS.values()]), st.text(max_size=12))
    def test_any_text(self, kind: Kind, text: str) -> None:
        """Any text is a value or refused; a value that is written is read as the same."""
        self.patch(socket, "getaddrinfo", no_address)
        if self.is_refused(kind.parse, text):
            return
        value = kind.parse(text)
        if isinstance(value, Secret) and value.path is None:
            self.assertEqual(kind.show(value), "")
            return
        written = kind.show(value)
        again = kind.parse(written)
        self.assertEqual(kind.show(again), written)
        if kind not in LONG_FORM:
            self.assertEqual(again, value)

    @cases({name: (kind,) for name, kind in KINDS.items() if kind.words})
    def test_words(self, kind: Kind) -> None:
        """The words that a shell offers are all values of their kind."""
        self.assertEqual([kind.show(kind.parse(word)) for word in kind.words], [*kind.words])
