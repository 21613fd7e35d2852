"""``twistd pyrycode-relay``: the command line, and the service that it makes."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from twisted.python import usage

from pyrycode_relay import __version__, startup_checks
from pyrycode_relay.config import completion, help_page, toml_file
from pyrycode_relay.config.options import (
    COMMAND_OPTIONS,
    ENVIRONMENT_PREFIX,
    OPTIONS,
    Option,
    example,
    suggestion,
)
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.config.toml_file import ConfigFile
from pyrycode_relay.config.values import (
    DIRECTORY,
    DOMAIN,
    FILE_OR_NONE,
    PATH,
    SECRET,
    SHELL,
    SWITCH,
)
from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.monitoring.event_log import (
    EventLog,
    LineFormat,
    Writer,
    begin_log,
    watch_accept,
)
from pyrycode_relay.monitoring.log_output import (
    Destination,
    LogFile,
    LogOutput,
    Stream,
    is_journal,
)
from pyrycode_relay.placement.control import Seat
from pyrycode_relay.process import Process, fail
from pyrycode_relay.sd_notify import Notifier
from pyrycode_relay.service import RelayService
from pyrycode_relay.signals import handle_signals
from pyrycode_relay.startup_error import StartupError

if TYPE_CHECKING:
    from pyrycode_relay.supervisor import Supervisor


def _completer(option: Option) -> usage.Completer:
    """Return what a shell offers as the value of ``option``."""
    if option.kind.words:
        return usage.CompleteList([*option.kind.words])
    if option.kind is DOMAIN:
        return usage.CompleteHostnames()
    if option.kind is DIRECTORY:
        return usage.CompleteDirs()
    if option.kind in {PATH, FILE_OR_NONE, SECRET}:
        return usage.CompleteFiles()
    # Twisted's default would offer files.
    return usage.Completer()


class Options(usage.Options):
    """The command line.

    Parsing it sets ``settings`` and ``capacity``, or ends the process with a sentence for each
    mistake.
    """

    optFlags = [  # noqa: RUF012 - twisted.python.usage requires a class attribute
        [each.name, None, each.help] for each in COMMAND_OPTIONS if each.kind is SWITCH
    ]
    optParameters = [  # noqa: RUF012
        [each.name, None, "", each.help] for each in COMMAND_OPTIONS if each.kind is not SWITCH
    ]
    # For the completion that zsh ships for Twisted's commands.
    compData = usage.Completions(
        descriptions={option.name: completion.summary(option) for option in OPTIONS},
        multiUse=[option.name for option in OPTIONS if option.many],
        optActions={
            "config": usage.CompleteFiles("*.toml"),
            "completion": usage.CompleteList([*SHELL.words]),
            **{option.name: _completer(option) for option in OPTIONS if not option.is_switch},
        },
    )
    settings: Settings
    capacity: Capacity

    def __init__(self) -> None:
        self._given: dict[str, list[str]] = {}
        self._certificates: Sequence[str] = ()
        super().__init__()

    def opt_help(self) -> NoReturn:
        """Print all options and exit."""
        _print(help_page.whole())

    def opt_h(self) -> NoReturn:
        """Print the most important options and exit."""
        _print(help_page.short())

    def opt_version(self) -> NoReturn:
        """Print the relay's version and exit."""
        _print([f"pyrycode-relay {__version__}"])

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line; a mistake is one sentence instead of a page."""
        self.arguments = [*(options or ())]
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            fail(StartupError(f"{error}; {_advice(error)}"))

    def parseArgs(self, *arguments: str) -> None:
        """Refuse arguments that are not options."""
        if arguments:
            fail(StartupError(f"{arguments[0]!r} is not an option; see --help."))

    def postOptions(self) -> None:
        """Read the settings; then print them and exit if that is asked for."""
        if self["example-config"]:
            _print(example())
        if shell := self["completion"]:
            if shell not in SHELL.words:
                fail(StartupError(f"--completion is {shell!r}; allowed: {SHELL.allowed}."))
            _print(completion.script(shell))
        try:
            self._read()
        except StartupError as error:
            fail(error)
        if self["check-config"]:
            _print(self._verdict())

    def _read(self) -> None:
        """Read and check the settings. Raises `StartupError`."""
        self.settings, self.capacity = self.read_settings()
        if self["check-config"]:
            observer = EventLog(self.settings.log_level, time.monotonic)
            self._certificates = startup_checks.check_certificates(self.settings, observer)

    def read_settings(self) -> tuple[Settings, Capacity]:
        """Read and check the settings, also again later. Raises `StartupError`."""
        path = self["config"] or os.environ.get(f"{ENVIRONMENT_PREFIX}CONFIG")
        file = toml_file.read(path) if path else ConfigFile()
        settings = Settings.read(self._given, os.environ, file)
        startup_checks.check_libraries(acme=settings.acme)
        files, workers = startup_checks.raise_open_files(), settings.worker_count
        capacity = Capacity.within(files, settings.limits, workers)
        startup_checks.check_settings(settings)
        startup_checks.check_push(settings)
        return settings, capacity

    def _verdict(self) -> Iterator[str]:
        """Yield a configuration file with the settings, and the verdict as comments."""
        yield from self.settings.lines()
        yield ""
        for each in self._certificates:
            yield f"# Certificate: {each}"
        yield "# The configuration is fine."

    @property
    def foreground(self) -> bool:
        """Whether twistd stays attached to its terminal."""
        return self.parent is None or bool(self.parent["nodaemon"])

    def log_output(self, line_format: LineFormat) -> LogOutput | None:
        """Return the log's output; None if twistd's own options send the log elsewhere.

        The log goes where twistd would write it: to ``--logfile``, or in the foreground to
        standard output.
        """
        twistd = self.parent
        if twistd is None or twistd["logger"] or twistd["syslog"]:
            return None
        path = twistd["logfile"]
        if path == "-" and not self.foreground:
            fail(
                StartupError(
                    "A daemon cannot log to standard output; give --logfile=FILE or --nodaemon."
                )
            )
        if path in {None, "", "-"} and self.foreground:
            if sys.stdout is None:
                return LogOutput(_log_file(os.devnull), line_format)
            descriptor = sys.stdout.fileno()
            in_journal = is_journal(descriptor, os.environ)
            return LogOutput(Stream(descriptor), line_format, in_journal=in_journal)
        return LogOutput(_log_file(path or "twistd.log"), line_format)


def _log_file(path: str) -> Destination:
    """Open the log file, or end the process with a sentence."""
    try:
        return LogFile(path)
    except OSError as error:
        fail(
            StartupError(
                f"Cannot write the log to {path}: {error.strerror}; give --logfile another path."
            )
        )


def _advice(error: usage.UsageError) -> str:
    """Return the end of the sentence about a mistake on the command line."""
    name = str(getattr(error.__context__, "opt", ""))
    names = [each.name for each in (*OPTIONS, *COMMAND_OPTIONS)]
    if not name or any(each.startswith(name) for each in names):
        return "see --help."
    return suggestion(f"--{name}", [f"--{each}" for each in names])


def _print(lines: Iterable[str]) -> NoReturn:
    """Print lines and exit."""
    try:
        sys.stdout.writelines(f"{line}\n" for line in lines)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head, has ended. Python flushes once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    raise SystemExit(0)


def _method_for(option: Option) -> Callable[..., None]:
    """Return the method that twisted.python.usage calls for ``option``; its docstring is help."""

    def take(self: Options, text: str) -> None:
        self._given.setdefault(option.name, []).append(text)

    def switch(self: Options) -> None:
        take(self, "yes")

    method = switch if option.is_switch else take
    method.__doc__ = option.help + (f" [default: {option.default}]" if option.default else "")
    return method


# Methods, because an option in optParameters cannot be given more than once.
for _option in OPTIONS:
    setattr(Options, f"opt_{_option.field}", _method_for(_option))


def makeService(options: Options, kind: type[RelayService] = RelayService) -> Process:
    """Make the relay's service from parsed options. ``kind`` is the class of its core."""
    reactor: Any = the_reactor()
    in_reactor = reactor.callFromThread
    settings = options.settings
    log = EventLog(settings.log_level, time.monotonic)
    line_format = LineFormat(settings.log_format)
    output = options.log_output(line_format)
    writer = None
    if output is not None:
        atexit.register(output.close)
        writer = Writer(output, settings.log_level, line_format)
        signal.signal(signal.SIGUSR1, lambda *_: in_reactor(output.reopen))
    relay: RelayService | Supervisor
    if settings.worker_count > 1:
        relay = _make_supervisor(options, reactor, log, writer)
    else:
        relay = kind(reactor, settings, [log], capacity=options.capacity)
        watch_accept(relay.accept_failed)
        if output is not None:
            relay.log_lines_dropped = lambda: output.dropped
    manager = Notifier.from_environment(os.environ, os.getpid(), reactor)
    reactor.callWhenRunning(handle_signals, reactor.stop, in_reactor)
    return Process(
        relay,
        manager,
        in_reactor,
        writer,
        foreground=options.foreground,
    )


