"""Imports point down: a table of packages, and who may know sockets, Autobahn and the reactor.

Each rule is a function from a module's source to its offences, and is tried on offenders too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from tests.unit.bench import Cases, cases
from tests.unit.sources import MODULES, SOURCES, Source, within

PLUGINS = Path(__file__).parents[2] / "twisted" / "plugins"

CONTRACT = (
    "__init__",
    "addresses",
    "events",
    "id_hash",
    "internals",
    "limits",
    "startup_error",
    "tally",
    "token_buckets",
    "protocol",
)
"""What has the standard library and msgspec only."""

LAYERS = (
    CONTRACT,
    (
        "registry",
        "tls",
        "config",
        "daemon_threads",
        "deadlines",
        "drain",
        "event_bus",
        "heap_trimmer",
        "sd_notify",
        "signals",
    ),
    ("acme", "listeners"),
    ("websocket",),
    ("http",),
    ("endpoints", "placement"),
    ("monitoring", "push", "start_report", "served_certificates"),
    ("startup_checks", "service"),
    ("process",),
    ("supervisor", "worker"),
    ("tap",),
    ("__main__", "worker_process"),
)
"""The packages, and the modules that are in none, lowest layer first. A module imports from the
layers below its own and from its own package, and from nothing else."""

PROBE = (
    ("probe.__init__", "probe.target", "probe.report"),
    ("probe.dial", "probe.wake"),
    ("probe.conversation",),
    ("probe.command",),
)
"""The layers of the probe, a program of its own above the contract: see `ProbeTests`."""

LEVELS = {
    place: level
    for rows in (LAYERS, (CONTRACT, *PROBE))
    for level, row in enumerate(rows)
    for place in row
}

STATE = (
    *CONTRACT,
    "registry",
    "http.admission",
    "http.capacity",
    "http.shared_limits",
    "http.shared_memory",
    "http.waiting_room",
    "acme.schedule",
)
"""What knows no sockets and is handed its clock."""

SOCKETS = ("socket", "ssl", "select", "selectors", "asyncio", "time", "autobahn", "twisted.web")
"""What the state must not import."""

AUTOBAHN = {
    "websocket.autobahn": None,
    "endpoints.binary": {"ConnectionDeny", "ConnectionRequest"},
    "endpoints.phone": {"ConnectionDeny", "ConnectionRequest"},
    "http.relay_site": {"ConnectionDeny"},
    "service": {"USES_NVX"},
}
"""What each module may take from Autobahn; None is anything."""


MASKS = {"websockets.speedups.apply_mask", "websockets.utils.apply_mask"}
"""What ``websocket.frames`` takes from the probe's client library: a compiled function."""


def place(module: str) -> str | None:
    """Return a module's entry in the table: its own or its package's; None if there is neither."""
    return next((each for each in (module, module.partition(".")[0]) if each in LEVELS), None)


def upward(source: Source) -> list[str]:
    """Return the imports that do not point to a lower layer or into the same package."""
    own = place(source.module)
    return sorted(
        module
        for module in source.siblings
        for other in [place(module)]
        if own is None or other is None or (other != own and LEVELS[other] >= LEVELS[own])
    )


def foreign(source: Source) -> list[str]:
    """Return the imports that a module's layer rules out."""
    found = []
    for each in source.imports:
        own = within(each.module, "pyrycode_relay", "__future__")
        standard = each.module.partition(".")[0] in sys.stdlib_module_names
        bare = within(source.module, *CONTRACT)
        contract = bare and not (own or standard or within(each.module, "msgspec"))
        state = within(source.module, *STATE) and within(each.full, *SOCKETS)
        if contract or state:
            found.append(each.full)
    return found


def autobahns(source: Source) -> list[str]:
    """Return what a module takes from Autobahn that the table does not allow it."""
    allowed = AUTOBAHN.get(source.module, set())
    if allowed is None:
        return []
    found = []
    for each in source.imports:
        if not within(each.full, "autobahn", "txaio"):
            continue
        taken = {each.name}
        if not each.name or each.name[0].islower():
            # A module was imported: what is taken are the attributes that are used of it.
            name = each.name or each.module.partition(".")[0]
            taken = {
                node.attr
                for node in source.nodes
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == name
            } or {name}
        if not taken <= allowed:
            found.append(each.full)
    return found


def reactors(source: Source) -> list[str]:
    """Return the imports of a reactor but for the one in ``tap.the_reactor``."""
    return [
        each.full
        for each in source.imports
        if within(each.full, "twisted.internet")
        and any(part.endswith("reactor") for part in each.full.split("."))
        and (source.module, each.inside[:1]) != ("tap", ("the_reactor",))
    ]


def probing(source: Source) -> list[str]:
    """Return what a module of the relay imports of the probe and of its client library.

    One module may take `MASKS`.
    """
    if source.is_probe:
        return []
    library = {each.full for each in source.imports if within(each.full, "websockets")}
    library -= MASKS if source.module == "websocket.frames" else set()
    return sorted(library | {each for each in source.siblings if within(each, "probe")})


RULES = (upward, foreign, autobahns, reactors, probing)


