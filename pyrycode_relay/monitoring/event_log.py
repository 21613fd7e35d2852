"""The log: one line per event, as text or as JSON. No peer can forge a line.

Source: "Logging" in ``docs/protocol.md``.
"""

from __future__ import annotations

import json
import time
import traceback
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    formatEvent,
    globalLogBeginner,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from pyrycode_relay.addresses import limit_key
from pyrycode_relay.events import Event, Level, LineLimit
from pyrycode_relay.limits import STRANGER_LINES
from pyrycode_relay.monitoring import probes
from pyrycode_relay.token_buckets import TokenBuckets

_NAMESPACE: Final = "pyrycode_relay"

_FLOOD_BURST: Final = 5
_FLOOD_RATE: Final = 0.1
"""`LineLimit.ADDRESS`, for each address and event: 5 lines at once, then one every 10 seconds."""
_FLOOD_KEYS: Final = 4096
"""Pairs of address and event that are remembered; some 200 bytes each."""

_LEVELS: Final = {
    LogLevel.debug: Level.DEBUG,
    LogLevel.info: Level.INFO,
    LogLevel.warn: Level.WARN,
    LogLevel.error: Level.ERROR,
    LogLevel.critical: Level.ERROR,
}
_TWISTED_LEVELS: Final = {
    Level.DEBUG: LogLevel.debug,
    Level.INFO: LogLevel.info,
    Level.WARN: LogLevel.warn,
    Level.ERROR: LogLevel.error,
}

_SHORTAGES: Final = frozenset({"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"})
"""Errors of accept(2) that mean a lack of open files or of memory."""

_FLOODING: Final = ("autobahn", "txaio", "twisted.web._newclient.HTTPClientParser")
"""Namespaces of which nothing is logged."""

_UNQUOTED: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+@,;[]()"
)
"""Characters that need no quotes in the text format."""


class EventLog:
    """The observer that writes events to Twisted's log.

    Args:
        threshold: Events below this level are dropped.
        seconds: The clock for the limit on events that a peer can repeat at will.

    """

    def __init__(self, threshold: Level, seconds: Callable[[], float]) -> None:
        self._threshold = threshold
        self._log = Logger(namespace=_NAMESPACE)
        self._buckets = TokenBuckets(_FLOOD_RATE, _FLOOD_BURST, seconds, _FLOOD_KEYS)
        self._totals = TokenBuckets(STRANGER_LINES / 60, STRANGER_LINES, seconds, len(Event))
        self._suppressed: Counter[Event] = Counter()
        """Lines of each event left out since its last line, by `LineLimit.TOTAL`."""

    def saw(self, event: Event, **fields: object) -> None:
        """Write a line, unless the event is below the threshold or too frequent."""
        level = probes.level(event, fields)
        if level < self._threshold:
            return
        match event.line_limit:
            case LineLimit.ADDRESS:
                address = limit_key(str(fields.get("remote")))
                if not self._buckets.take((event, address)):
                    return
            case LineLimit.TOTAL:
                if not self._totals.take(event):
                    self._suppressed[event] += 1
                    return
                fields["suppressed"] = self._suppressed.pop(event, 0)
        self._log.emit(_TWISTED_LEVELS[level], "{line}", line=_Line(event.label, fields))

    def write_line(self, line: str) -> None:
        """Write a line that another process has made."""
        self._log.emit(LogLevel.info, "{line}", line=line)


class _Line:
    """An event's name and fields; formatted only if an observer asks for text."""

    __slots__ = ("fields", "label")

    def __init__(self, label: str, fields: dict[str, object]) -> None:
        self.label = label
        self.fields = fields

    def __str__(self) -> str:
        named = (f"{name}={_quoted(value)}" for name, value in self.fields.items())
        return " ".join([self.label, *named])


def _quoted(value: object) -> str:
    text = str(value)
    return text if text and _UNQUOTED.issuperset(text) else json.dumps(text, ensure_ascii=True)


def begin_log(writer: Writer) -> None:
    """Have a process's log written by ``writer``; a process of twistd's has its own way."""
    globalLogBeginner.beginLoggingTo([writer], redirectStandardIO=False)
    writer.start()


def watch_accept(report: Callable[[str], None]) -> None:
    """Call ``report`` with the error's name when accept(2) fails for lack of files or memory.

    Twisted only logs such a failure, at a low level and with peers' addresses. It then closes the
    connection or tries again.
    """
    globalLogPublisher.addObserver(_AcceptWatch(report))


