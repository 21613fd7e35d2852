"""The manual says what the code does: its tables are compared, and its references followed."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import cast

from prometheus_client.core import Metric
from twisted.internet.testing import MemoryReactorClock
from twisted.scripts._twistd_unix import ServerOptions

from pyrycode_relay.config.options import OPTIONS
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.events import FIELDS, Event
from pyrycode_relay.monitoring.exposition import Metrics
from pyrycode_relay.monitoring.monitored import Monitored, Push
from pyrycode_relay.probe import command
from pyrycode_relay.protocol.close_codes import Close, EndCause
from pyrycode_relay.protocol.push_wake import WakeRefusal
from pyrycode_relay.push import webpush_key
from pyrycode_relay.push.provider import SendFault
from pyrycode_relay.service import RelayService
from pyrycode_relay.tap import Options
from pyrycode_relay.tls.store import Certificates
from tests.unit.bench import Cases, cases
from tests.unit.sources import PACKAGE, SOURCES, Source

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
}
BY_PAGE = {re.sub(r"\W", "_", page): (page,) for page in PAGES}
TABLES = {
    "option": PAGES["docs/settings.md"],
    "metric": PAGES["docs/monitoring.md"],
    "event": PAGES["docs/log-reference.md"],
    "field": PAGES["docs/log-reference.md"],
    "code": PAGES["docs/protocol.md"],
    "module": PAGES["docs/architecture.md"],
    "fault": PAGES["docs/push.md"],
    "refusal": PAGES["docs/push.md"],
    "target": PAGES["CONTRIBUTING.md"],
}
"""The page of each table that is compared with the source, by the table's first column."""

OTHERS = {
    # The relay in Go's:
    *("--http-listen", "--https-listen", "--https-proxy-protocol", "--metrics-listen"),
    "--trust-x-forwarded-for",
    *("--build-arg", "--cap-drop", "--memory", "--read-only", "--security-opt", "--stop-timeout"),
    *("--ulimit", "--now", "--system", "--quick"),
}
"""Options in the manual that are docker's, systemctl's, useradd's and the benchmark's."""


def table(first: str) -> list[list[str]]:
    """Return the rows, as cells, of the manual's tables whose first column is named ``first``."""
    rows: list[list[str]] = []
    within = False
    for line in TABLES[first].splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip())][1:-1]
        if cells and cells[0] == first:
            within = True
        elif not cells:
            within = False
        elif within and not set("".join(cells)) <= set("-: "):
            rows.append(cells)
    return rows


def names(cell: str) -> list[str]:
    """Return what stands in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)


def flags() -> set[str]:
    """Return the relay's options that are no settings."""
    others = [*Options.optFlags, *Options.optParameters]
    return {f"--{each[0]}" for each in others} | {"--version"}


def default_shown(default: str, cell: str) -> bool:
    """Whether a cell shows a default; of none at all, it may say in words what comes of it."""
    if default in {"", "no"}:
        return cell in {"", "none", "no", "off"} or " " in cell
    return cell == default


def documented(first: str) -> dict[str, list[str]]:
    """Return the rows of the manual's tables of a kind, by each name in their first cell."""
    return {name: row for row in table(first) for name in names(row[0])}


class SettingTests(Cases):
    def test_each_is_documented_once(self) -> None:
        """The table of settings has each option, no other, and none twice."""
        rows = [name for cells in table("option") for name in names(cells[0])]
        expected = [f"--{option.name}" for option in OPTIONS] + [*flags()]
        self.assertEqual(sorted(rows), sorted(expected))

    @cases({option.field: (option.name, option.default) for option in OPTIONS})
    def test_default(self, name: str, default: str) -> None:
        """The table shows the default that the option has."""
        shown = documented("option")[f"--{name}"][1]
        self.assertTrue(default_shown(default, shown), f"{default!r} is shown as {shown!r}")

    @cases({name: page for name, page in BY_PAGE.items() if "performance" not in name})
    def test_options_named(self, page: str) -> None:
        """Every option that a page names exists: here, in another command, or in twistd."""
        twistd = {f"--{name.rstrip('=')}" for name in ServerOptions().longOpt}
        helps = command.command_line().format_help() + webpush_key.command_line().format_help()
        others = set(re.findall(r"--[a-z][a-z-]+", helps))
        known = {f"--{option.name}" for option in OPTIONS} | flags() | twistd | others
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGES[page]))
        self.assertEqual(named - known - OTHERS, set())


