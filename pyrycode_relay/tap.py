"""``twistd pyrycode-relay``: the command line, and the service it makes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NoReturn

from twisted.application.service import IServiceCollection
from twisted.internet.defer import Deferred
from twisted.logger import ILogObserver
from twisted.python import usage
from twisted.python.components import Componentized
from twisted.python.logfile import LogFile

from pyrycode_relay import __version__, startup_checks
from pyrycode_relay.config import toml_file
from pyrycode_relay.config.options import ENVIRONMENT_PREFIX, OPTIONS, Option, example
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.config.toml_file import ConfigFile
from pyrycode_relay.config.values import DOMAIN, FILE_OR_NONE, PATH
from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.monitoring.event_log import EventLog, Writer, watch_accept
from pyrycode_relay.sd_notify import Notifier
from pyrycode_relay.service import RelayService
from pyrycode_relay.signals import handle_signals
from pyrycode_relay.startup_error import StartupError


def _fail(problems: Sequence[str]) -> NoReturn:
    # By the time listeners are opened, sys.stderr goes to the log.
    stderr = sys.__stderr__ or sys.stderr
    for problem in problems:
        stderr.write(f"pyrycode-relay: {problem}\n")
    raise SystemExit(2)


def _completer(option: Option) -> usage.Completer:
    """Return what a shell offers for ``option``'s value."""
    if option.kind.words:
        return usage.CompleteList([*option.kind.words])
    if option.kind is DOMAIN:
        return usage.CompleteHostnames()
    # Of the others there is nothing to offer, and Twisted would offer files.
    return usage.CompleteFiles() if option.kind in {PATH, FILE_OR_NONE} else usage.Completer()


class Options(usage.Options):
    """The options of ``twistd pyrycode-relay``; afterwards, `settings` has what they mean."""

    synopsis = "[options]"
    longdesc = (
        "A WebSocket relay between phones and the pyry daemon. Every option can also be set in "
        "the environment, as PYRYCODE_RELAY_ and its name in capitals with underscores, and in a "
        "configuration file; the command line wins over the environment, and that over the file. "
        "What can be given more than once is separated by spaces in the environment. Times are "
        "in seconds and may have fractions."
    )
    optFlags = [  # noqa: RUF012 - twisted.python.usage wants a class attribute
        [
            "check-config",
            None,
            (
                "Print the settings that would be used, as a configuration file, each with where "
                "it comes from, and end."
            ),
        ],
        [
            "example-config",
            None,
            "Print a configuration file with every setting, its reason and its default, and end.",
        ],
    ]
    optParameters = [  # noqa: RUF012
        [
            "config",
            None,
            "",
            (
                "A configuration file: TOML, with these options' names (grace = 30), and lists "
                "for what can be given more than once. The environment and the command line win "
                "over it."
            ),
        ],
    ]
    # What a shell completes, by Twisted's own mechanism: zsh ships what calls it.
    compData = usage.Completions(
        descriptions={option.name: option.help.partition(". ")[0] for option in OPTIONS},
        multiUse=[option.name for option in OPTIONS if option.many],
        optActions={
            "config": usage.CompleteFiles("*.toml"),
            **{option.name: _completer(option) for option in OPTIONS if not option.is_switch},
        },
    )
    settings: Settings
    capacity: Capacity

    def __init__(self) -> None:
        self._given: dict[str, list[str]] = {}
        super().__init__()

    def opt_version(self) -> NoReturn:
        """Print the relay's version, and end."""
        sys.stdout.write(f"pyrycode-relay {__version__}\n")
        raise SystemExit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse; an option that does not exist is one sentence, not a page."""
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            _fail([f"{error}; see --help."])

    def parseArgs(self, *arguments: str) -> None:
        """Refuse arguments that are not options."""
        if arguments:
            _fail([f"{arguments[0]!r} is not an option; see --help."])

    def postOptions(self) -> None:
        """Read the settings; with ``--check-config`` print them and end."""
        if self["example-config"]:
            self._print(example())
        try:
            path = self["config"] or os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
            file = toml_file.read(path) if path else ConfigFile()
            self.settings = settings = Settings.read(self._given, os.environ, file)
            startup_checks.check_libraries(acme=settings.acme)
            self.capacity = Capacity.within(startup_checks.raise_open_files(), settings.limits)
        except StartupError as error:
            _fail(error.problems)
        if settings.production and (problems := [*startup_checks.exposed_addresses(settings)]):
            _fail(problems)
        if self["check-config"]:
            try:
                startup_checks.check_certificates(
                    settings, EventLog(settings.log_level, time.monotonic)
                )
            except StartupError as error:
                _fail(error.problems)
            self._print(settings.lines())

    def _print(self, lines: Iterable[str]) -> NoReturn:
        for line in lines:
            sys.stdout.write(line + "\n")
        raise SystemExit(0)

    @property
    def foreground(self) -> bool:
        """Whether twistd stays in the foreground."""
        return self.parent is None or bool(self.parent["nodaemon"])

    def writer(self, later: Callable[..., object]) -> Writer | None:
        """Return the log observer, or None when twistd was told to log to somewhere else.

        Written where twistd would write: to ``--logfile``, or to standard output in the
        foreground. ``later`` runs a function in the reactor's thread.
        """
        twistd = self.parent
        if twistd is None or twistd["logger"] or twistd["syslog"]:
            return None
        name, output = twistd["logfile"], sys.stdout
        if name == "-" and not self.foreground:
            _fail(["A daemon cannot log to standard output; give --logfile=FILE or --nodaemon."])
        if name not in {None, "", "-"} or not self.foreground:
            rotating = LogFile.fromFullPath(name or "twistd.log")
            # What twistd does itself when it makes the log.
            signal.signal(signal.SIGUSR1, lambda *_: later(rotating.rotate))
            output = rotating
        return Writer(output, self.settings.log_level, self.settings.log_format)


def _taking(option: Option) -> Callable[..., None]:
    """Return the method that twisted.python.usage calls for ``option``."""

    def take(self: Options, text: str) -> None:
        self._given.setdefault(option.name, []).append(text)

    def switch(self: Options) -> None:
        take(self, "yes")

    method = switch if option.is_switch else take
    method.__doc__ = option.help + (f" [default: {option.default}]" if option.default else "")
    return method


# Its introspection finds methods; a table of parameters could not take one more than once.
for _option in OPTIONS:
    setattr(Options, f"opt_{_option.field}", _taking(_option))


def makeService(options: Options) -> RelayService:
    """Make the relay's service from parsed options."""
    from twisted.internet import reactor  # noqa: PLC0415 - installs the reactor when imported

    settings = options.settings
    observers = [EventLog(settings.log_level, reactor.seconds)]
    service = _Process(reactor, settings, observers, capacity=options.capacity)
    service.foreground = options.foreground
    service.writer = options.writer(reactor.callFromThread)  # type: ignore[attr-defined]
    watch_accept(service.accept_failed)
    service.later = reactor.callFromThread  # type: ignore[attr-defined]
    service.manager = Notifier.from_environment(os.environ, os.getpid(), reactor)
    reactor.callWhenRunning(handle_signals, reactor.stop, reactor.callFromThread)  # type: ignore[attr-defined]
    return service


