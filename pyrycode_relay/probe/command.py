"""``pyrycode-relay-probe``: the command line."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from pyrycode_relay import __version__
from pyrycode_relay.probe.conversation import converse
from pyrycode_relay.probe.dial import Dial, unverified, verified
from pyrycode_relay.probe.report import MEANINGS, ProbeError, Report, Status
from pyrycode_relay.probe.target import Place, Target, TargetError

PROGRAM: Final = "pyrycode-relay-probe"

_DESCRIPTION: Final = """\
Ask a pyrycode relay whether it works, the way its users would find out: connect as a
daemon and as its phone, send frames there and back, and see that strangers are turned
away. It uses random server-ids, and four WebSocket connections: four upgrades of what
the relay allows this machine's address.
"""

_EXAMPLES: Final = f"""\
examples:
  after a deploy     {PROGRAM} relay.example.org
  a health check     {PROGRAM} --quiet --timeout=5 ws://127.0.0.1:8080
  monitoring         {PROGRAM} --json --min-days=14 wss://relay.example.org
  one of many        {PROGRAM} --connect=192.0.2.7:443 wss://relay.example.org
  a relay in trial   {PROGRAM} --insecure wss://127.0.0.1:8443

The report goes to standard output; with --quiet there is only the sentence that says
what is wrong, on standard error. Proxies of the environment are not used.
"""

_MAX_TIMEOUT: Final = 3600.0
_MAX_COUNT: Final = 10_000


def _bounded(least: float, most: float, whole: bool = False) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = int(text) if whole else float(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{text} is not in {least:g} to {most:g}")
        return value

    read.__name__ = "number"
    return read


def command_line() -> argparse.ArgumentParser:
    """Return what reads the command line, and writes ``--help``."""
    statuses = "\n".join(f"  {status.value}  {MEANINGS[status]}" for status in Status)
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=_DESCRIPTION,
        epilog=f"exit statuses:\n{statuses}\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "url",
        metavar="URL",
        help="wss://host, ws://host:port, https:// or http:// for the same, or a bare host, which "
        "is wss://; a path is put before the relay's own paths",
    )
    add("--json", action="store_true", help="print one JSON object instead of the report")
    add("--quiet", action="store_true", help="print nothing but what is wrong")
    add(
        "--timeout",
        type=_bounded(0.1, _MAX_TIMEOUT),
        default=10.0,
        metavar="SECONDS",
        help="for all of it, look-up of the name included [default: 10]",
    )
    add(
        "--count",
        type=_bounded(1, _MAX_COUNT, whole=True),
        default=10,
        metavar="N",
        help="round trips from the phone to the daemon and back [default: 10]",
    )
    add(
        "--min-days",
        type=_bounded(0, 10_000, whole=True),
        default=0,
        metavar="N",
        help="fail when the certificate has fewer days left [default: 0]",
    )
    trust = parser.add_mutually_exclusive_group()
    trust.add_argument("--insecure", action="store_true", help="do not check the certificate")
    trust.add_argument("--ca-file", metavar="FILE", help="trust the certificates in this PEM file")
    add(
        "--connect",
        metavar="PLACE",
        help="connect to this HOST:PORT, or UNIX socket (/path), whatever the URL says; names in "
        "TLS and in the request are still the URL's",
    )
    add(
        "--send-proxy",
        action="store_true",
        help="begin connections with a PROXY header (version 2), for a relay that wants one",
    )
    add("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def _trust(options: argparse.Namespace) -> ssl.SSLContext:
    if options.insecure:
        return unverified()
    try:
        return verified(options.ca_file)
    except OSError as error:
        no_pem = isinstance(error, ssl.SSLError)
        cause = "it has no PEM certificates" if no_pem else error.strerror
        raise TargetError(f"--ca-file is {options.ca_file!r}: {cause}.") from error


async def _probe(dial: Dial, report: Report, count: int, seconds: float) -> None:
    """Probe; whatever comes, the outcome is in the report."""
    try:
        async with asyncio.timeout(seconds):
            await dial.find()
            await converse(dial, report, count)
    except ProbeError as problem:
        report.fail(problem)
    except TimeoutError:
        step = report.steps[-1].name.replace("_", " ")
        sentence = f"Time is up after {seconds:g} s, in the step {step!r}."
        report.fail(ProbeError(Status.TIMEOUT, sentence))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = command_line()
    options = parser.parse_args(arguments)
    try:
        target = Target.parse(options.url)
        place = Place.parse(options.connect) if options.connect else None
        trust = _trust(options)
    except TargetError as error:
        parser.error(str(error))
    # Its warnings would say again, in its own words, what our sentences say.
    logging.getLogger("websockets").addHandler(logging.NullHandler())
    logging.getLogger("websockets").propagate = False
    report = Report(target.url("/"), time.perf_counter)
    dial = Dial(target, report, trust, place, options.send_proxy, options.min_days)
    try:
        asyncio.run(_probe(dial, report, options.count, options.timeout))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if options.json:
        sys.stdout.write(report.as_json() + "\n")
    elif not options.quiet:
        sys.stdout.write(report.as_text() + "\n")
    elif report.problem is not None:
        sys.stderr.write(f"{PROGRAM}: {report.problem}\n")
    return int(report.status)
