"""The relay as a process: its checks, its signals, its log and its service manager."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn, Protocol

from twisted.application.service import IServiceCollection, Service
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver
from twisted.python.components import Componentized

from pyrycode_relay import startup_checks
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.events import Level
from pyrycode_relay.listeners import Listeners
from pyrycode_relay.monitoring.event_log import Writer
from pyrycode_relay.monitoring.log_output import is_journal, journal_prefix
from pyrycode_relay.sd_notify import Notifier
from pyrycode_relay.service import RelayService
from pyrycode_relay.startup_error import StartupError

STDERR: Final = 2
WRONG_CONFIGURATION: Final = 2
"""The exit status of a relay that cannot start as it is configured: a restart would not help."""


def fail(error: StartupError) -> NoReturn:
    """Report the problems on the terminal, and exit."""
    # When twistd starts services, sys.stderr is the log.
    stderr = sys.__stderr__ or sys.stderr
    prefix = journal_prefix(Level.ERROR) if is_journal(STDERR, os.environ) else ""
    for problem in error.problems:
        stderr.write(f"{prefix}pyrycode-relay: {problem}\n")
    raise SystemExit(WRONG_CONFIGURATION)


class Terminal:
    """The terminal that a daemon was started from, which twistd closes before the relay starts.

    twistd itself shows only the first 100 bytes of an error.
    """

    def __init__(self) -> None:
        self._descriptor: int | None = None
        with contextlib.suppress(OSError):
            self._descriptor = os.dup(STDERR)

    def show(self, error: StartupError) -> None:
        """Report the problems."""
        if self._descriptor is not None:
            text = "".join(f"pyrycode-relay: {problem}\n" for problem in error.problems)
            with contextlib.suppress(OSError):
                os.write(self._descriptor, text.encode())

    def close(self) -> None:
        """Let go of the terminal: its other end may wait for that."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def exit_now(status: int) -> NoReturn:
    """End the process with a status: twistd itself ends with 0 when the reactor stops."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Relay(Protocol):
    """A relay of one process, or the parent of several."""

    settings: Settings

    @property
    def listeners(self) -> Listeners:
        """The open listeners."""

    @property
    def replace(self) -> Callable[[], None] | None:
        """Replaces the workers; None for a relay of one process."""

    def privilegedStartService(self) -> None:
        """Open the listeners. Raises `StartupError`."""

    def close_listeners(self) -> None:
        """Close the listeners of a relay that does not start."""

    def startService(self) -> None:
        """Begin to serve. Raises `StartupError`."""

    def on_ready(self, call: Callable[[], None]) -> None:
        """Call ``call`` once the relay serves."""

    def reload(self) -> None:
        """Read the certificates again."""

    def stopService(self) -> Deferred[None]:
        """Drain."""


class Process(Service):
    """Runs a relay as a process.

    Args:
        relay: The relay.
        manager: Told when the relay is ready, reloads and stops.
        in_reactor: Runs a function in the reactor's thread.
        log: Writes the log once the process has forked; None leaves that to twistd.
        foreground: Whether twistd stays attached to its terminal.

    """

    name = RelayService.name

    def __init__(
        self,
        relay: Relay,
        manager: Notifier,
        in_reactor: Callable[..., object],
        log: Writer | None,
        *,
        foreground: bool,
    ) -> None:
        self._relay = relay
        self._manager = manager
        self._in_reactor = in_reactor
        self._log = log
        self._terminal = None if foreground else Terminal()

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Join twistd's application, and replace its log."""
        if self._log is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self._log)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Open the listeners, while twistd still has its privileges."""
        if self._log is not None:
            self._log.start()
        try:
            self._relay.privilegedStartService()
        except StartupError as error:
            self._end(error)
            raise
        super().privilegedStartService()

    def startService(self) -> None:
        """Check the process, whose privileges twistd has dropped, and begin to serve."""
        # Without a handler, SIGHUP ends the process.
        signal.signal(signal.SIGHUP, lambda *_: self._in_reactor(self.reload))
        replace = self._relay.replace
        if replace is not None:
            signal.signal(signal.SIGUSR2, lambda *_: self._in_reactor(replace))
        try:
            startup_checks.check_process(self._relay.settings, self._relay.listeners.ports)
            self._relay.startService()
        except StartupError as error:
            self._relay.close_listeners()
            self._end(error)
            raise
        super().startService()
        if self._terminal is not None:
            self._terminal.close()
        self._relay.on_ready(self._manager.ready)

    def reload(self) -> None:
        """Read the certificates again."""
        self._manager.reloading()
        self._relay.reload()
        self._manager.reloaded()

    def stopService(self) -> Deferred[None]:
        """Drain."""
        super().stopService()
        self._manager.stopping()
        return self._relay.stopService()

    def _end(self, error: StartupError) -> None:
        """Report why the relay does not start; a daemon's caller then raises the error.

        That error has the command that started the daemon exit with status 1.
        """
        if self._terminal is None:
            fail(error)
        self._terminal.show(error)
        for problem in error.problems:
            sys.stderr.write(f"pyrycode-relay: {problem}\n")
        # sys.stderr is the log, where a traceback would be of no use.
        sys.excepthook = lambda *_: None