def told(source: Source) -> Iterator[tuple[str, frozenset[str]]]:
    """Yield each event that a module tells an observer of, with the names of its fields.

    The event may stand there itself, or be looked up in a table of the module, or come through a
    function that takes an event and adds its fields.
    """
    tables = {
        target.id: _events(node.value)
        for node in source.nodes
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    passing = dict.fromkeys(("saw", "event_line"), frozenset[str]())
    for function in source.nodes:
        if isinstance(function, ast.FunctionDef) and function.name != "saw":
            parameters = {each.arg for each in function.args.args}
            for call in _calls(ast.walk(function), {"saw"}):
                if isinstance(call.args[0], ast.Name) and call.args[0].id in parameters:
                    passing[function.name] = _keywords(call)
    for call in _calls(source.calls, set(passing)):
        events = _events(call.args[0])
        for part in ast.walk(call.args[0]):
            if isinstance(part, ast.Name):
                events |= tables.get(part.id, set())
        for event in events:
            yield event, _keywords(call) | passing[_called(call)]


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "attr", None) or getattr(call.func, "id", ""))


def _calls(nodes: Iterable[ast.AST], called: set[str]) -> Iterator[ast.Call]:
    for node in nodes:
        if isinstance(node, ast.Call) and node.args and _called(node) in called:
            yield node


def _keywords(call: ast.Call) -> frozenset[str]:
    return frozenset(keyword.arg for keyword in call.keywords if keyword.arg)


def _events(node: ast.AST) -> set[str]:
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.value, ast.Name)
        and each.value.id == "Event"
    }


@cache
def fields_told() -> Mapping[str, set[str]]:
    """Return, by the name of each event, all the fields that it is told with anywhere."""
    found: dict[str, set[str]] = {}
    for source in SOURCES.values():
        if not source.is_probe:
            for event, fields in told(source):
                found.setdefault(event, set()).update(fields)
    return found


class EventTests(Cases):
    def test_each_is_documented_once(self) -> None:
        """The table of the log has each event, no other, and none twice."""
        rows = [name for cells in table("event") for name in names(cells[0])]
        self.assertEqual(sorted(rows), sorted(event.label for event in Event))

    def test_each_field_is_documented_once(self) -> None:
        """The table of fields has each field, no other, and none twice."""
        rows = [name for cells in table("field") for name in names(cells[0])]
        self.assertEqual(sorted(rows), sorted(FIELDS))

    @cases({event.label: (event,) for event in Event})
    def test_row(self, event: Event) -> None:
        """The row has the event's level, and just the fields that the code tells it with."""
        _, level, fields, _ = documented("event")[event.label]
        self.assertEqual(level, event.level.name.lower())
        expected = ", ".join(sorted(fields_told().get(event.name, {"told nowhere"})))
        self.assertEqual(", ".join(sorted(re.split(r",\s*", fields))), expected)

    @cases(
        {
            "itself": ("observer.saw(Event.A, remote=r)", {("A", "remote")}),
            "either": (
                "o.saw(Event.A if x else Event.B, err=e)",
                {("A", "err"), ("B", "err")},
            ),
            "table": ("T = {1: Event.A, 2: Event.B}\no.saw(T[n])", {("A",), ("B",)}),
            "variable": ("def f(): e = Event.A; o.saw(e, path=p)", {("A", "path")}),
            "function": (
                "def tell(event, why): o.saw(event, reason=why)\ntell(Event.A, 'x')",
                {("A", "reason")},
            ),
            "method": (
                "def _tell(self, event): o.saw(event, remote=1)\nself._tell(Event.B)",
                {("B", "remote")},
            ),
            "nothing": ("def saw(self, event, **fields): o.saw(event, **fields)", set()),
        }
    )
    def test_found(self, source: str, expected: set[tuple[str, ...]]) -> None:
        """Events are found in every way in which they are told."""
        found = {(event, *sorted(fields)) for event, fields in told(Source("module", source))}
        self.assertEqual(found, expected)