def the_reactor() -> Any:
    """Return the reactor, with a clock that nobody can set."""
    from twisted.internet import reactor  # noqa: PLC0415 - installs the reactor when imported

    # Twisted's own clock is the time of day. Set back by an hour, it delays every time-out by an
    # hour.
    reactor.seconds = time.monotonic  # type: ignore[method-assign]
    return reactor


def _make_supervisor(
    options: Options, reactor: Any, log: EventLog, writer: Writer | None
) -> Supervisor:
    """Make the parent of several workers."""
    from pyrycode_relay import supervisor  # noqa: PLC0415 - one process does not need it

    return supervisor.Supervisor(
        reactor,
        options.settings,
        supervisor.Command(options.arguments, options.read_settings),
        [log],
        log.write_line if writer is None else writer.write_line,
        options.capacity,
    )


def run_worker(seat: Seat, control: socket.socket) -> None:
    """Run one of several workers until it has drained."""
    from pyrycode_relay.worker import WorkerService  # noqa: PLC0415 - one process does not need it

    options = Options()
    options.parseOptions(seat.options)
    reactor: Any = the_reactor()
    settings = options.settings
    line_format = LineFormat(settings.log_format, worker=seat.index)
    output = LogOutput(Stream(sys.stdout.fileno()), line_format)
    atexit.register(output.close)
    begin_log(Writer(output, settings.log_level, line_format))
    log = EventLog(settings.log_level, time.monotonic)
    worker = WorkerService(reactor, settings, [log], options.capacity, seat, control)
    worker.log_lines_dropped = lambda: output.dropped
    watch_accept(worker.accept_failed)
    handle_signals(worker.leave, reactor.callFromThread)
    # These go to the whole group of a terminal, and the parent acts on them.
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, lambda *_: reactor.callFromThread(worker.reload))
    reactor.addSystemEventTrigger("before", "shutdown", worker.stopService)
    try:
        worker.prepare()
    except StartupError as error:
        fail(error)
    reactor.run(installSignalHandlers=False)
