"""What the system tests share: the relay as a child process, and what speaks to it.

The relay is the installed package, started as an operator starts it. Its log goes to a file. The
peers are the ``websockets`` library, and bare sockets where a peer shall break rules.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from twisted.trial.unittest import SynchronousTestCase
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests import needs
from tests.ca import Authority
from tests.peers.blocking import RawPeer
from tests.peers.frames import text_frame
from tests.peers.requests import TOKEN, Headers, binary_fields, phone_fields
from tests.peers.waiting import DEADLINE, eventually, soon

ROOT = Path(__file__).resolve().parents[2]
TWISTD = Path(sys.executable).with_name("twistd")
COMMAND = TWISTD.with_name("pyrycode-relay")

LIFTED = ("--upgrade-rate=0", "--max-connections-per-address=0")
"""Options by which an address is not bounded, as all peers here have the same; later ones win."""

UNWANTED = ("PYRYCODE_RELAY_", "LISTEN_", "NOTIFY_", "WATCHDOG_")
"""Beginnings of the names of what could change a relay."""

_SETTLED = 0.04
"""After so many seconds without a line, a relay has written what it has logged: its thread writes
within 10 ms."""
_SETTLINGS = 50
"""After so many waits, a relay logs without end."""

Address = tuple[str, int] | str
"""A host and a port, or the path of a UNIX socket."""


def clean_environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without what could change the relay.

    When coverage is measured, a child's data goes where the configuration file is, for it runs
    in a directory that is removed. Relays do not serve metrics unless they are told to.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "PYTHONPATH" and not name.startswith(UNWANTED)
    }
    if "COVERAGE_PROCESS_START" in kept:
        config = ROOT / kept["COVERAGE_PROCESS_START"]
        kept["COVERAGE_PROCESS_START"] = str(config)
        kept.setdefault("COVERAGE_FILE", str(config.with_name(".coverage")))
    return kept | {"PYRYCODE_RELAY_ADMIN_LISTEN": ""} | dict(more or {})


def dial(address: Address, receive_buffer: int | None = None) -> socket.socket:
    """Return a connected socket, every operation of which has a deadline."""
    unix = isinstance(address, str)
    family = socket.AF_UNIX if unix else socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = socket.socket(family)
    sock.settimeout(DEADLINE)
    if receive_buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def read_all(sock: socket.socket) -> bytes:
    """Return everything until the peer closes or resets the connection."""
    parts = []
    try:
        while part := sock.recv(65536):
            parts.append(part)
    except ConnectionError:
        pass
    return b"".join(parts)


def fetch(address: Address, path: str, preamble: bytes = b"") -> tuple[int, bytes]:
    """Return status and body of a GET request."""
    with dial(address) as sock:
        sock.sendall(
            preamble + f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
        )
        head, _, body = read_all(sock).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def run_program(
    program: str | Path,
    *arguments: str | Path,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
    standard_input: str = "",
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; a test that calls this needs the program."""
    return subprocess.run(
        [needs.program(str(program)), *arguments],
        cwd=directory,
        env=clean_environment(environment),
        input=standard_input,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=DEADLINE,
        check=False,
    )


def passing(listening: socket.socket) -> dict[str, Any]:
    """Return how to start a relay with a listening socket, as systemd passes one on."""
    program = (
        "import os, sys\n"
        "os.dup2(int(sys.argv[1]), 3)\n"
        "os.environ['LISTEN_PID'] = str(os.getpid())\n"
        "os.execv(sys.argv[2], sys.argv[2:])\n"
    )
    return {
        "launcher": (sys.executable, "-c", program, str(listening.fileno())),
        "environment": {"LISTEN_FDS": "1", "LISTEN_FDNAMES": "relay"},
        "pass_fds": (listening.fileno(),),
    }