class OneCertificate:
    """Stands in for what serves TLS."""

    last_reload = (1.0, True)

    def not_after(self) -> dict[str, float]:
        return {"relay.example": 2.0}


@cache
def families() -> list[Metric]:
    """Return what a relay with TLS and push exports."""
    service = RelayService(MemoryReactorClock(), Settings(("tcp:0",)), [])
    monitored = Monitored(
        registry=service.context.registry,
        memory_budget=service.context.memory_budget,
        tally=service.context.tally,
        admission=service.admission,
        certificates=cast(Certificates, OneCertificate()),
        push=Push(
            faults=[each.label for each in SendFault],
            breakers=lambda: {"fcm": "closed"},
            under_way=lambda: 0,
        ),
        state=lambda: "ready",
        crowded_out=lambda: 0,
        log_lines_dropped=lambda: 0,
        seconds=lambda: 0.0,
        wall=lambda: 0.0,
    )
    return [*Metrics(monitored).registry.collect()]


@cache
def exported() -> dict[str, tuple[str, str, str]]:
    """Return type, labels and help text of every metric, by its name in Prometheus."""
    found = {}
    for family in families():
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, ", ".join(sorted(labels)), family.documentation)
    return found


@cache
def cells() -> dict[str, set[tuple[str, str]]]:
    """Return the values that each series' labels have."""
    found: dict[str, set[tuple[str, str]]] = {}
    for family in families():
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels.items())
    return found


