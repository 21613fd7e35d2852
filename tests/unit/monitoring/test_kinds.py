"""Each kind of finding has its words, its section of the manual, and its severity in the alerts."""

from __future__ import annotations

import json
import re

from pyrycode_relay.monitoring.kinds import Kind, Severity
from tests.unit.bench import Cases, cases
from tests.unit.test_deploy import RULES
from tests.unit.test_docs import PAGES, ROOT


def rows() -> dict[str, tuple[str, str]]:
    """Return severity and alert of each kind in the manual's table."""
    found = re.findall(
        r"^\| `(\w+)` \| (\w+) \| [^|]+ \| (\w*) ?\|$", PAGES["docs/monitoring.md"], re.M
    )
    return {kind: (severity, alert) for kind, severity, alert in found}


class KindTests(Cases):
    def test_order(self) -> None:
        """The worst stands first."""
        severities = [[*Severity].index(kind.severity) for kind in Kind]
        self.assertEqual(severities, sorted(severities))

    @cases({kind.label: (kind,) for kind in Kind})
    def test_words(self, kind: Kind) -> None:
        """There is a sentence of advice, and the section that it leads to exists."""
        self.assertRegex(kind.advice, r"\A[A-Z].+\.\Z")
        self.assertIn(f"\n## {kind.section}\n", PAGES["docs/troubleshooting.md"])

    def test_manual(self) -> None:
        """The manual's table has each kind with its severity, in the order of the page."""
        expected = [(kind.label, kind.severity.value) for kind in Kind]
        self.assertEqual([(kind, severity) for kind, (severity, _) in rows().items()], expected)

    def test_alerts(self) -> None:
        """Each alert that the table names exists, with the same severity; none is left out."""
        alerts = {}
        for rule in RULES.split("- alert: ")[1:]:
            severity = re.search(r"severity: (\w+)", rule)
            assert severity is not None
            alerts[rule.split()[0]] = severity[1]
        named = {alert: severity for severity, alert in rows().values() if alert}
        for alert in ("RelayDown", "RelayRestarts"):
            alerts.pop(alert)
        self.assertEqual(named, alerts)

    def test_schema(self) -> None:
        """The schema of ``status.json`` has just these kinds."""
        schema = json.loads((ROOT / "docs" / "status.schema.json").read_text(encoding="utf-8"))
        items = schema["properties"]["attention"]["items"]["properties"]
        self.assertEqual(items["kind"]["enum"], [kind.label for kind in Kind])
