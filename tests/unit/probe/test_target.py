"""Where a relay is: every way to write it, and what is refused."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.probe.target import Place, Target, TargetError
from tests.unit.bench import Cases, cases, examples


class TargetTests(Cases):
    @cases(
        {
            "bare": ("relay.test", "wss://relay.test:443/x"),
            "bare_port": ("relay.test:8443", "wss://relay.test:8443/x"),
            "bare_address": ("127.0.0.1:8080", "wss://127.0.0.1:8080/x"),
            "bare_ipv6": ("[::1]:8080", "wss://[::1]:8080/x"),
            "wss": ("wss://relay.test", "wss://relay.test:443/x"),
            "https": ("https://relay.test/", "wss://relay.test:443/x"),
            "ws": ("ws://relay.test", "ws://relay.test:80/x"),
            "http": ("HTTP://Relay.Test:81", "ws://relay.test:81/x"),
            "prefix": ("wss://relay.test/a/b/", "wss://relay.test:443/a/b/x"),
            "foreign_letters": ("wss://bücher.test", "wss://xn--bcher-kva.test:443/x"),
        }
    )
    def test_taken(self, text: str, url: str) -> None:
        """Every way in which people write where a relay is leads to its paths."""
        self.assertEqual(Target.parse(text).url("/x"), url)

    @cases(
        {
            "scheme": ("ftp://relay.test", "'ftp'"),
            "empty": ("", "host"),
            "no_host": ("wss://", "host"),
            "port": ("relay.test:70000", "port"),
            "port_0": ("relay.test:0", "port"),
            "words": ("relay.test:http", "port"),
            "bracket": ("wss://[::1", "host"),
            "space": ("wss://relay test", "host"),
            "control": ("wss://relay.test/\x1b[31m", "host"),
            "user": ("wss://me:hunter2@relay.test", "user name"),
            "query": ("wss://relay.test/?token=hunter2", "query"),
            "fragment": ("wss://relay.test/#hunter2", "fragment"),
        }
    )
    def test_refused(self, text: str, word: str) -> None:
        """What cannot be a relay's URL is one sentence, without what could be a secret in it."""
        sentence = str(self.assertRaises(TargetError, Target.parse, text))
        self.assertRegex(sentence, r"\A[A-Z][^\n]*\.\Z")
        self.assertIn(word, sentence)
        self.assertNotIn("hunter2", sentence)

    @given(st.text(max_size=40) | st.from_regex(r"(wss?://)?[a-z.\[\]:@/?#0-9]{0,20}"))
    @examples(300)
    def test_anything(self, text: str) -> None:
        """Whatever is given, it is a target whose URL is the same target, or it is refused."""
        with contextlib.suppress(TargetError):
            target = Target.parse(text)
            self.assertEqual(Target.parse(target.url("")), target)

    @cases(
        {
            "host": ("relay.test:443", Place("relay.test", 443)),
            "address": ("192.0.2.7:80", Place("192.0.2.7", 80)),
            "ipv6": ("[2001:db8::7]:80", Place("2001:db8::7", 80)),
            "unix": ("/run/relay.sock", Place("/run/relay.sock")),
        }
    )
    def test_place(self, text: str, place: Place) -> None:
        """A place to connect to is a host and a port, or a UNIX socket, and reads as given."""
        self.assertEqual(Place.parse(text), place)
        self.assertEqual(str(place), text)

    @cases(
        {
            "nothing": ("",),
            "no_port": ("relay.test",),
            "no_host": (":80",),
            "no_number": ("a:b",),
            "port_0": ("a:0",),
            "path": ("a:80/x",),
            "half_of_brackets": ("[::1",),
        }
    )
    def test_no_place(self, text: str) -> None:
        """Anything else is refused with what is allowed."""
        sentence = str(self.assertRaises(TargetError, Place.parse, text))
        self.assertIn(f"--connect is {text!r}; allowed: HOST:PORT", sentence)