class Child:
    """A child process with its output and its errors in files."""

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        self.directory = directory
        self._output = Path(tempfile.mkstemp(dir=directory, suffix=".out")[1])
        self._errors = self._output.with_suffix(".err")
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [str(each) for each in arguments],
                cwd=directory,
                env=clean_environment(environment),
                stdout=output,
                stderr=errors,
                **{"stdin": subprocess.DEVNULL, **more},
            )

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def stdin(self) -> IO[bytes]:
        assert self.process.stdin is not None
        return self.process.stdin

    def output(self) -> str:
        """Return what the child has written to its standard output."""
        return self._output.read_text(encoding="utf-8")

    def errors(self) -> str:
        """Return what the child has written to its standard error output."""
        return self._errors.read_text(encoding="utf-8")

    def signal(self, number: int) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, deadline: float = DEADLINE) -> int:
        """Return the exit status, negative for a signal."""
        return self.process.wait(deadline)

    def kill(self) -> None:
        """End the child, whatever it does."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Terminal:
    """A terminal, and the person in front of it."""

    def __init__(self) -> None:
        self._outside, self.inside = pty.openpty()
        os.set_blocking(self._outside, False)
        self._shown = b""

    def press(self, keys: bytes) -> None:
        """Press keys: b"\\x03" is Ctrl-C."""
        os.write(self._outside, keys)

    def shown(self) -> str:
        """Return everything that was shown until now, keys included."""
        with contextlib.suppress(OSError):  # Nothing more now, or nobody writes any more.
            while part := os.read(self._outside, 65536):
                self._shown += part
        return self._shown.decode()

    def close(self) -> None:
        """Close both ends."""
        os.close(self._outside)
        os.close(self.inside)


class Relay(Child):
    """``twistd pyrycode-relay`` as a child process.

    ``preamble`` is what connections to it begin with.
    """

    def __init__(
        self,
        directory: Path,
        options: Sequence[str],
        *,
        launcher: Sequence[str] = (),
        logfile: Path | None = None,
        preamble: bytes = b"",
        **more: Any,
    ) -> None:
        self.logfile = logfile
        self.preamble = preamble
        self._addresses: list[str] = []
        to_file = [] if logfile is None else [f"--logfile={logfile}"]
        twistd = [*launcher, str(TWISTD), "--pidfile=", "-n", *to_file]
        super().__init__(directory, [*twistd, "pyrycode-relay", *LIFTED, *options], **more)

    def start(self) -> Relay:
        """Wait until the relay serves."""
        eventually("the relay serves", self._serves)
        return self

    def _serves(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the relay has ended: {self.errors()}{self.log()}")
        return bool(self.addresses()) and self.fetch("/readyz")[0] == 200

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop the relay and return its exit status."""
        self.signal(number)
        return self.wait()

    def log(self) -> str:
        """Return the log, with everything that the relay has logged so far.

        A thread of the relay writes it, some milliseconds late, and then as it comes.
        """
        before = self._written()
        for _ in range(_SETTLINGS):
            if self.process.poll() is not None:
                break
            threading.Event().wait(_SETTLED)
            now = self._written()
            if now == before:
                break
            before = now
        return self._written()

    def _written(self) -> str:
        if self.logfile is None:
            return self.output()
        return self.logfile.read_text(encoding="utf-8") if self.logfile.exists() else ""

    def addresses(self) -> list[Address]:
        """Return where the relay says that it listens."""
        if not self._addresses:
            pattern = r'\bstarting\b.*\blisten(?:=|": )"?([^"\n]+)"?.*\n'
            started = re.search(pattern, self._written())
            self._addresses = started[1].split(", ") if started else []
        return [_address(each) for each in self._addresses]

    @property
    def address(self) -> Address:
        """The first of the addresses."""
        return self.addresses()[0]

    @property
    def port(self) -> int:
        """The port of the first address."""
        return int(self.address[1])

    @property
    def ports(self) -> list[int]:
        """The port of each TCP address."""
        return [address[1] for address in self.addresses() if not isinstance(address, str)]

    @property
    def url(self) -> str:
        """The first address for WebSocket clients."""
        return f"ws://127.0.0.1:{self.port}"

    def fetch(self, path: str) -> tuple[int, bytes]:
        """Return status and body of a GET request to the first address."""
        return fetch(self.address, path, self.preamble)

    def health(self) -> dict[str, Any]:
        """Return what ``/healthz`` shows."""
        status, body = self.fetch("/healthz")
        assert status == 200, status
        health = json.loads(body)
        assert isinstance(health, dict)
        return health

    def counts(self) -> tuple[int, int]:
        """Return how many binaries and phones are connected."""
        health = self.health()
        return health["connected_binaries"], health["connected_phones"]

    def rss(self) -> int:
        """Return the process's resident memory in bytes."""
        return self._memory("VmRSS")

    def peak(self) -> int:
        """Return the most resident memory that the process ever had, in bytes."""
        return self._memory("VmHWM")

    def _memory(self, what: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    def bugs(self) -> list[str]:
        """Return the log's lines that are part of a traceback or of an error's report."""
        marks = re.compile(r'Traceback|^\s*File "|"traceback":|^\S+ error |"level": "error"')
        return [line for line in (self.log() + self.errors()).splitlines() if marks.search(line)]


def _address(text: str) -> Address:
    host, colon, port = text.rpartition(":")
    if not colon:
        return text
    host = host.strip("[]")
    return ("127.0.0.1" if host in {"::", "0.0.0.0"} else host), int(port)


class SystemTestCase(SynchronousTestCase):
    """Tests that start processes, all of which are gone at the end.

    Whatever its peers do, a relay must not have logged a traceback or an error.
    """

    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="relay-"))
        self.addCleanup(shutil.rmtree, self.directory)

    def child(self, *arguments: str | Path, **more: Any) -> Child:
        """Start a process."""
        child = Child(self.directory, arguments, **more)
        self.addCleanup(child.kill)
        return child

    def interpreter(self, program: str) -> list[str]:
        """Return how to start one of the examples. It writes nothing beside itself."""
        return [sys.executable, "-uB", str(ROOT / "examples" / program)]

    def python(self, program: str, *arguments: str, **more: Any) -> Child:
        """Start one of the examples."""
        return self.child(*self.interpreter(program), *arguments, **more)

    def on_terminal(self, *arguments: str | Path) -> tuple[Child, Terminal]:
        """Start a process whose input and controlling terminal are a terminal.

        Its output and its errors go to files as usual; a shell can send them to ``/dev/tty``.
        """
        terminal = Terminal()
        self.addCleanup(terminal.close)
        setsid = needs.program("setsid")
        return self.child(setsid, "--ctty", *arguments, stdin=terminal.inside), terminal

    def relay(self, *options: str, listen: str | None = "127.0.0.1:0", **more: Any) -> Relay:
        """Start a relay and wait until it serves; with no ``listen``, the options say where."""
        where = [] if listen is None else [f"--insecure-listen={listen}"]
        relay = Relay(self.directory, [*where, *options], **more)
        self.addCleanup(self._end, relay)
        return relay.start()

    def tls_relay(self, *names: str, **more: timedelta) -> tuple[Relay, Path]:
        """Start a relay with TLS only, and a certificate; return its authority's PEM file too."""
        authority = Authority()
        issued, pem = authority.issue(*names, **more), self.directory / "relay.pem"
        pem.write_bytes(issued.pem + issued.key_pem())
        roots = self.directory / "roots.pem"
        roots.write_bytes(authority.pem)
        where = f"ssl:0:interface=127.0.0.1:privateKey={pem}:certKey={pem}:extraCertChain={pem}"
        relay = Relay(self.directory, [f"--insecure-listen={where}"])
        self.addCleanup(self._end, relay)
        eventually("the relay serves", relay.addresses)
        return relay, roots

    def _end(self, relay: Relay) -> None:
        if relay.process.poll() is None:
            # Politely, so that coverage can write what it has measured.
            relay.signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                relay.wait(10)
        relay.kill()
        self.assertEqual([], relay.bugs(), "the relay has logged errors")

    def perform(self, scenario: Coroutine[Any, Any, None], deadline: float = 90.0) -> None:
        """Run a scenario; it fails when it is not over by the deadline."""
        asyncio.run(asyncio.wait_for(scenario, deadline))


