"""How a client stays connected to a relay; both examples use it.

    connecting -> connected -> closed -> waiting -> connecting -> ...

Each state is a line on standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from urllib.parse import urlsplit

from ends import CLOSES, Closes, End, Retry, closed, failed, refused
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
"""Seconds: the first wait and the longest, which is the default grace of a server-id."""

STABLE = 10.0
"""Seconds after which a connection counts as good. The next wait is then the first one again."""

Session = Callable[[ClientConnection], Awaitable[None]]
"""What a client does with a connection. Returns when it is done, or raises `ConnectionClosed`."""


class Dial(connect):
    """Opens a connection. It follows no redirect: the headers would go to another server."""

    def process_redirect(self, exc: Exception) -> Exception:
        """Return the redirect as an error."""
        return exc


class Client:
    """A client that connects again until it is done, or until a retry cannot help."""

    def __init__(self, name: str, url: str, headers: Mapping[str, str], closes: Closes) -> None:
        self.name = name
        self.url = url
        self.headers = headers
        self.closes = {**CLOSES, **closes}

    def say(self, text: str) -> None:
        """Tell the user about the connection."""
        print(f"{self.name}: {text}", file=sys.stderr, flush=True)

    async def run(self, session: Session) -> int:
        """Have a session on each connection until one returns; return the exit status."""
        failures = 0
        while True:
            started = time.monotonic()
            end = await self._once(session)
            if end is None:
                return 0
            if end.retry is Retry.NEVER:
                self.say(f"stopping, a retry cannot help: {end.text}")
                return 1
            if time.monotonic() - started >= STABLE:
                failures = 0
            at_once = end.retry is Retry.AT_ONCE and not failures
            wait = max(0.0 if at_once else backoff(failures), end.least_wait * jitter(1, 1.2))
            failures += 1
            self.say(f"waiting {wait:.1f} s before a retry: {end.text}")
            await asyncio.sleep(wait)

    async def _once(self, session: Session) -> End | None:
        """Connect and have one session. Return how it ended, or None if it is done."""
        self.say(f"connecting to {without_credential(self.url)}")
        try:
            # The library answers pings. It also sends its own, and thus notices a dead network.
            relay = await Dial(
                self.url, additional_headers=self.headers, compression=None, close_timeout=1
            )
        except InvalidStatus as error:
            return refused(error)
        except (InvalidHandshake, OSError, EOFError) as error:
            return failed(error)
        self.say("connected")
        try:
            await session(relay)
        except ConnectionClosed as error:
            code, end = closed(error, self.closes)
            self.say(f"closed: {code} ({end.text})")
            return end
        finally:
            # Close with 1000, at Ctrl-C too, and wait for the answer for up to `close_timeout`.
            await relay.close()
        self.say("closed: 1000 (done)")
        return None


def backoff(failures: int) -> float:
    """Return how long to wait: twice as long each time, less up to a half at random.

    Without the randomness, all clients of a relay would come back at the same moment.
    """
    return min(FIRST_WAIT * 2.0 ** min(failures, 10), LONGEST_WAIT) * jitter(0.5, 1)


def jitter(least: float, most: float) -> float:
    """Return a random factor."""
    return random.uniform(least, most)  # noqa: S311 - no secret


def without_credential(url: str) -> str:
    """Return a URL as it may be shown."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def relay_url(text: str) -> str:
    """Check the URL of the command line."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in {"ws", "wss"} and parts.hostname and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError("the URL of a relay is ws://HOST:PORT or wss://HOST")
    return text.rstrip("/")


def server_id(text: str) -> str:
    """Check the server-id of the command line."""
    if not (text.isascii() and text.isprintable() and text.strip() and len(text) <= 256):
        raise argparse.ArgumentTypeError("a server-id has 1 to 256 printable ASCII characters")
    return text


def command_line(description: str | None, statuses: str) -> argparse.Namespace:
    """Parse the command line: URL and server-id."""
    parser = argparse.ArgumentParser(
        description=description,
        epilog=f"exit statuses:\n{statuses}"
        "  1    the relay or the other side refuses this client for good\n"
        "  2    the command line is wrong\n"
        "  130  Ctrl-C\n\n"
        "SSL_CERT_FILE in the environment names a file of certificates to trust.\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = "Default: %(default)s."
    parser.add_argument(
        "url",
        nargs="?",
        type=relay_url,
        default="ws://127.0.0.1:8080",
        help=f"URL of the relay. {default}",
    )
    parser.add_argument(
        "server_id",
        nargs="?",
        type=server_id,
        default="demo",
        help=f"the daemon's name at the relay. {default}",
    )
    return parser.parse_args()


def run(main: Coroutine[None, None, int]) -> int:
    """Run a client and return its exit status."""
    for output in (sys.stdout, sys.stderr):
        # A frame may have characters that a terminal does not, such as half a surrogate pair.
        output.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        return asyncio.run(main)
    except KeyboardInterrupt:
        return 130
