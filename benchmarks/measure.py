"""The processes of a run: the servers, their certificate, the load; and what they consume."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_START: Final = 30.0
"""Seconds in which a server has to be up."""
_LIFTED: Final = ("--upgrade-rate=0", "--max-connections-per-address=0", "--max-waiting=4096")


def cpu_seconds(pid: int) -> float:
    """Return the CPU time, user and system, that a process's main thread has used.

    ``schedstat`` counts nanoseconds; where the kernel lacks it, ``stat`` counts ticks.
    """
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except FileNotFoundError:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")


def waited_seconds(pid: int) -> float:
    """Return how long a process has waited for its core while others ran; 0 where unknown."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except FileNotFoundError:
        return 0.0


def segments_sent() -> int:
    """Return how many TCP segments this machine has sent, or this network of its."""
    names, numbers = (
        line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if "Tcp:" in line
    )
    return int(numbers[names.index("OutSegs")])


def resident_bytes(pid: int) -> int:
    """Return how much memory of a process is resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def allow_many_files() -> None:
    """Raise the limit of open files as far as it goes."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass(frozen=True, slots=True)
class Cores:
    """Where the processes run: the server and the load apart, where there are two cores."""

    server: int
    load: int

    @classmethod
    def choose(cls) -> Cores:
        """Take the first and the last core that this process may use."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(allowed[0], allowed[-1])

    @property
    def apart(self) -> bool:
        """Whether server and load have a core each."""
        return self.server != self.load


@dataclass(frozen=True, slots=True)
class Certificate:
    """A self-signed certificate's files."""

    key: Path
    certificate: Path

    @classmethod
    def make(cls, folder: Path) -> Certificate:
        """Make one for ``localhost``, with a P-256 key as public certificates have them."""
        made = cls(folder / "key.pem", folder / "certificate.pem")
        command = (
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes "
            f"-days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost "
            f"-keyout {made.key} -out {made.certificate}"
        )
        subprocess.run(command.split(), check=True, capture_output=True)
        return made


_LOOPBACK: Final = """
ip link set lo up
for addresses in 127.0.0.0/8 127.0.0.1; do
    ip route change local $addresses dev lo proto kernel scope host src 127.0.0.1 \\
        table local quickack 1 || exit
done
echo ready
cat
"""


@contextlib.contextmanager
def acknowledging_loopback() -> Iterator[Sequence[str]]:
    """Make a loopback network of our own on which every segment is acknowledged at once.

    Yields what has to stand before a command so that it runs there; nothing where the machine
    lets us make no network (``unshare``, ``nsenter`` and ``ip``, and user namespaces).
    """
    command = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", _LOOPBACK]
    try:
        holder = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
    except FileNotFoundError:
        yield []
        return
    with holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        ready = holder.stdout.readline() == b"ready\n"
        enter = ["nsenter", f"--target={holder.pid}", "--user", "--net", "--preserve-credentials"]
        try:
            yield enter if ready else []
        finally:
            holder.stdin.close()


@dataclass(slots=True)
class Bench:
    """Everything that starts processes needs: a scratch folder, cores, a certificate."""

    folder: Path
    cores: Cores
    relay_options: Sequence[str] = ()
    enter: Sequence[str] = ()
    """What stands before every command: that it runs in another network."""
    certificate: Certificate = field(init=False)
    _logs: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.certificate = Certificate.make(self.folder)

    @contextlib.contextmanager
    def server(self, name: str, tls: bool, port: int = 0) -> Iterator[Server]:
        """Run the relay or the baseline for as long as the context lasts."""
        server = self.start(name, tls, port)
        try:
            yield server
        finally:
            server.kill()

    def start(self, name: str, tls: bool, port: int = 0) -> Server:
        """Start the relay or the baseline, and wait until it listens.

        The relay runs with its defaults, but for the limits of an address, as all load comes from
        one; its log goes to a file, as it would in earnest.
        """
        pair = self.certificate
        if name == "relay":
            listen = [f"--insecure-listen=127.0.0.1:{port}"]
            if tls:
                listen = [f"--tls-listen=127.0.0.1:{port}"]
                listen += [f"--tls-cert={pair.certificate}", f"--tls-key={pair.key}"]
            command = [str(Path(sys.executable).with_name("twistd")), "--pidfile=", "-n"]
            command += ["pyrycode-relay", *listen, *_LIFTED]
            command += ["--admin-listen=127.0.0.1:0"]
            command += self.relay_options
            pattern = r" starting .*listen=127\.0\.0\.1:(\d+)"
        else:
            command = [sys.executable, "-m", "benchmarks.baseline", f"--port={port}"]
            if tls:
                command += [f"--tls-key={pair.key}", f"--tls-cert={pair.certificate}"]
            pattern = r"listening on (\d+)"
        self._logs += 1
        log = self.folder / f"{name}-{self._logs}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*self.enter, *command], stdout=output, stderr=subprocess.STDOUT
            )
        os.sched_setaffinity(process.pid, {self.cores.server})
        server = Server(name, tls, process)
        deadline = time.monotonic() + _START
        while (found := re.search(pattern, log.read_text(errors="replace"))) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                server.kill()
                raise RuntimeError(f"{name} did not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.01)
        server.port = int(found[1])
        return server

    def load(self, kind: str, server: Server, **job: Any) -> Iterator[dict[str, Any]]:
        """Run the load generator against a server; yield what it reports, the result last."""
        job |= {"kind": kind, "pid": server.pid, "url": server.url, "core": self.cores.load}
        command = [*self.enter, sys.executable, "-m", "benchmarks.load", json.dumps(job)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    yield json.loads(line)
            finally:
                if process.poll() is None and sys.exc_info()[0] is not None:
                    process.kill()
        if process.returncode:
            raise RuntimeError(f"the load generator failed: {kind} on {server.name}")

    def result(self, kind: str, server: Server, **job: Any) -> dict[str, Any]:
        """Run the load generator, and return its last report."""
        *_, last = self.load(kind, server, **job)
        return last


@dataclass(slots=True)
class Server:
    """A server process."""

    name: str
    tls: bool
    process: subprocess.Popen[bytes]
    port: int = 0

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    @property
    def url(self) -> str:
        """Where it serves."""
        return f"{'wss' if self.tls else 'ws'}://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def versions() -> Mapping[str, str]:
    """Return the versions of what the figures depend on."""
    from importlib.metadata import version  # noqa: PLC0415

    names = ("pyrycode-relay", "Twisted", "autobahn", "msgspec", "pyOpenSSL", "picows")
    return {"python": sys.version.split()[0], **{name: version(name) for name in names}}
