"""The log: one line an event, bounded for each peer, and nothing of what a peer sent."""

from __future__ import annotations

import errno
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.logger import Logger, LogLevel, LogPublisher, globalLogPublisher
from twisted.python import log as legacy
from twisted.web._newclient import HTTPClientParser

from pyrycode_relay.events import Event, Level, LineLimit
from pyrycode_relay.http.admission import Bound, Enforcement
from pyrycode_relay.http.paths import PathFault
from pyrycode_relay.http.proxy_protocol import ProxyRefusal
from pyrycode_relay.monitoring import event_log
from pyrycode_relay.monitoring.event_log import EventLog, LineFormat, Writer, watch_accept
from pyrycode_relay.protocol.close_codes import EndCause
from pyrycode_relay.protocol.envelope import EnvelopeFault
from pyrycode_relay.protocol.header_gate import UpgradeRefusal
from tests.unit.bench import Cases, cases, examples

SECRET = "-".join(["hunter2", "do", "not", "tell"])
OWN = "pyrycode_relay.websocket.connection"
OTHER = "twisted.internet.tcp"
CALM = {event.label: (event,) for event in Event if event.line_limit is LineLimit.NONE}
FLOODS = {event.label: (event,) for event in Event if event.label not in CALM}
STRANGERS = {event.label: (event,) for event in Event if event.line_limit is LineLimit.TOTAL}


class Text:
    """An output that keeps what is written."""

    def __init__(self) -> None:
        self.written = ""
        self.levels: list[Level] = []

    def start(self) -> None:
        """Do nothing: everything is written at once."""

    def write(self, text: str, level: Level) -> None:
        self.written += text + "\n"
        self.levels.append(level)


class LogCase(Cases):
    """Makes logs that write into a string."""

    def setUp(self) -> None:
        self.clock = Clock()
        self.output = Text()

    def lines(self) -> list[str]:
        """Return what was written."""
        return self.output.written.splitlines()

    def event_log(self, threshold: Level = Level.INFO, as_json: bool = False) -> EventLog:
        """Return a log of events, as `RelayService` has it."""
        writer = Writer(self.output, threshold, LineFormat(as_json))
        globalLogPublisher.addObserver(writer)
        self.addCleanup(globalLogPublisher.removeObserver, writer)
        return EventLog(threshold, self.clock.seconds)

    def logger(self, namespace: str, threshold: Level, as_json: bool = False) -> Logger:
        """Return a logger of somebody's whose lines go through a writer."""
        return Logger(
            namespace=namespace, observer=Writer(self.output, threshold, LineFormat(as_json))
        )


