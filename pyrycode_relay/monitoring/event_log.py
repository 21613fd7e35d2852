"""The log: one line an event, as text or as JSON, and nothing that a peer could put into it.

Source: "Logging" in ``docs/protocol.md``.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final, Protocol

from twisted.logger import (
    ILogObserver,
    LogEvent,
    Logger,
    LogLevel,
    formatEvent,
    globalLogPublisher,
)
from twisted.python.failure import Failure
from zope.interface import implementer

from pyrycode_relay.addresses import limit_key
from pyrycode_relay.events import Event, Level
from pyrycode_relay.token_buckets import TokenBuckets

_NAMESPACE: Final = "pyrycode_relay"

_FLOOD_BURST: Final = 5
_FLOOD_RATE: Final = 0.1
"""Lines of one flooding event that one address may cause: 5 at once, then one in 10 seconds."""
_FLOOD_KEYS: Final = 4096
"""Addresses and events kept in mind at a time; some 200 bytes each."""

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

_WANTS: Final = frozenset({"EMFILE", "ENFILE", "ENOBUFS", "ENOMEM"})
"""Errors of accept() that say what this machine is short of."""

_PLAIN: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:/+@,;[]()"
)
"""Characters of a value that needs no quotes in the text format."""


class EventLog:
    """The observer that writes events to Twisted's log.

    Events below ``threshold`` go nowhere. Of those that a peer can repeat at will, an address
    gets a few lines through and then one now and again; ``seconds`` is the clock for that.
    """

    def __init__(self, threshold: Level, seconds: Callable[[], float]) -> None:
        self._threshold = threshold
        self._log = Logger(namespace=_NAMESPACE)
        self._buckets = TokenBuckets(_FLOOD_RATE, _FLOOD_BURST, seconds, _FLOOD_KEYS)

    def saw(self, event: Event, **fields: object) -> None:
        """Write a line, unless the event is too quiet or too frequent."""
        if event.level < self._threshold:
            return
        caller = limit_key(str(fields.get("remote")))
        if event.floods and not self._buckets.take((event, caller)):
            return
        self._log.emit(_TWISTED_LEVELS[event.level], "{line}", line=_Line(event.label, fields))


class _Line:
    """An event's name and fields; made text only for an observer that asks for text."""

    __slots__ = ("fields", "label")

    def __init__(self, label: str, fields: dict[str, object]) -> None:
        self.label = label
        self.fields = fields

    def __str__(self) -> str:
        named = (f"{name}={_quoted(value)}" for name, value in self.fields.items())
        return " ".join([self.label, *named])


def _quoted(value: object) -> str:
    text = str(value)
    return text if text and _PLAIN.issuperset(text) else json.dumps(text, ensure_ascii=True)


def watch_accept(tell: Callable[[str], None]) -> None:
    """Have ``tell`` called with the error's name when a listener cannot take a connection.

    Twisted just logs that, quietly and among peers' addresses, and closes the connection or tries
    again. It matters when it is for want of something: open files, memory.
    """
    globalLogPublisher.addObserver(_AcceptWatch(tell))


@implementer(ILogObserver)
class _AcceptWatch:
    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def __call__(self, event: LogEvent) -> None:
        if not str(event.get("log_namespace")).startswith("twisted.internet."):
            return  # It is twisted.internet.tcp.Port, or another kind of port.
        error = event.get("acceptError")
        if str(event.get("log_format")).startswith("EMFILE encountered"):
            error = "EMFILE"
        if error in _WANTS:
            self._tell(error)


class Output(Protocol):
    """Where lines go: a file, or Twisted's rotating one."""

    def write(self, text: str, /) -> object:
        """Write ``text``."""

    def flush(self) -> None:
        """Bring what was written out."""


@implementer(ILogObserver)
class Writer:
    """Turns Twisted's log events into lines on ``output``, ``as_json`` or as text.

    Of what others than the relay log, Autobahn's is left out altogether, for it carries peers'
    addresses and could be flooded, and the rest below a warning at the usual thresholds. Of an
    exception the traceback and the type are written but never the text, which could quote a
    payload or a header.
    """

    def __init__(self, output: Output, threshold: Level, as_json: bool) -> None:
        self._output = output
        self._threshold = threshold
        self._as_json = as_json

    def __call__(self, event: LogEvent) -> None:
        """Write one event."""
        level = _LEVELS[event.get("log_level", LogLevel.info)]
        namespace = str(event.get("log_namespace", ""))
        least = self._threshold
        if not namespace.startswith(_NAMESPACE):
            if namespace.startswith(("autobahn", "txaio")):
                return
            if least is not Level.DEBUG:
                least = max(least, Level.WARN)
        if level < least:
            return
        time = datetime.fromtimestamp(event["log_time"], UTC).isoformat(timespec="milliseconds")
        # Errors that Twisted's older logging takes come with a text that quotes them.
        failure = event.get("log_failure") or event.get("failure")
        unhandled = failure is not None and not namespace.startswith(_NAMESPACE)
        text = "an error that nobody handled" if unhandled else None
        if self._as_json:
            line: dict[str, object] = {"time": time, "level": level.name.lower()}
            told = event.get("line")
            if isinstance(told, _Line):
                line |= {"event": told.label, **told.fields}
            else:
                line |= {"event": "message", "text": text or formatEvent(event)}
            if failure is not None:
                line["traceback"] = _traceback(failure)
            self._write(json.dumps(line, ensure_ascii=True, default=str))
            return
        text = (text or formatEvent(event)).replace("\n", " ")
        self._write(f"{time} {level.name.lower()} {text}")
        if failure is not None:
            self._write(_traceback(failure))

    def _write(self, line: str) -> None:
        self._output.write(line + "\n")
        self._output.flush()


def _traceback(failure: Failure) -> str:
    frames = "".join(traceback.format_tb(failure.getTracebackObject()))
    kind = failure.type.__qualname__ if failure.type else "unknown error"
    return f"{frames}{kind}"
