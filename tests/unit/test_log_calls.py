"""Only events reach the log, with fields of a closed list, and bugs by a literal.

Each rule is a function from a module's source to its offences, and is tried on offenders too.
"""

from __future__ import annotations

import ast

from pyrycode_relay.events import FIELDS
from tests.unit.bench import Cases, cases
from tests.unit.sources import MODULES, SOURCES, Source, within

CONTRACT_FIELDS = (
    "server_id id_hash conn_id device_name remote holder binary_version close_code "
    "err path duration frames lines bytes size limit listen mode version reason "
    "capacity binaries phones aborted certificates retry_in enforcement "
    "token_fp message_id url authority suppressed worker workers pid"
)
"""The closed list of the contract's section on logging."""

LOG_CALLS = frozenset(
    {"critical", "debug", "emit", "err", "error", "exception", "failure", "fatal", "info"}
    | {"log", "msg", "trace", "warn", "warning"}
)


TERMINAL = {"__main__", "tap", "process"}
"""The modules that write to the terminal."""


def events_told(source: Source) -> list[ast.Call]:
    """Return the calls of an observer's ``saw``, and of what makes the log's own lines."""
    return [
        call
        for call in source.calls
        if isinstance(call.func, ast.Attribute) and call.func.attr in {"saw", "event_line"}
    ]


def unlisted(source: Source) -> list[str]:
    """Return the fields told to an observer that are not on the closed list.

    ``**fields`` is for an observer that passes on what it was told, and for no other.
    """
    found = []
    passed_on = {
        call.lineno
        for function in source.nodes
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


def other_logging(source: Source) -> list[str]:
    """Return what a module logs, or could log, but for events and its own failures.

    Allowed are ``_bugs = Logger()`` and ``_bugs.failure("a literal")``, and that the modules of the
    command line write to the terminal.
    """
    loggers = {name for name in ("_bugs", "_log") if f"{name} = Logger()\n" in source.text}
    found = [
        each.full
        for each in source.imports
        if within(each.full, "logging", "txaio", "twisted.python.log", "warnings", "syslog")
        or (within(each.module, "twisted.logger") and each.name not in {"Logger", "ILogObserver"})
    ]
    for node in source.nodes:
        if isinstance(node, ast.Call) and not _is_bug_report(node, loggers):
            name = ast.unparse(node.func)
            to_terminal = name == "print" or name.startswith(("sys.stdout.", "sys.stderr."))
            to_terminal = to_terminal and source.module not in TERMINAL
            if to_terminal or name.rpartition(".")[2] in LOG_CALLS:
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


WRITERS = {"monitoring.event_log", "push.webpush_key"}
"""What writes by itself: the log, and a program of its own beside the probe."""


class LogTests(Cases):
    def test_fields(self) -> None:
        """The fields that an event may have are the contract's closed list."""
        self.assertEqual(set(FIELDS), set(CONTRACT_FIELDS.split()))

    @cases(MODULES)
    def test_calls(self, source: Source) -> None:
        """A module logs listed fields of events, and bugs by a literal, and nothing else."""
        self.assertEqual(unlisted(source), [])
        if source.module not in WRITERS and not source.is_probe:
            self.assertEqual(other_logging(source), [])

    def test_something_is_told(self) -> None:
        """The calls that the last test is about are found."""
        told = {module: len(events_told(source)) for module, source in SOURCES.items()}
        tellers = ("endpoints.binary", "endpoints.phone", "endpoints.context", "http.relay_site")
        for module in tellers:
            self.assertGreater(told[module], 0, module)


class OffenderTests(Cases):
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
        self.assertEqual(len(unlisted(Source("module", source))), 1)

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
        self.assertEqual(len(other_logging(Source("websocket.poller", source))), 1)

    @cases(
        {
            "bug": ("websocket.poller", "_bugs = Logger()\n_bugs.failure('a bug')"),
            "answer": ("tap", "sys.stdout.write(__version__)"),
        }
    )
    def test_no_offence(self, module: str, source: str) -> None:
        """What is allowed is not found."""
        self.assertEqual(other_logging(Source(module, source)), [])