class LineTests(LogCase):
    def test_text(self) -> None:
        """An event is a line: time, level, name, and its fields in their order."""
        self.event_log().saw(Event.SERVER_CLAIMED, server_id="home", binary_version="1.2")
        [line] = self.lines()
        self.assertRegex(
            line,
            r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00 info "
            r"server_claimed server_id=home binary_version=1\.2\Z",
        )

    def test_json_is_formatted_once(self) -> None:
        """A JSON line is made from the fields alone: nobody asks for the text as well."""

        def refuse(event: object) -> str:
            raise AssertionError(event)

        self.patch(event_log, "formatEvent", refuse)
        self.event_log(as_json=True).saw(Event.SERVER_CLAIMED, server_id="home")
        [line] = self.lines()
        self.assertEqual(json.loads(line)["server_id"], "home")

    def test_json(self) -> None:
        """As JSON it is an object with time, level, event and the fields, numbers as numbers."""
        self.event_log(as_json=True).saw(
            Event.PHONE_UNREGISTERED, conn_id='a"b', close_code=1001, duration=1.5
        )
        [line] = self.lines()
        found = json.loads(line)
        self.assertRegex(found.pop("time"), r"\A\d{4}-\d\d-\d\dT.*\+00:00\Z")
        self.assertEqual(
            found,
            {
                "level": "info",
                "event": "phone_unregistered",
                "conn_id": 'a"b',
                "close_code": 1001,
                "duration": 1.5,
            },
        )

    @cases(
        {
            f"{type(cause).__name__}_{cause.name}": (cause,)
            for cause in (
                *EndCause,
                *EnvelopeFault,
                *UpgradeRefusal,
                *PathFault,
                *Enforcement,
                *Bound,
                *ProxyRefusal,
            )
        }
    )
    def test_cause(self, cause: object) -> None:
        """A cause is written as its text, in both formats."""
        self.event_log()
        self.event_log(as_json=True).saw(Event.SERVER_CLAIMED, reason=cause)
        as_text, as_json_text = self.lines()
        self.assertIn(json.dumps(str(cause))[1:-1], as_text)
        self.assertEqual(json.loads(as_json_text)["reason"], str(cause))

    @cases(
        {
            "address": ("192.0.2.1", "remote=192.0.2.1"),
            "ipv6": ("2001:db8::1", "remote=2001:db8::1"),
            "space": ("a b", 'remote="a b"'),
            "empty": ("", 'remote=""'),
            "quote": ('a"b', r'remote="a\"b"'),
            "backslash": ("a\\b", r'remote="a\\b"'),
            "equals": ("a=b", 'remote="a=b"'),
            "newline": ("a\nb", r'remote="a\nb"'),
            "escape": ("\x1b[31m", r'remote="\u001b[31m"'),
            "letters": ("Jürgen", r'remote="J\u00fcrgen"'),
            "braces": ("{text}{0}", 'remote="{text}{0}"'),
            "number": (7, "remote=7"),
        }
    )
    def test_value(self, value: object, shown: str) -> None:
        """A value that is more than a plain word stands in quotes, escaped, on one line."""
        self.event_log().saw(Event.SERVER_CLAIMED, remote=value)
        [line] = self.lines()
        self.assertEqual(line.partition("server_claimed ")[2], shown)

    @examples(60)
    @given(st.text(max_size=20), st.text(max_size=20), st.booleans())
    def test_no_forged_line(self, first: str, second: str, as_json: bool) -> None:
        """Whatever the values, an event is one printable ASCII line that gives them back."""
        self.output.written = ""
        writer = Writer(self.output, Level.INFO, LineFormat(as_json))
        globalLogPublisher.addObserver(writer)
        try:
            EventLog(Level.INFO, self.clock.seconds).saw(
                Event.SERVER_CLAIMED, device_name=first, server_id=second
            )
        finally:
            globalLogPublisher.removeObserver(writer)
        [line] = self.lines()
        self.assertTrue(line.isascii() and line.isprintable())
        if as_json:
            found = json.loads(line)
            self.assertEqual((found["device_name"], found["server_id"]), (first, second))

    @cases({"text": (False,), "json": (True,)})
    def test_about_itself(self, as_json: bool) -> None:
        """What the log says of itself is a line like any other, at the time of its making."""
        line_format = LineFormat(as_json, lambda: 0.5)
        lines = [
            line_format.dropped(7),
            line_format.not_reopened(OSError(errno.EACCES, "Permission denied", SECRET)),
        ]
        self.assertNotIn(SECRET, "".join(lines))
        if as_json:
            lines = [
                " ".join(map(str, json.loads(line).values())).replace("Permission denied", "denied")
                for line in lines
            ]
            shown = ["7", "denied"]
        else:
            shown = ["lines=7", 'err="Permission denied"']
        start = "1970-01-01T00:00:00.500+00:00 warn"
        self.assertEqual(
            lines,
            [f"{start} log_lines_dropped {shown[0]}", f"{start} log_reopen_failed {shown[1]}"],
        )

    def test_level(self) -> None:
        """The output is told the level of each line."""
        log = self.event_log()
        log.saw(Event.SERVER_CLAIMED)
        log.saw(Event.RATE_LIMITED)
        self.logger(OTHER, Level.INFO).critical("by somebody")
        self.assertEqual(self.output.levels, [Level.INFO, Level.WARN, Level.ERROR])