# Peers that keep the rules


def binary(relay: Relay, server_id: str, **more: Any) -> connect:
    """Connect as a binary: to be awaited, or entered with ``async with``."""
    return peer(relay, "/v1/server", binary_fields(server_id), **more)


def phone(relay: Relay, server_id: str, token: str = TOKEN, **more: Any) -> connect:
    """Connect as a phone: to be awaited, or entered with ``async with``."""
    return peer(relay, "/v1/client", phone_fields(server_id, token), **more)


def peer(relay: Relay, path: str, headers: Mapping[str, str], **more: Any) -> connect:
    """Connect to a path. The peer reads whatever comes, and answers pings."""
    options = {
        "user_agent_header": None,
        "compression": None,
        "max_size": None,
        "max_queue": None,
        "ping_interval": None,
        "proxy": None,
        "open_timeout": DEADLINE,
        "close_timeout": DEADLINE,
    }
    return connect(f"{relay.url}{path}", additional_headers=headers, **{**options, **more})


async def receive(connection: ClientConnection) -> Any:
    """Return the next message, which is TEXT, as what its JSON means."""
    return json.loads(await receive_text(connection))


async def receive_text(connection: ClientConnection) -> str:
    """Return the next message, which is TEXT, as it came."""
    async with asyncio.timeout(DEADLINE):
        message = await connection.recv()
    assert isinstance(message, str), "relays send TEXT"
    return message