class MetricTests(Cases):
    def test_rows(self) -> None:
        """The table has each exported metric: its type, its labels and its help text."""
        rows = {
            names(name)[0]: (kind, labels, re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", meaning))
            for name, kind, labels, meaning in table("metric")
        }
        self.assertEqual(rows, exported())

    @cases(BY_PAGE)
    def test_named(self, page: str) -> None:
        """Every metric that a page names is exported."""
        parts = ("", "_bucket", "_count", "_sum")
        known = {name + part for name in exported() for part in parts}
        named = set(re.findall(r"\bpyrycode_relay_\w+", PAGES[page]))
        self.assertEqual(named - known - {"pyrycode_relay_plugin"}, set())


class PushTests(Cases):
    def test_faults(self) -> None:
        """The manual has a remedy for each way in which a send fails, under its text in the log."""
        rows = {names(label)[0]: text for label, text, _ in table("fault")}
        self.assertEqual(rows, {fault.label: str(fault) for fault in SendFault})

    def test_refusals(self) -> None:
        """The manual has each reason to refuse a wake, in the order of the checks."""
        rows = [names(label)[0] for label, _ in table("refusal")]
        self.assertEqual(rows, [refusal.label for refusal in WakeRefusal])


CLOSES = [cause.sends for cause in EndCause if cause.sends is not None]


class CloseTests(Cases):
    @cases({f"{close.code} {close.reason}".replace(" ", "_"): (close,) for close in CLOSES})
    def test_row(self, close: Close) -> None:
        """The protocol's table has every close that the relay makes."""
        reason = f"`{close.reason}`" if close.reason else "(empty)"
        rows = [cells[:2] for cells in table("code")]
        self.assertIn([str(close.code), reason], rows)


class ReferenceTests(Cases):
    @cases(BY_PAGE)
    def test_links(self, page: str) -> None:
        """Every link to a page or a picture of ours leads somewhere, and so does its anchor."""
        for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = (ROOT / page).parent / path if path else ROOT / page
            self.assertTrue(target.exists(), link)
            if anchor:
                self.assertIn(anchor, anchors(target.read_text(encoding="utf-8")), link)

    @cases(BY_PAGE)
    def test_files(self, page: str) -> None:
        """Every file of ours that a page names is there."""
        for name in re.findall(
            r"`((?:tests|docs|deploy|examples|benchmarks)/[\w./-]+)`", PAGES[page]
        ):
            self.assertTrue((ROOT / name).exists(), name)


class ContributingTests(Cases):
    def test_targets(self) -> None:
        """``CONTRIBUTING.md`` has each target that ``make help`` shows, in its words."""
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        helped = re.findall(r"(?m)^([a-z./]+):[^#\n]*## (.*)$", makefile)
        rows = [(names(target)[0], text) for target, text in table("target")]
        self.assertEqual(rows, helped)


class ReadmeTests(Cases):
    def test_packages(self) -> None:
        """The README has the Debian packages that CI installs."""
        ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
        found = re.search(r"--no-install-recommends \\\n(.*?) >/dev/null", ci, re.DOTALL)
        assert found is not None
        packages = found[1].replace("\\\n", " ").split()
        self.assertIn(", ".join(packages), " ".join(PAGES["README.md"].split()))


class ArchitectureTests(Cases):
    """``docs/architecture.md`` names every module, and none that is not there."""

    def test_modules(self) -> None:
        """The tables of modules have each module of the package once, and no other."""
        rows = [name for cells in table("module") for name in names(cells[0])]
        modules = [name for name in SOURCES if not name.endswith("__init__")]
        self.assertEqual(sorted(rows), sorted(f"{each.replace('.', '/')}.py" for each in modules))

    def test_paths(self) -> None:
        """Each file of the package that the page names is there."""
        named = re.findall(r"`((?:[a-z_]+/)*[a-z_]+\.py|[a-z_/]+/)`", TABLES["module"])
        self.assertGreater(len(named), 100)
        self.assertEqual([each for each in named if not exists(each)], [])


def exists(path: str) -> bool:
    """Whether a path that ``docs/architecture.md`` names is there, in the package or beside it."""
    return (PACKAGE / path).exists() or (ROOT / path).exists()


class AdviceTests(Cases):
    """``docs/troubleshooting.md`` is there for whatever happens, and speaks of what there is."""

    page = PAGES["docs/troubleshooting.md"]

    def test_alerts(self) -> None:
        """Every alert has its place there."""
        rules = (ROOT / "deploy" / "prometheus" / "pyrycode-relay.rules.yml").read_text()
        alerts = set(re.findall(r"alert: (\w+)", rules))
        self.assertTrue(alerts)
        self.assertEqual(set(re.findall(r"\bRelay[A-Z]\w+", self.page)), alerts)

    def test_runbooks(self) -> None:
        """Each alert's runbook is the first section of the page that names the alert."""
        rules = (ROOT / "deploy" / "prometheus" / "pyrycode-relay.rules.yml").read_text()
        first: dict[str, str] = {}
        for section in self.page.split("\n## ")[1:]:
            [anchor] = anchors("# " + section.partition("\n")[0])
            for alert in re.findall(r"\bRelay[A-Z]\w+", section):
                first.setdefault(alert, f"docs/troubleshooting.md#{anchor}")
        runbooks = {}
        for rule in rules.split("- alert: ")[1:]:
            [runbook] = re.findall(r'(?m)^ +runbook: "(.+)"$', rule)
            runbooks[rule.partition("\n")[0]] = runbook
        self.assertEqual(runbooks, first)

    def test_reasons(self) -> None:
        """Every close that is not the peer's own doing is explained by its reason."""
        for close in CLOSES:
            if close.code == 1011 or close.code >= 4000:
                self.assertIn(str(close.code), self.page)
                self.assertIn(close.reason, self.page)

    def test_sentences(self) -> None:
        """Every reason that it quotes from the log is one that the relay gives."""
        quoted = re.findall(r"`([A-Za-z]+(?: [A-Za-z]+(?:-[a-z]+)?){2,})`", self.page)
        self.assertGreater(len(quoted), 10)
        given = "\n".join(each.text for each in SOURCES.values())
        self.assertEqual([each for each in quoted if f'"{each}"' not in given], [])

    def test_events(self) -> None:
        """What stands there like an event of the log is one."""
        labels = {event.label for event in Event}
        words = set(re.findall(r"`([a-z]+(?:_[a-z]+)+)`", self.page))
        known = labels | FIELDS | set(exported()) | {"nr_throttled"}
        self.assertEqual(words - known, set())


def anchors(page: str) -> set[str]:
    """Return the anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
