"""Habits that the source is held to: imports point down, and only events reach the log.

Each rule is a function from a module's source to its offences, and is tried on offenders too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pyrycode_relay
from pyrycode_relay.events import FIELDS
from tests.unit.bench import Cases, cases

PACKAGE = Path(pyrycode_relay.__file__).parent
PLUGINS = Path(__file__).parents[2] / "twisted" / "plugins"

LEVELS = {
    "__init__": 0,
    "addresses": 0,
    "events": 0,
    "limits": 0,
    "tally": 0,
    "protocol": 0,
    "registry": 1,
    "tls": 1,
    "config": 1,
    "sd_notify": 1,
    "acme": 2,
    "websocket": 3,
    "http": 4,
    "endpoints": 5,
    "monitoring": 6,
    "startup_checks": 7,
    "service": 7,
    "tap": 8,
    "probe.target": 1,
    "probe.report": 1,
    "probe.dial": 2,
    "probe.conversation": 3,
    "probe.command": 4,
}
"""The level of each package, and of each module that is in none. Imports point down, or stay within
a package. The probe is a program of its own: see `ProbeTests`."""

CONTRACT = ("__init__", "addresses", "events", "limits", "tally", "protocol")
"""What has the standard library and msgspec only."""

STATE = (
    *CONTRACT,
    "registry",
    "http.admission",
    "http.capacity",
    "http.waiting_room",
    "acme.schedule",
)
"""What knows no sockets and is handed its clock."""

AUTOBAHN = {
    "websocket.connection": None,
    "endpoints.binary": {"ConnectionDeny", "ConnectionRequest"},
    "endpoints.phone": {"ConnectionDeny", "ConnectionRequest"},
    "service": {"USES_NVX"},
}
"""What each module may take from Autobahn; None is anything."""

SOCKETS = ("socket", "ssl", "select", "selectors", "asyncio", "time", "autobahn", "twisted.web")
"""What the state has no business with."""

CONTRACT_FIELDS = (
    "server_id conn_id binary_conn_id device_name remote binary_version close_code "
    "err path duration frames bytes listen mode version reason"
)
"""The closed list of the contract's section on logging."""

LOG_CALLS = frozenset(
    {"critical", "debug", "emit", "err", "error", "exception", "failure", "fatal", "info"}
    | {"log", "msg", "trace", "warn", "warning"}
)


class Import(NamedTuple):
    """One imported name; ``name`` is empty where a whole module is imported."""

    module: str
    name: str
    inside: tuple[str, ...]
    """The functions around the import, outermost first."""

    @property
    def full(self) -> str:
        return f"{self.module}.{self.name}" if self.name else self.module


parse = cache(ast.parse)


@cache
def imports(source: str) -> list[Import]:
    """Return every import of a module, wherever it stands."""
    return [*_imports(parse(source), ())]


def _imports(node: ast.AST, inside: tuple[str, ...]) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, "", inside)
        elif isinstance(child, ast.ImportFrom):
            module = child.module or ""
            if child.level:
                module = f"pyrycode_relay.{module}".rstrip(".")
            for alias in child.names:
                yield Import(module, alias.name, inside)
        else:
            deeper = inside
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                deeper = (*inside, child.name)
            yield from _imports(child, deeper)


def within(name: str, *packages: str) -> bool:
    """Whether a dotted name is one of ``packages`` or lies in one."""
    return any(name == each or name.startswith(each + ".") for each in packages)


@cache
def siblings(source: str) -> frozenset[str]:
    """Return the modules of the package that a module imports."""
    found = set()
    for each in imports(source):
        if within(each.full, "pyrycode_relay"):
            parts = each.full.split(".")[1:]
            ways = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
            # A name that is none of ours is another module's, or no module at all.
            module = next((way for way in ways if way in SOURCES), None)
            if module is None and parts and not parts[0].startswith("__"):
                module = f"{parts[0]}.__init__" if f"{parts[0]}.__init__" in SOURCES else parts[0]
            found.add(module or "__init__")
    return frozenset(found)


def level(module: str) -> int:
    """Return a module's level, or that of its package; one without is above all."""
    return LEVELS.get(module, LEVELS.get(module.partition(".")[0], sys.maxsize))


def is_probe(module: str) -> bool:
    """Whether a module is the probe's."""
    return within(module, "probe")


def upward(module: str, source: str) -> list[str]:
    """Return the imports that point to a higher level, or to no level at all."""
    return sorted(each for each in siblings(source) if level(each) > level(module))


def foreign(module: str, source: str) -> list[str]:
    """Return what a module imports that its level has no business with."""
    found = []
    for each in imports(source):
        own = within(each.module, "pyrycode_relay", "__future__")
        standard = each.module.partition(".")[0] in sys.stdlib_module_names
        bare = within(module, *CONTRACT)
        contract = bare and not (own or standard or within(each.module, "msgspec"))
        state = within(module, *STATE) and within(each.full, *SOCKETS)
        if contract or state:
            found.append(each.full)
    return found