class ThresholdTests(LogCase):
    @cases({level.name.lower(): (level,) for level in Level})
    def test_threshold(self, threshold: Level) -> None:
        """Events below the threshold leave no line; those at it or above leave one."""
        log = self.event_log(threshold)
        for event in Event:
            log.saw(event, remote=event.label)
        shown = {line.split(" ")[2] for line in self.lines()}
        self.assertEqual(shown, {event.label for event in Event if event.level >= threshold})

    @cases(
        {
            "quiet": (LogLevel.info, Level.INFO, False),
            "warning": (LogLevel.warn, Level.INFO, True),
            "error": (LogLevel.error, Level.INFO, True),
            "critical": (LogLevel.critical, Level.ERROR, True),
            "warning_at_error": (LogLevel.warn, Level.ERROR, False),
            "debug_at_debug": (LogLevel.debug, Level.DEBUG, True),
            "debug_at_info": (LogLevel.debug, Level.INFO, False),
        }
    )
    def test_others(self, level: Any, threshold: Level, shown: bool) -> None:
        """Of what others log, warnings and errors are shown, and all of it at debug."""
        self.logger(OTHER, threshold).emit(level, "by somebody")
        self.assertEqual(len(self.lines()), int(shown))

    def test_ours(self) -> None:
        """What the relay's own modules log is shown from the threshold on."""
        self.logger(OWN, Level.INFO).info("by us")
        self.logger(OWN, Level.INFO).debug("by us, quietly")
        self.assertEqual(len(self.lines()), 1)

    @cases(
        {
            "autobahn": ("autobahn.websocket.protocol",),
            "txaio": ("txaio.tx",),
            "answers": (f"{HTTPClientParser.__module__}.{HTTPClientParser.__qualname__}",),
        }
    )
    def test_library(self, namespace: str) -> None:
        """Nothing is shown, at no level, of what peers and push services could cause at will."""
        for level in LogLevel.iterconstants():
            self.logger(namespace, Level.DEBUG).emit(level, "peer 192.0.2.1")
        self.assertEqual(self.lines(), [])


class AcceptTests(LogCase):
    def test_told(self) -> None:
        """What a listener is short of is told; what happens to any server at times is not."""
        told: list[str] = []
        publisher = LogPublisher()
        self.patch(event_log, "globalLogPublisher", publisher)
        watch_accept(told.append)
        tcp = Logger(namespace="twisted.internet.tcp.Port", observer=publisher)
        tcp.info("EMFILE encountered; releasing reserved file descriptor.")
        tcp.info("EMFILE recovery: Closed socket from {address}", address="192.0.2.1")
        for error in ("ENFILE", "ENOMEM", "ENOBUFS", "ECONNABORTED"):
            tcp.info("Could not accept new connection ({acceptError})", acceptError=error)
        tcp.info("{protocol} starting on {port}", protocol="p", port=1)
        Logger(namespace="twisted.web", observer=publisher).info(
            "EMFILE encountered; by somebody else"
        )
        self.assertEqual(told, ["EMFILE", "ENFILE", "ENOMEM", "ENOBUFS"])


class FloodTests(LogCase):
    def saw(self, log: EventLog, event: Event, times: int, remote: str = "192.0.2.1") -> int:
        """Have an event seen so many times; return how many lines that made."""
        before = len(self.lines())
        for _ in range(times):
            log.saw(event, remote=remote)
        return len(self.lines()) - before

    @cases(FLOODS)
    def test_bounded(self, event: Event) -> None:
        """What a peer can repeat at will leaves a few lines and then one now and again."""
        log = self.event_log(Level.DEBUG)
        self.assertLess(self.saw(log, event, 1000), 10)
        self.clock.advance(60)
        self.assertIn(self.saw(log, event, 1000), range(1, 10))

    @cases(STRANGERS)
    def test_bounded_in_all(self, event: Event) -> None:
        """What anybody can cause leaves six lines a minute, however many addresses cause it, and
        each line has the number of those left out before it."""
        log = self.event_log()
        for number in range(1000):
            self.saw(log, event, 1, f"192.0.2.{number % 250}")
        self.assertEqual([line.split()[-1] for line in self.lines()], ["suppressed=0"] * 6)
        self.clock.advance(9.75)
        self.assertEqual(self.saw(log, event, 1), 0)
        self.clock.advance(0.25)
        self.assertEqual(self.saw(log, event, 2), 1)
        self.assertTrue(self.lines()[-1].endswith(" suppressed=995"))
        for _ in range(24 * 60):
            self.clock.advance(60)
            self.saw(log, event, 7)
        self.assertLess(len(self.output.written), 1_500_000, "bytes in a day")

    @cases(STRANGERS)
    def test_below_the_threshold(self, event: Event) -> None:
        """A line that the threshold leaves out anyway is not counted as left out."""
        self.assertEqual(self.saw(self.event_log(Level.WARN), event, 10), 0)

    @cases(CALM)
    def test_not_bounded(self, event: Event) -> None:
        """All other events are shown each time."""
        self.assertEqual(self.saw(self.event_log(Level.DEBUG), event, 50), 50)

    def test_one_network(self) -> None:
        """The addresses of one IPv6 network count as one peer: somebody has them all."""
        log = self.event_log()
        event = Event.PUSH_WAKE_DROPPED
        got = [self.saw(log, event, 1, f"2001:db8:0:1::{number}") for number in range(8)]
        self.assertEqual(sum(got), 5)
        self.assertEqual(self.saw(log, event, 1, "2001:db8:0:2::1"), 1)

    def test_each_peer(self) -> None:
        """A peer that floods takes no line from another one."""
        log = self.event_log()
        self.saw(log, Event.PHONE_FRAME_REFUSED, 1000)
        self.assertEqual(self.saw(log, Event.PHONE_FRAME_REFUSED, 1, "192.0.2.2"), 1)

    def test_each_event(self) -> None:
        """An event that floods takes no line from another one of the same peer."""
        log = self.event_log()
        self.saw(log, Event.PHONE_FRAME_REFUSED, 1000)
        self.assertEqual(self.saw(log, Event.PUSH_WAKE_DROPPED, 1), 1)