@implementer(ILogObserver)
class _AcceptWatch:
    def __init__(self, report: Callable[[str], None]) -> None:
        self._report = report

    def __call__(self, event: LogEvent) -> None:
        if not str(event.get("log_namespace")).startswith("twisted.internet."):
            return  # Only ports log these errors, such as twisted.internet.tcp.Port.
        error = event.get("acceptError")
        if str(event.get("log_format")).startswith("EMFILE encountered"):
            error = "EMFILE"
        if error in _SHORTAGES:
            self._report(error)


class LineFormat:
    """Makes lines, as text or as JSON.

    Args:
        as_json: Whether a line is a JSON object instead of text.
        wall: The time in seconds since 1970, for lines of the log about itself.
        worker: The index of the worker that logs; None if the relay is one process.

    """

    def __init__(
        self,
        as_json: bool,
        wall: Callable[[], float] = time.time,
        worker: int | None = None,
    ) -> None:
        self._as_json = as_json
        self._worker = worker
        self._wall = wall

    def line(
        self, log_time: float, level: Level, content: _Line | str, trace: str | None = None
    ) -> str:
        """Return the line of an event, or of a text of a library's.

        As text, the traceback ``trace`` is on lines below it.
        """
        when = datetime.fromtimestamp(log_time, UTC).isoformat(timespec="milliseconds")
        if not self._as_json:
            text = f"{when} {level.name.lower()} {content}".replace("\n", " ")
            if self._worker is not None:
                text += f" worker={self._worker}"
            return text if trace is None else f"{text}\n{trace}"
        line: dict[str, object] = {"time": when, "level": level.name.lower()}
        if isinstance(content, _Line):
            line |= {"event": content.label, **content.fields}
        else:
            line |= {"event": "message", "text": content}
        if self._worker is not None:
            line["worker"] = self._worker
        if trace is not None:
            line["traceback"] = trace
        return json.dumps(line, ensure_ascii=True, default=str)

    def event_line(self, event: Event, **fields: object) -> str:
        """Return the line of an event that happens now."""
        return self.line(self._wall(), event.level, _Line(event.label, fields))

    def dropped(self, lines: int) -> str:
        """Return the line that stands in the place of dropped ones."""
        return self.event_line(Event.LOG_LINES_DROPPED, lines=lines)

    def not_reopened(self, error: OSError) -> str:
        """Return the line that says that the log file could not be opened again."""
        return self.event_line(Event.LOG_REOPEN_FAILED, err=error.strerror)


class Output(Protocol):
    """A destination for lines."""

    def start(self) -> None:
        """Begin to write. Until then, lines wait."""

    def write(self, text: str, level: Level) -> None:
        """Write one or more lines, without the final newline; never waits."""


@implementer(ILogObserver)
class Writer:
    """Writes Twisted's log events as lines.

    Autobahn's events are dropped, because they contain peers' addresses and a peer could cause
    any number of them. So are those of Twisted's parser of answers, which a push service of a
    stranger's could cause. Other libraries' events are dropped below warn, unless ``threshold`` is
    debug. An exception is logged with its traceback and type. Its text is not logged, because it
    could quote a payload or a header.

    Args:
        output: The destination of the lines.
        threshold: Events below this level are dropped.
        line_format: Makes the lines.

    """

    def __init__(self, output: Output, threshold: Level, line_format: LineFormat) -> None:
        self._output = output
        self._threshold = threshold
        self._line_format = line_format

    def start(self) -> None:
        """Begin to write: the process no longer forks."""
        self._output.start()

    def __call__(self, event: LogEvent) -> None:
        """Write one event."""
        level = _LEVELS[event.get("log_level", LogLevel.info)]
        namespace = str(event.get("log_namespace", ""))
        least = self._least(namespace)
        if least is None or level < least:
            return
        # Twisted's older logging passes the failure under another key, with a text that quotes it.
        failure = event.get("log_failure") or event.get("failure")
        content: _Line | str
        relay_line = event.get("line")
        if isinstance(relay_line, _Line):
            content = relay_line
        elif failure is not None and not namespace.startswith(_NAMESPACE):
            content = "unhandled error"
        else:
            content = formatEvent(event)
        trace = None if failure is None else _traceback(failure)
        line = self._line_format.line(event["log_time"], level, content, trace)
        self._output.write(line, level)

    def _least(self, namespace: str) -> Level | None:
        """Return the lowest level that is logged for a namespace; None for no level at all."""
        if namespace.startswith(_FLOODING):
            return None
        if namespace.startswith(_NAMESPACE) or self._threshold is Level.DEBUG:
            return self._threshold
        return max(self._threshold, Level.WARN)

    def write_line(self, line: str) -> None:
        """Write a line that another process has made."""
        self._output.write(line, Level.INFO)


def _traceback(failure: Failure) -> str:
    frames = "".join(traceback.format_tb(failure.getTracebackObject()))
    kind = failure.type.__qualname__ if failure.type else "unknown error"
    return f"{frames}{kind}"