async def send(connection: ClientConnection, value: object) -> None:
    """Send a value as JSON."""
    async with asyncio.timeout(DEADLINE):
        await connection.send(json.dumps(value))


async def ending(connection: ClientConnection) -> tuple[int | None, str | None]:
    """Return code and reason with which the connection ends."""
    async with asyncio.timeout(DEADLINE):
        await connection.wait_closed()
    return connection.close_code, connection.close_reason


async def echo(connection: ClientConnection) -> None:
    """Send every frame back to the phone it came from, until the connection ends."""
    with contextlib.suppress(ConnectionClosed):
        async for message in connection:
            if "frame" in json.loads(message):
                await connection.send(message)


async def round_trip(connection: ClientConnection, value: object) -> None:
    """Send a value to an echoing binary and see it come back."""
    await send(connection, value)
    back = await receive(connection)
    assert back == value, f"sent {value!r}, got {back!r}"


@asynccontextmanager
async def bystanders(relay: Relay, server_id: str = "bystander") -> AsyncIterator[None]:
    """Have a phone and its binary talk meanwhile; fail as soon as they cannot any more.

    What others do to the relay must not end their connections, hold up a round trip for longer
    than the deadline, or bring them a byte that is not theirs.
    """
    trips = 0

    async def talk(handset: ClientConnection) -> None:
        nonlocal trips
        while True:
            await round_trip(handset, {"trip": trips})
            trips += 1
            await asyncio.sleep(0.01)

    async with binary(relay, server_id) as server, phone(relay, server_id) as handset:
        answering, talking = asyncio.create_task(echo(server)), asyncio.create_task(talk(handset))
        try:
            yield
            # Two more: one of them has begun after whatever the others did.
            enough = trips + 2
            await soon("the bystanders go on", lambda: trips >= enough or talking.done())
            if talking.done():
                talking.result()
        finally:
            talking.cancel()
            answering.cancel()


# Peers that keep no rules


@asynccontextmanager
async def slow_phone(relay: Relay, server: ClientConnection) -> AsyncIterator[tuple[BarePeer, str]]:
    """Have a phone of the binary "b" that reads nothing, and little room between it and the relay.

    It yields the phone and its ``conn_id``.
    """
    with BarePeer(relay, "/v1/client", phone_fields("b"), 4096) as peer:
        peer.send(text_frame(b"0"))
        yield peer, (await receive(server))["conn_id"]


class BarePeer(RawPeer):
    """A WebSocket peer that does only what it is told to. It blocks."""

    def __init__(
        self, relay: Relay, path: str, fields: Headers, receive_buffer: int | None = None
    ) -> None:
        super().__init__(dial(relay.address, receive_buffer))
        self.upgrade(path, fields)

    def __enter__(self) -> BarePeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send bytes; no matter whether the relay has closed the connection meanwhile."""
        with contextlib.suppress(ConnectionError):
            self.write(data)
