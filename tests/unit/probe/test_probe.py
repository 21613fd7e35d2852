"""The probe's parts that need no network: what it is given, what it says, how it counts."""

from __future__ import annotations

import contextlib
import json
from datetime import timedelta

from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.probe.dial import certificate
from pyrycode_relay.probe.report import (
    MEANINGS,
    PERCENTILES,
    ProbeError,
    Report,
    Status,
    percentiles,
    printable,
)
from pyrycode_relay.probe.target import Place, Target, TargetError
from tests.ca import Authority
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


class ReportTests(Cases):
    def setUp(self) -> None:
        self.now = 0.0
        self.report = Report("wss://relay.test:443/", lambda: self.now)

    def test_a_course(self) -> None:
        """Each step has its time, and the one that fails has the sentence instead."""
        self.report.begin("dns")
        self.report.found(addresses=["192.0.2.7", "2001:db8::7"])
        self.now = 0.25
        self.report.begin("tcp")
        self.report.fail(ProbeError(Status.UNREACHABLE, "192.0.2.7:443 refuses connections."))
        text = self.report.as_text()
        self.assertRegex(text, r"(?m)^ok +dns +192\.0\.2\.7, 2001:db8::7 +250\.0 ms$")
        self.assertRegex(text, r"(?m)^FAIL +tcp +192\.0\.2\.7:443 refuses connections\.$")
        self.assertNotIn("The relay works", text)
        self.assertEqual(
            json.loads(self.report.as_json()),
            {
                "target": "wss://relay.test:443/",
                "ok": False,
                "status": 3,
                "problem": "192.0.2.7:443 refuses connections.",
                "steps": {
                    "dns": {"ok": True, "ms": 250.0, "addresses": ["192.0.2.7", "2001:db8::7"]},
                    "tcp": {"ok": False, "ms": None},
                },
            },
        )

    def test_many_names(self) -> None:
        """Of a certificate with many names people are shown some, and how many more there are."""
        names = [f"relay{number}.test" for number in range(100)]
        self.report.begin("tls")
        found = {"issuer": "CA", "names": names, "not_after": "2026-12-24", "days_left": 9}
        self.report.found(version="TLSv1.3", verified=True, **found)
        self.report.end()
        self.assertIn("relay7.test and 92 more\n", self.report.as_text())
        self.assertEqual(json.loads(self.report.as_json())["steps"]["tls"]["names"], names)

    def test_it_works(self) -> None:
        """A probe without a failure says so, and its status is 0."""
        self.report.begin("upgrade")
        self.report.end()
        self.assertTrue(self.report.as_text().endswith("\nThe relay works."))
        self.assertEqual((self.report.status, json.loads(self.report.as_json())["ok"]), (0, True))

    def test_statuses(self) -> None:
        """Each exit status has a meaning, and none is one that a shell makes of signals."""
        self.assertEqual(set(MEANINGS), set(Status))
        self.assertLess(max(Status), 126)

    @given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200))
    @examples(200)
    def test_percentiles(self, durations: list[float]) -> None:
        """Each percentile was measured, and that share of all was no longer than it."""
        found = percentiles(durations)
        rounded = sorted(round(each, 3) for each in durations)
        for name, percent in PERCENTILES.items():
            value = found[f"{name}_ms"]
            self.assertIn(value, rounded)
            self.assertGreaterEqual(
                sum(each <= value for each in rounded), percent / 100 * len(rounded)
            )
            self.assertLess(
                sum(each < value for each in rounded), max(1, percent / 100 * len(rounded))
            )

    @given(st.text())
    @examples(200)
    def test_printable(self, text: str) -> None:
        """What a peer says cannot move a terminal's cursor or fill it."""
        shown = printable(text)
        self.assertTrue(shown.isprintable())
        self.assertLessEqual(len(shown), 200)


class CertificateTests(Cases):
    def test_read(self) -> None:
        """Names, issuer, end and days left are the certificate's."""
        until = timedelta(days=12, hours=1)
        leaf = Authority().issue("relay.test", "10.0.0.1", until=until).chain[0]
        self.assertEqual(
            certificate(leaf.public_bytes(Encoding.DER)),
            {
                "issuer": "Test CA",
                "names": ["relay.test", "10.0.0.1"],
                "not_after": leaf.not_valid_after_utc.date().isoformat(),
                "days_left": 12,
            },
        )

    def test_no_certificate(self) -> None:
        """What is no certificate is a `ValueError`, of which the probe makes a sentence."""
        self.assertRaises(ValueError, certificate, b"0\x03\x02\x01\x00")

    def test_without_names(self) -> None:
        """A certificate without names has none."""
        leaf = Authority().issue().chain[0]
        self.assertEqual(certificate(leaf.public_bytes(Encoding.DER))["names"], [])