class FailureTests(LogCase):
    def raise_deeply(self) -> None:
        """Raise an error that has a secret in it, and one behind it."""
        try:
            raise KeyError(SECRET)
        except KeyError:
            raise ValueError(f"cannot read {SECRET}") from None

    def logged(self, namespace: str, as_json: bool) -> str:
        """Return what is written of an error that somebody logs."""
        try:
            self.raise_deeply()
        except ValueError:
            self.logger(namespace, Level.INFO, as_json).failure("a bug costs this connection")
        return self.output.written

    @cases(
        {
            "ours": (OWN, False),
            "ours_json": (OWN, True),
            "others": (OTHER, False),
            "others_json": (OTHER, True),
        }
    )
    def test_traceback(self, namespace: str, as_json: bool) -> None:
        """An error leaves its traceback and its type, and never its text."""
        written = self.logged(namespace, as_json)
        self.assertNotIn(SECRET, written)
        self.assertIn("ValueError", written)
        self.assertIn("raise_deeply", written)

    def test_what_it_cost(self) -> None:
        """Of our own errors the log says what they cost."""
        self.assertIn("a bug costs this connection", self.logged(OWN, as_json=False))

    def test_one_json_line(self) -> None:
        """As JSON an error is one line too."""
        self.logged(OWN, as_json=True)
        [line] = self.lines()
        self.assertIn("raise_deeply", json.loads(line)["traceback"])

    @cases({"text": (False, None), "json": (True, None), "with_a_reason": (False, "why it failed")})
    def test_older_logging(self, as_json: bool, why: str | None) -> None:
        """Nor is the text shown of an error that Twisted's reactor logs the old way."""
        writer = Writer(self.output, Level.INFO, LineFormat(as_json))
        globalLogPublisher.addObserver(writer)
        self.addCleanup(globalLogPublisher.removeObserver, writer)
        try:
            self.raise_deeply()
        except ValueError:
            legacy.err(None, why)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        written = self.output.written
        self.assertNotIn(SECRET, written)
        self.assertIn("ValueError", written)
        self.assertIn("raise_deeply", written)

    def test_older_message(self) -> None:
        """What is logged the old way and is no error is as quiet as anybody's."""
        writer = Writer(self.output, Level.INFO, LineFormat(as_json=False))
        globalLogPublisher.addObserver(writer)
        self.addCleanup(globalLogPublisher.removeObserver, writer)
        legacy.msg("something started")
        self.assertEqual(self.lines(), [])

    @cases({"text": (False,), "json": (True,)})
    def test_without_a_traceback(self, as_json: bool) -> None:
        """An error whose frames are gone is named all the same."""
        from twisted.python.failure import Failure

        log = self.logger(OWN, Level.INFO, as_json)
        log.failure("an error without frames", Failure(ValueError(SECRET)))
        written = self.output.written
        self.assertIn("ValueError", written)
        self.assertNotIn(SECRET, written)
