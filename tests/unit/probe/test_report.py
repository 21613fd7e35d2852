"""What the probe says, for people and as JSON, and how it counts."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.probe.report import (
    MEANINGS,
    PERCENTILES,
    ProbeError,
    Report,
    Status,
    percentiles,
    printable,
)
from tests.unit.bench import Cases, examples


class ReportTests(Cases):
    def setUp(self) -> None:
        self.now = 0.0
        self.report = Report("wss://relay.test:443/", lambda: self.now, ["dns", "tcp", "upgrade"])

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
                "not_done": ["upgrade"],
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
        """Each exit status has a meaning; only SIGINT's is one that a shell makes of signals."""
        self.assertEqual(set(MEANINGS), set(Status))
        self.assertEqual([each for each in Status if each > 125], [Status.INTERRUPTED])

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
