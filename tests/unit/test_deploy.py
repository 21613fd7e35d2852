"""What is shipped for Prometheus and Grafana speaks of just the metrics that there are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.unit.bench import Cases
from tests.unit.test_docs import cells, exported

DEPLOY = Path(__file__).parents[2] / "deploy"
RULES = (DEPLOY / "prometheus" / "pyrycode-relay.rules.yml").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads(
    (DEPLOY / "grafana" / "pyrycode-relay.json").read_text(encoding="utf-8")
)
OWN = re.compile(r"\b(?:pyrycode_relay|process)_\w+")
SERIES = re.compile(r"\b((?:pyrycode_relay|process)_\w+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)="([^"]*)"')
PARTS = re.compile(r"_(?:bucket|count|sum)\Z")


def expressions() -> list[str]:
    """Return the queries of the rules and of the dashboard's panels."""
    rules = re.findall(r"^ +expr: (.+)$", RULES, re.MULTILINE)
    targets = [each for panel in DASHBOARD["panels"] for each in panel.get("targets", [])]
    return [*rules, *(each["expr"] for each in targets)]


def base(name: str) -> str:
    """Return a series' metric: a histogram has several series."""
    shorter = PARTS.sub("", name)
    return shorter if shorter in exported() else name


class NameTests(Cases):
    def test_dashboard(self) -> None:
        """The dashboard shows just the metrics that are exported, and each of them."""
        panels = json.dumps(DASHBOARD["panels"])
        self.assertEqual({base(name) for name in OWN.findall(panels)}, set(exported()))

    def test_rules(self) -> None:
        """The rules ask for no metric that is not exported."""
        found = {base(name) for rule in expressions() for name in OWN.findall(rule)}
        self.assertEqual(found - set(exported()), set())
        self.assertGreater(len(OWN.findall(RULES)), 15)

    def test_labels(self) -> None:
        """Each label that a query asks for by its value has that value."""
        asked = 0
        for expression in expressions():
            for name, matchers in SERIES.findall(expression):
                for label, value in MATCHER.findall(matchers):
                    if label == "job":
                        self.assertEqual(value, "pyrycode-relay")
                    else:
                        asked += 1
                        self.assertIn((label, value), cells()[name], expression)
        self.assertGreater(asked, 3)

    def test_grouping(self) -> None:
        """Each label that a query groups by is one of its metrics' own, or Prometheus's."""
        for expression in expressions():
            own = {
                label.strip()
                for name in OWN.findall(expression)
                for label in exported()[base(name)][1].split(",")
            }
            for grouped in re.findall(r"\b(?:by|without) \(([^)]*)\)", expression):
                for label in grouped.split(", "):
                    self.assertIn(label, own | {"le", "instance"}, expression)

    def test_panels(self) -> None:
        """Panels have numbers of their own and overlap nowhere."""
        panels = DASHBOARD["panels"]
        self.assertEqual(len({panel["id"] for panel in panels}), len(panels))
        taken: set[tuple[int, int]] = set()
        for panel in panels:
            place = panel["gridPos"]
            self.assertLessEqual(place["x"] + place["w"], 24)
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    self.assertNotIn((x, y), taken, panel["title"])
                    taken.add((x, y))

    def test_annotations(self) -> None:
        """Each alert has a severity, and says in words what is wrong and what to do."""
        alerts = RULES.split("- alert: ")[1:]
        for alert in alerts:
            self.assertRegex(alert, r"severity: (page|warn)\}")
            self.assertRegex(alert, r"summary: \".+\"")
            self.assertRegex(alert, r"description: \".+\.\"")