class _Process(RelayService):
    """The relay as a process of its own."""

    foreground = True
    writer: Writer | None = None
    later: Callable[..., object]
    """Runs a function in the reactor's thread."""
    manager: Notifier

    def setServiceParent(self, parent: IServiceCollection) -> None:
        """Join twistd's application, and have it log through our writer."""
        if self.writer is not None and isinstance(parent, Componentized):
            parent.setComponent(ILogObserver, self.writer)
        super().setServiceParent(parent)

    def privilegedStartService(self) -> None:
        """Open the listeners; one that cannot be opened ends the process with a sentence."""
        try:
            super().privilegedStartService()
        except StartupError as error:
            self._end(error.problems)
            raise

    def startService(self) -> None:
        """Begin to serve, unless the process should not; by now twistd has shed its privileges.

        SIGHUP, which would end the process, has the certificates read again.
        """
        if self.settings.production:
            listeners = zip(self.settings.insecure_listen, self.listeners.ports, strict=False)
            exposed = [
                startup_checks.exposed_socket(each, port.getHost()) for each, port in listeners
            ]
            problems = [*chain(*exposed, startup_checks.spare_power())]
            if problems:
                self.close_listeners()
                self._end(problems)
                raise StartupError(*problems)
        signal.signal(signal.SIGHUP, lambda *_: self.later(self.reload))
        try:
            super().startService()
        except StartupError as error:
            self.close_listeners()
            self._end(error.problems)
            raise
        self.manager.ready()

    def reload(self) -> None:
        """Read the certificates again, and tell the service manager."""
        self.manager.reloading()
        super().reload()
        self.manager.reloaded()

    def stopService(self) -> Deferred[None]:
        """Drain, and tell the service manager."""
        self.manager.stopping()
        return super().stopService()

    def _end(self, problems: Sequence[str]) -> None:
        """Say why the process ends; a daemon's caller has to raise an exception then."""
        if self.foreground:
            _fail(problems)
        # A daemon's twistd takes an exception to the terminal it was started from, and
        # sys.stderr is its log by now, where a traceback is of no use.
        for problem in problems:
            sys.stderr.write(f"pyrycode-relay: {problem}\n")
        sys.excepthook = lambda *_: None