class LayerTests(Cases):
    def test_every_module_has_a_layer(self) -> None:
        """The table names just the packages and modules that there are, and none twice."""
        rows = [each for row in (*LAYERS, *PROBE) for each in row]
        self.assertEqual(len(rows), len(set(rows)))
        self.assertEqual({place(module) for module in SOURCES}, set(rows))

    @cases(MODULES)
    def test_imports(self, source: Source) -> None:
        """A module imports what all rules allow it."""
        found = {rule.__name__: rule(source) for rule in RULES}
        self.assertEqual({rule: offences for rule, offences in found.items() if offences}, {})

    def test_no_circles(self) -> None:
        """No module imports itself by way of others."""
        graph = {module: source.siblings - {module} for module, source in SOURCES.items()}
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            self.fail(str(error))


class ProbeTests(Cases):
    def test_the_relay_takes_one_function(self) -> None:
        """The function that the relay may take from the probe's library is in use."""
        self.assertLess(MASKS, {each.full for each in SOURCES["websocket.frames"].imports})

    @cases({name: row for name, row in MODULES.items() if row[0].is_probe})
    def test_the_probe_does_without(self, source: Source) -> None:
        """The probe shares names and numbers with the relay, and no code that could be wrong."""
        shared = {each for each in source.siblings if not SOURCES[each].is_probe}
        allowed = {f"protocol.{each}" for each in ("__init__", "close_codes", "probe_ids")}
        allowed.add("__init__")
        self.assertLessEqual(shared, allowed)


class PluginTests(Cases):
    def test_plugin(self) -> None:
        """The plugin is one `ServiceMaker` and imports nothing else: twistd loads every plugin."""
        plugin = Source("plugin", (PLUGINS / "pyrycode_relay_plugin.py").read_text())
        self.assertEqual(
            [each.full for each in plugin.imports], ["twisted.application.service.ServiceMaker"]
        )
        kinds = [type(node) for node in plugin.tree.body]
        self.assertEqual(kinds, [ast.Expr, ast.ImportFrom, ast.Assign])
        self.assertIn("'pyrycode_relay.tap'", ast.unparse(plugin.tree.body[2]))

    def test_no_package(self) -> None:
        """An ``__init__.py`` here would hide Twisted's own plugins."""
        for folder in (PLUGINS, PLUGINS.parent):
            self.assertEqual([*folder.glob("__init__.*")], [])


class OffenderTests(Cases):
    @cases(
        {
            "module": ("protocol.close_codes", "import pyrycode_relay.websocket.connection"),
            "name": ("registry.slot", "from pyrycode_relay.endpoints.context import RelayContext"),
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
            "beside": ("tls.store", "from pyrycode_relay.config.settings import Settings"),
            "no_level": ("tap", "from pyrycode_relay.attic import thing"),
            "no_level_module": ("tap", "import pyrycode_relay.attic"),
            "in_a_folder": ("probe.report", "from pyrycode_relay.probe.dial import Dial"),
        }
    )
    def test_upward(self, module: str, source: str) -> None:
        """An import that points up, beside, or to a module without a layer, in any spelling."""
        self.assertEqual(len(upward(Source(module, source))), 1)

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
        """An import that a low layer must not have is found."""
        self.assertEqual(len(foreign(Source(module, source))), 1)

    @cases(
        {
            "anywhere": ("http.server", "from autobahn.websocket.types import ConnectionDeny"),
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
        self.assertEqual(len(autobahns(Source(module, source))), 1)

    @cases(
        {
            "above": ("tap", "from twisted.internet import reactor"),
            "elsewhere": (
                "service",
                "def the_reactor():\n    from twisted.internet import reactor",
            ),
            "other_function": ("tap", "def other():\n    from twisted.internet import reactor"),
            "module": ("websocket.poller", "import twisted.internet.reactor"),
            "one_of_them": ("http.relay_site", "from twisted.internet.epollreactor import install"),
        }
    )
    def test_reactor(self, module: str, source: str) -> None:
        """A reactor that is imported elsewhere is found."""
        self.assertEqual(len(reactors(Source(module, source))), 1)

    @cases(
        {
            "library": ("tls.store", "from websockets.client import ClientProtocol"),
            "other_function": ("websocket.frames", "from websockets.utils import accept_key"),
            "elsewhere": ("endpoints.phone", "from websockets.utils import apply_mask"),
            "module": ("service", "from pyrycode_relay.probe.dial import Dial"),
        }
    )
    def test_probing(self, module: str, source: str) -> None:
        """The probe, or its library, in the relay is found."""
        self.assertEqual(len(probing(Source(module, source))), 1)

    @cases(
        {
            "down": (upward, "service", "from pyrycode_relay import __version__"),
            "beside": (
                upward,
                "registry.slot",
                "from pyrycode_relay.registry.queues import PendingFrames",
            ),
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
            "mask": (probing, "websocket.frames", "from websockets.utils import apply_mask"),
            "probe": (probing, "probe.dial", "from websockets.client import ClientProtocol"),
            "nvx": (autobahns, "service", "from autobahn import websocket\nwebsocket.USES_NVX"),
            "deny": (
                autobahns,
                "endpoints.phone",
                "from autobahn.websocket.types import ConnectionDeny",
            ),
            "tap": (
                reactors,
                "tap",
                "def the_reactor():\n    from twisted.internet import reactor",
            ),
        }
    )
    def test_no_offence(
        self, rule: Callable[[Source], list[str]], module: str, source: str
    ) -> None:
        """What is allowed is not found."""
        self.assertEqual(rule(Source(module, source)), [])