def autobahns(module: str, source: str) -> list[str]:
    """Return what a module takes from Autobahn without being the one that may."""
    allowed = AUTOBAHN.get(module, set())
    if allowed is None:
        return []
    tree = parse(source)
    found = []
    for each in imports(source):
        if not within(each.full, "autobahn", "txaio"):
            continue
        taken = {each.name}
        if not each.name or each.name[0].islower():
            # A module was imported: what is taken are the attributes that are used of it.
            name = each.name or each.module.partition(".")[0]
            taken = {
                node.attr
                for node in ast.walk(tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == name
            } or {name}
        if not taken <= allowed:
            found.append(each.full)
    return found


def reactors(module: str, source: str) -> list[str]:
    """Return the imports of a reactor but for the one in ``tap.makeService``."""
    return [
        each.full
        for each in imports(source)
        if within(each.full, "twisted.internet")
        and any(part.endswith("reactor") for part in each.full.split("."))
        and (module, each.inside[:1]) != ("tap", ("makeService",))
    ]


def events_told(source: str) -> list[ast.Call]:
    """Return the calls of an observer's ``saw``."""
    return [
        node
        for node in ast.walk(parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "saw"
    ]


def unlisted(source: str) -> list[str]:
    """Return the fields told to an observer that are not on the closed list.

    ``**fields`` is for an observer that passes on what it was told, and for nobody else.
    """
    found = []
    passed_on = {
        call.lineno
        for function in ast.walk(parse(source))
        if isinstance(function, ast.FunctionDef) and function.name == "saw"
        for call in ast.walk(function)
        if isinstance(call, ast.Call)
    }
    for call in events_told(source):
        if len(call.args) != 1 or isinstance(call.args[0], ast.Starred):
            found.append(f"line {call.lineno}: more than an event")
        for keyword in call.keywords:
            if keyword.arg is None:
                name = keyword.value.id if isinstance(keyword.value, ast.Name) else ""
                if name != "fields" or call.lineno not in passed_on:
                    found.append(f"line {call.lineno}: **")
            elif keyword.arg not in FIELDS:
                found.append(keyword.arg)
    return found


def other_logging(module: str, source: str) -> list[str]:
    """Return what a module logs, or could log, but for events and its own failures.

    Allowed is ``_bugs = Logger()`` and ``_bugs.failure("a literal")``, and that the command line
    answers whoever types it.
    """
    loggers = {name for name in ("_bugs", "_log") if f"{name} = Logger()\n" in source}
    found = [
        each.full
        for each in imports(source)
        if within(each.full, "logging", "txaio", "twisted.python.log", "warnings", "syslog")
        or (within(each.module, "twisted.logger") and each.name not in {"Logger", "ILogObserver"})
    ]
    for node in ast.walk(parse(source)):
        if isinstance(node, ast.Call) and not _is_bug_report(node, loggers):
            name = ast.unparse(node.func)
            to_terminal = name == "print" or name.startswith(("sys.stdout.", "sys.stderr."))
            if name.rpartition(".")[2] in LOG_CALLS or (to_terminal and module != "tap"):
                found.append(ast.unparse(node))
        if isinstance(node, ast.Assign) and "Logger(" in ast.unparse(node.value):
            line = ast.unparse(node)
            if line not in {f"{name} = Logger()" for name in loggers}:
                found.append(line)
    return found


def _is_bug_report(call: ast.Call, loggers: set[str]) -> bool:
    """Whether a call is ``_bugs.failure`` with a literal, which has nothing to fill in.

    Behind it the failure may stand, where it is not the exception being handled.
    """
    return (
        len(call.args) > 0
        and ast.unparse(call.func) in {f"{name}.failure" for name in loggers}
        and [*map(ast.unparse, call.args[1:])] in ([], ["failure"])
        and not call.keywords
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
        and "{" not in call.args[0].value
    )


SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path.read_text()
    for path in sorted(PACKAGE.rglob("*.py"))
}
MODULES = {module.replace(".", "_"): (module,) for module in SOURCES}


class LayerTests(Cases):
    def test_every_module_has_a_level(self) -> None:
        """The table of levels names just the packages and modules that there are."""
        named = {each for each in SOURCES if each in LEVELS}
        packages = {each.partition(".")[0] for each in set(SOURCES) - named}
        self.assertEqual(named | packages - {"probe"}, set(LEVELS))

    @cases(MODULES)
    def test_downward(self, module: str) -> None:
        """A module imports those of its own level and of lower ones, no others."""
        self.assertEqual(upward(module, SOURCES[module]), [])

    def test_no_circles(self) -> None:
        """No module imports itself by way of others."""
        graph = {module: siblings(source) - {module} for module, source in SOURCES.items()}
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            self.fail(str(error))

    @cases(MODULES)
    def test_business(self, module: str) -> None:
        """The contract needs the standard library and msgspec, the state no sockets or clock."""
        self.assertEqual(foreign(module, SOURCES[module]), [])

    @cases(MODULES)
    def test_autobahn(self, module: str) -> None:
        """One module knows Autobahn; the endpoints know its refusal and its request."""
        self.assertEqual(autobahns(module, SOURCES[module]), [])

    @cases(MODULES)
    def test_reactor(self, module: str) -> None:
        """Nobody imports the reactor but the function that twistd calls for the service."""
        self.assertEqual(reactors(module, SOURCES[module]), [])


class ProbeTests(Cases):
    """The probe is another program, for another machine, that happens to be shipped along."""

    @cases({name: modules for name, modules in MODULES.items() if not is_probe(*modules)})
    def test_the_relay_does_without(self, module: str) -> None:
        """No module of the relay imports the probe, or the client library that it is made of.

        But for one function of that library, a compiled one that takes the mask off a frame.
        """
        taken = {each.full for each in imports(SOURCES[module]) if within(each.full, "websockets")}
        masks = {"websockets.speedups.apply_mask", "websockets.utils.apply_mask"}
        self.assertEqual(taken, masks if module == "websocket.connection" else set())
        self.assertFalse([each for each in siblings(SOURCES[module]) if is_probe(each)])

    @cases({name: modules for name, modules in MODULES.items() if is_probe(*modules)})
    def test_the_probe_does_without(self, module: str) -> None:
        """The probe shares names and numbers with the relay, and no code that could be wrong."""
        shared = {each for each in siblings(SOURCES[module]) if not is_probe(each)}
        self.assertLessEqual(shared, {"__init__", "protocol.close_codes", "protocol.__init__"})


class PluginTests(Cases):
    def test_plugin(self) -> None:
        """The plugin is one `ServiceMaker` and imports nothing else: twistd loads every plugin."""
        source = (PLUGINS / "pyrycode_relay_plugin.py").read_text()
        self.assertEqual(
            [each.full for each in imports(source)], ["twisted.application.service.ServiceMaker"]
        )
        kinds = [type(node) for node in parse(source).body]
        self.assertEqual(kinds, [ast.Expr, ast.ImportFrom, ast.Assign])
        self.assertIn("'pyrycode_relay.tap'", ast.unparse(parse(source).body[2]))

    def test_no_package(self) -> None:
        """An ``__init__.py`` here would hide Twisted's own plugins."""
        for folder in (PLUGINS, PLUGINS.parent):
            self.assertEqual([*folder.glob("__init__.*")], [])


class LogTests(Cases):
    def test_fields(self) -> None:
        """The fields that an event may have are the contract's closed list."""
        self.assertEqual(set(FIELDS), set(CONTRACT_FIELDS.split()))

    @cases(MODULES)
    def test_listed(self, module: str) -> None:
        """Each field that is told to an observer is on the list."""
        self.assertEqual(unlisted(SOURCES[module]), [])

    def test_something_is_told(self) -> None:
        """The calls that the last test is about are found."""
        told = {module: len(events_told(source)) for module, source in SOURCES.items()}
        for module in (
            "endpoints.binary",
            "endpoints.phone",
            "http.relay_site",
            "endpoints.context",
        ):
            self.assertGreater(told[module], 0, module)

    @cases(
        {
            name: (each,)
            for name, (each,) in MODULES.items()
            if each != "monitoring.event_log" and not is_probe(each)
        }
    )
    def test_nothing_else(self, module: str) -> None:
        """Nothing is logged but events, and bugs by a literal."""
        self.assertEqual(other_logging(module, SOURCES[module]), [])


class OffenderTests(Cases):
    @cases(
        {
            "module": ("protocol.close_codes", "import pyrycode_relay.websocket.connection"),
            "name": ("registry.slot", "from pyrycode_relay.endpoints.context import Exchange"),
            "sibling": ("registry.registry", "from pyrycode_relay import service"),
            "relative": ("limits", "from . import service"),
            "relative_name": ("limits", "from .service import RelayService"),
            "for_types": (
                "websocket.poller",
                "if TYPE_CHECKING:\n    from pyrycode_relay.endpoints.phone import PhoneProtocol",
            ),
            "in_a_function": (
                "registry.queues",
                "def f():\n    from pyrycode_relay import service",
            ),
            "no_level": ("tap", "from pyrycode_relay.attic import thing"),
            "no_level_module": ("tap", "import pyrycode_relay.attic"),
            "in_a_folder": ("probe.report", "from pyrycode_relay.probe.dial import Dial"),
        }
    )
    def test_upward(self, module: str, source: str) -> None:
        """An import that points up, or to a module without a level, is found in any spelling."""
        self.assertEqual(len(upward(module, source)), 1)

    @cases(
        {
            "twisted": ("protocol.close_codes", "from twisted.internet import defer"),
            "third_party": ("protocol.envelope", "import attrs"),
            "web": ("registry.slot", "from twisted.web import http"),
            "web_package": ("registry.registry", "import twisted.web"),
            "autobahn": ("registry.queues", "from autobahn.websocket import types"),
            "socket": ("limits", "import socket"),
            "clock": ("limits", "from time import monotonic"),
        }
    )
    def test_foreign(self, module: str, source: str) -> None:
        """What a low level has no business with is found."""
        self.assertEqual(len(foreign(module, source)), 1)

    @cases(
        {
            "anywhere": ("http.relay_site", "from autobahn.websocket.types import ConnectionDeny"),
            "too_much": (
                "endpoints.phone",
                "from autobahn.twisted.websocket import WebSocketServer",
            ),
            "module": ("service", "from autobahn import websocket\nwebsocket.protocol"),
            "package": ("monitoring.event_log", "import autobahn"),
            "txaio": ("monitoring.event_log", "import txaio"),
            "aside": ("service", "from autobahn import websocket\nwebsocket.USES_NVX\nwebsocket.x"),
        }
    )
    def test_autobahn(self, module: str, source: str) -> None:
        """What is taken from Autobahn elsewhere is found."""
        self.assertEqual(len(autobahns(module, source)), 1)

    @cases(
        {
            "above": ("tap", "from twisted.internet import reactor"),
            "elsewhere": (
                "service",
                "def makeService():\n    from twisted.internet import reactor",
            ),
            "other_function": ("tap", "def other():\n    from twisted.internet import reactor"),
            "module": ("websocket.poller", "import twisted.internet.reactor"),
            "one_of_them": ("http.relay_site", "from twisted.internet.epollreactor import install"),
        }
    )
    def test_reactor(self, module: str, source: str) -> None:
        """A reactor that is imported elsewhere is found."""
        self.assertEqual(len(reactors(module, source)), 1)

    @cases(
        {
            "field": ("observer.saw(Event.STARTING, token=1)",),
            "spread": ("def f(**fields):\n    observer.saw(event, **fields)",),
            "other_spread": ("def saw(event, **fields):\n    each.saw(event, **headers)",),
            "positional": ("observer.saw(Event.STARTING, payload)",),
        }
    )
    def test_unlisted(self, source: str) -> None:
        """A field that is not on the list, or could be anything, is found."""
        self.assertEqual(len(unlisted(source)), 1)

    @cases(
        {
            "formatted": ("_bugs = Logger()\n_bugs.failure(f'a bug at {peer}')",),
            "filled_in": ("_bugs = Logger()\n_bugs.failure('a bug at {peer}', peer=peer)",),
            "to_fill_in": ("_bugs = Logger()\n_bugs.failure('a bug at {peer}')",),
            "level": ("_bugs = Logger()\n_bugs.info('a literal')",),
            "own_log": ("self.log.debug('x')",),
            "logger": ("other = Logger()",),
            "namespace": ("_bugs = Logger(namespace='x')",),
            "logging": ("import logging",),
            "old": ("from twisted.python import log",),
            "print": ("print(payload)",),
            "terminal": ("sys.stderr.write(payload)",),
            "publisher": ("from twisted.logger import globalLogPublisher",),
        }
    )
    def test_other_logging(self, source: str) -> None:
        """Whatever else could bring a peer's data into the log is found."""
        self.assertEqual(len(other_logging("websocket.poller", source)), 1)

    @cases(
        {
            "down": (upward, "service", "from pyrycode_relay import __version__"),
            "beside": (upward, "registry.slot", "from pyrycode_relay.registry.queues import Hold"),
            "msgspec": (
                foreign,
                "protocol.envelope",
                "import msgspec, json\nfrom msgspec import Raw",
            ),
            "clock": (
                foreign,
                "registry.registry",
                "from twisted.internet.interfaces import IDelayedCall",
            ),
            "nvx": (autobahns, "service", "from autobahn import websocket\nwebsocket.USES_NVX"),
            "deny": (
                autobahns,
                "endpoints.phone",
                "from autobahn.websocket.types import ConnectionDeny",
            ),
            "bug": (other_logging, "websocket.poller", "_bugs = Logger()\n_bugs.failure('a bug')"),
            "answer": (other_logging, "tap", "sys.stdout.write(__version__)"),
            "tap": (
                reactors,
                "tap",
                "def makeService():\n    from twisted.internet import reactor",
            ),
        }
    )
    def test_no_offence(self, rule, module: str, source: str) -> None:  # type: ignore[no-untyped-def]
        """What is allowed is not found."""
        self.assertEqual(rule(module, source), [])
