"""``pyrycode-relay-probe``: the command line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from pyrycode_relay import __version__
from pyrycode_relay.probe.conversation import STEPS, converse
from pyrycode_relay.probe.dial import Dial, dial_steps, unverified, verified
from pyrycode_relay.probe.report import MEANINGS, ProbeError, Report, Screen, Status
from pyrycode_relay.probe.target import Place, Target, TargetError
from pyrycode_relay.probe.wake import Wake

PROGRAM: Final = "pyrycode-relay-probe"

_DESCRIPTION: Final = """\
Test a pyrycode relay end to end. The probe connects as a daemon and as its phone, and
sends frames in both directions. It checks that the relay rejects a second daemon and a
phone with an unknown server-id. The server-ids are random. The probe opens four WebSocket
connections, which count against the upgrades that the relay allows this address.
"""

_EXAMPLES: Final = f"""\
examples:
  after a deploy     {PROGRAM} relay.example.org
  a health check     {PROGRAM} --quiet --timeout=5 ws://127.0.0.1:8080
  monitoring         {PROGRAM} --json --min-days=14 wss://relay.example.org
  one of many        {PROGRAM} --connect=192.0.2.7:443 wss://relay.example.org
  a test relay       {PROGRAM} --insecure wss://127.0.0.1:8443
  a push wake        {PROGRAM} --wake=fcm:@token.txt relay.example.org

The report goes to standard output. With --quiet, the probe prints one sentence to
standard error if it fails, and otherwise nothing. Proxy settings in the environment are
ignored.
"""

_TIMEOUT: Final = 10.0
_WAKE_TIMEOUT: Final = 30.0
"""Default seconds for a probe, and for one with a push wake: the relay may need an access token
first, and may try again."""

_MAX_TIMEOUT: Final = 3600.0
_MAX_COUNT: Final = 10_000


def _bounded(least: float, most: float, whole: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = int(text) if whole else float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not in {least:g} to {most:g}")
        return value

    read.__name__ = "number"  # argparse quotes it in "invalid number value"
    return read


def command_line() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    statuses = "\n".join(f"  {status.value:<3}  {MEANINGS[status]}" for status in Status)
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog=f"exit statuses:\n{statuses}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "url",
        metavar="URL",
        help="wss://host, ws://host:port, or the same with https:// or http://; a bare host means "
        "wss://; a path is put in front of the relay's own paths",
    )
    _add_output_options(parser)
    _add_check_options(parser)
    _add_connection_options(parser)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object instead of the report"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but a failure")


def _add_check_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        type=_bounded(0.1, _MAX_TIMEOUT),
        metavar="SECONDS",
        help="time for the whole probe, including the look-up of the name. "
        f"Default: {_TIMEOUT:g}, or {_WAKE_TIMEOUT:g} with --wake",
    )
    parser.add_argument(
        "--count",
        type=_bounded(1, _MAX_COUNT, whole=True),
        default=10,
        metavar="N",
        help=f"round trips from the phone to the daemon and back, 1 to {_MAX_COUNT}. Default: 10",
    )
    parser.add_argument(
        "--min-days",
        type=_bounded(0, 10_000, whole=True),
        default=0,
        metavar="N",
        help="fail if the certificate has fewer days left. Default: 0",
    )
    parser.add_argument(
        "--wake",
        metavar="PLATFORM:TOKEN",
        help="also send one push wake to the device with this token, through fcm or webpush. "
        "PLATFORM:@FILE reads the token from a file, because a command line shows in the list of "
        "processes",
    )


def _add_connection_options(parser: argparse.ArgumentParser) -> None:
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument("--insecure", action="store_true", help="do not verify the certificate")
    trust.add_argument(
        "--ca-file",
        metavar="FILE",
        help="trust the certificates in this PEM file instead of this machine's",
    )
    parser.add_argument(
        "--connect",
        metavar="PLACE",
        help="connect to this HOST:PORT or UNIX socket (/path) instead of the URL's host; TLS and "
        "the request still use the URL's name",
    )
    parser.add_argument(
        "--send-proxy",
        action="store_true",
        help="send a PROXY header (version 2) first, for a listener that requires one",
    )


def _trust(options: argparse.Namespace) -> ssl.SSLContext:
    if options.insecure:
        return unverified()
    try:
        return verified(options.ca_file)
    except OSError as error:
        no_certificates = isinstance(error, ssl.SSLError)
        cause = "it has no PEM certificates" if no_certificates else error.strerror
        raise TargetError(f"--ca-file is {options.ca_file!r}: {cause}.") from error


async def _probe(dial: Dial, report: Report, count: int, wake: Wake | None, seconds: float) -> None:
    """Probe the relay, and record the outcome in the report, whatever it is."""
    try:
        async with asyncio.timeout(seconds):
            await dial.find()
            await converse(dial, report, count, wake)
    except ProbeError as problem:
        report.fail(problem)
    except TimeoutError:
        report.fail(ProbeError(Status.TIMEOUT, _time_is_up(report, seconds)))


def _words(report: Report) -> str:
    """Return the name of the current step in words."""
    return report.steps[-1].name.replace("_", " ")


def _time_is_up(report: Report, seconds: float) -> str:
    sentence = f"Time is up after {seconds:g} s, in the step {_words(report)!r}"
    if report.steps[-1].name == "wake":
        sentence += (
            ": the relay is still trying to send the push wake, or it is an older one without "
            "push_result; its log shows the outcome"
        )
    return f"{sentence}."


def _arguments(parser: argparse.ArgumentParser, words: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line. An error quotes nothing that could be the token of a push wake."""
    options, unknown = parser.parse_known_args(words)
    shown = [
        each.partition("=")[0] for each in unknown if each.startswith("-") or options.wake is None
    ]
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(shown)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command_line()
    options = _arguments(parser, arguments)
    try:
        wake = Wake.parse(options.wake) if options.wake is not None else None
        target = Target.parse(options.url)
        place = Place.parse(options.connect) if options.connect else None
        trust = _trust(options)
    except TargetError as error:
        parser.error(str(error))
    # The library's warnings would repeat the report in other words.
    logging.getLogger("websockets").addHandler(logging.NullHandler())
    logging.getLogger("websockets").propagate = False
    planned = [*dial_steps(target, place), *STEPS, *(["wake"] if wake is not None else [])]
    report = Report(target.url("/"), time.perf_counter, planned)
    screen = None
    if sys.stdout.isatty() and not (options.json or options.quiet):
        screen = Screen(report, sys.stdout)
        report.changed = screen.update
    dial = Dial(target, report, trust, place, options.send_proxy, options.min_days)
    seconds = options.timeout or (_TIMEOUT if wake is None else _WAKE_TIMEOUT)
    try:
        asyncio.run(_probe(dial, report, options.count, wake, seconds))
    except KeyboardInterrupt:
        step = f" in the step {_words(report)!r}" if report.steps else ""
        report.fail(ProbeError(Status.INTERRUPTED, f"Interrupted{step}."))
    if screen is not None:
        screen.finish()
    elif options.json:
        sys.stdout.write(report.as_json() + "\n")
    elif not options.quiet:
        sys.stdout.write(report.as_text() + "\n")
    elif report.problem is not None:
        sys.stderr.write(f"{PROGRAM}: {report.problem}\n")
    return int(report.status)
