"""``pyrycode-relay-probe`` as a process: against relays, against what is none, and in time."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

from websockets.http11 import Request
from websockets.sync.server import ServerConnection, serve

from pyrycode_relay import __version__
from pyrycode_relay.probe import command
from pyrycode_relay.probe.report import MEANINGS, Status
from tests import needs
from tests.ca import Authority
from tests.fcm_server import SEND, FcmServer, error, fcm_error, misdeed
from tests.peers.requests import binary_fields
from tests.peers.waiting import DEADLINE, eventually
from tests.system.harness import (
    ROOT,
    BarePeer,
    Relay,
    SystemTestCase,
    clean_environment,
    dial,
    run_program,
)

PROBE = Path(sys.executable).with_name("pyrycode-relay-probe")

ALL_STEPS = [
    *("dns", "tcp", "upgrade", "second_claim"),
    *("unknown_id", "phone", "round_trips", "close_notice"),
]


class ProbeTestCase(SystemTestCase):
    def probe(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the probe to its end."""
        return run_program(PROBE, *arguments, directory=self.directory)

    def fails(self, status: Status, pattern: str, *arguments: str) -> None:
        """See that a probe fails with this status, and says why in one sentence."""
        run = self.probe("--quiet", *arguments)
        self.assertRegex(run.stderr, rf"\Apyrycode-relay-probe: [^\n]*{pattern}[^\n]*[.?]\n\Z")
        self.assertEqual((run.returncode, run.stdout), (status, ""), run)


class WorkingTests(ProbeTestCase):
    """Relays that work."""

    def test_plain(self) -> None:
        """A relay that works passes every step; the report says so, and the status is 0."""
        relay = self.relay()
        run = self.probe(relay.url, "--count=3")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertIn("closed 4409 server-id already claimed", run.stdout)
        self.assertIn("closed 4404 no server with that id", run.stdout)
        self.assertRegex(run.stdout, r"(?m)^ok +round trips +3, ")
        self.assertRegex(run.stdout, r"(?m)^ +ms +min [\d.]+, p50 [\d.]+, p90 [\d.]+, p99 ")
        self.assertTrue(run.stdout.endswith("\nThe relay works.\n"))
        self.assertEqual(relay.counts(), (0, 0))

    def test_json(self) -> None:
        """``--json`` is one object with every step, its time and what it found."""
        relay = self.relay()
        run = self.probe("--json", f"http://127.0.0.1:{relay.port}/")
        found = json.loads(run.stdout)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertEqual((found["ok"], found["status"], found["problem"]), (True, 0, None))
        self.assertEqual([*found["steps"]], ALL_STEPS)
        for step in found["steps"].values():
            self.assertTrue(step["ok"])
            self.assertGreaterEqual(step["ms"], 0)
        self.assertEqual(found["steps"]["second_claim"]["code"], 4409)
        self.assertEqual(found["steps"]["unknown_id"]["code"], 4404)
        self.assertEqual(found["steps"]["round_trips"]["count"], 10)

    def test_quiet(self) -> None:
        """``--quiet`` says nothing of a relay that works."""
        run = self.probe("--quiet", self.relay().url)
        self.assertEqual((run.returncode, run.stdout, run.stderr), (0, "", ""))

    def test_a_terminal(self) -> None:
        """On a terminal, each step shows when it begins and when it ends."""
        relay = self.relay()
        seen = self.on_a_terminal(lambda _: None, relay.url, "--count=3")
        for name in ALL_STEPS:
            words = name.replace("_", " ")
            self.assertRegex(seen, rf"(?s)\.\.\.   {words}\r\x1b\[K.*ok    {words} ")
        self.assertTrue(seen.endswith("\r\nThe relay works.\r\n"), seen)

    def test_interrupted(self) -> None:
        """Ctrl-C ends a probe with a report of what was done and what was not."""
        relay = self.relay()
        relay.signal(signal.SIGSTOP)
        self.addCleanup(relay.signal, signal.SIGCONT)
        seen = self.on_a_terminal(lambda probe: probe.send_signal(signal.SIGINT), relay.url)
        self.assertRegex(
            seen, r"ok    tcp .*\r\n.*FAIL  upgrade +Interrupted in the step 'upgrade'"
        )
        self.assertIn(
            "Not tested: second claim, unknown id, phone, round trips, close notice.", seen
        )

    def on_a_terminal(self, act: Callable[[subprocess.Popen[bytes]], None], *arguments: str) -> str:
        """Run the probe on a terminal, ``act`` when it has connected, and return the screen."""
        ours, theirs = pty.openpty()
        self.addCleanup(os.close, ours)
        process = subprocess.Popen(
            [PROBE, *arguments],
            cwd=self.directory,
            stdout=theirs,
            stderr=theirs,
            env=clean_environment(),
        )
        os.close(theirs)
        self.addCleanup(process.kill)
        seen = b""
        acted = False
        with contextlib.suppress(OSError):
            while part := os.read(ours, 65536):
                seen += part
                if not acted and b"...   upgrade" in seen:
                    acted = True
                    act(process)
        process.wait(DEADLINE)
        return seen.decode()

    def test_every_probe_has_ids_of_its_own(self) -> None:
        """Probes at the same time, and right after each other, do not meet."""
        relay = self.relay("--log-level=debug")
        children = [self.child(PROBE, "--quiet", relay.url) for _ in range(4)]
        self.assertEqual([child.wait() for child in children], [0] * 4)
        self.assertEqual(self.probe("--quiet", relay.url).returncode, 0)
        ids = re.findall(r"server_claimed server_id=(\S+)", relay.log())
        self.assertEqual(len(set(ids)), 5)

    def test_the_log(self) -> None:
        """A probe writes nothing to the log at info, and all of it at debug."""
        for level, lines in (("info", 0), ("debug", 9)):
            relay = self.relay(f"--log-level={level}")
            self.assertEqual(self.probe("--quiet", relay.url).returncode, 0)
            relay.stop()
            found = [line for line in relay.log().splitlines() if "pyrycode-relay-probe-" in line]
            self.assertEqual([line for line in found if " debug " not in line], [])
            self.assertGreaterEqual(len(found), lines, found)

    def test_keeping_relay(self) -> None:
        """A relay that keeps phones on reclaim passes as well."""
        run = self.probe("--quiet", self.relay("--on-reclaim=keep").url)
        self.assertEqual((run.returncode, run.stderr), (0, ""))

    def test_a_unix_socket(self) -> None:
        """``--connect`` with a path reaches a relay that has no port."""
        path = self.directory / "s"
        self.relay(listen=f"unix:{path}")
        run = self.probe("ws://relay.test", f"--connect={path}", "--json")
        self.assertEqual(run.returncode, 0, run)
        self.assertEqual(json.loads(run.stdout)["steps"]["tcp"]["address"], str(path))

    def test_another_place(self) -> None:
        """``--connect`` with host and port goes there, and looks up nothing else."""
        relay = self.relay()
        run = self.probe("ws://nowhere.invalid", f"--connect=127.0.0.1:{relay.port}")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertTrue(run.stdout.startswith("ws://nowhere.invalid:80/\n"))

    def test_the_second_address(self) -> None:
        """Where a name's first address refuses, the next one is tried, and the report tells."""
        relay = self.relay()
        with socket.socket() as unheard:
            unheard.bind(("127.0.0.2", 0))
            places = [unheard.getsockname(), ("127.0.0.1", relay.port)]
            found = [(socket.AF_INET, 0, 0, "", place) for place in places]
            with mock.patch.object(socket, "getaddrinfo", return_value=found):
                status, output = run_here("--json", "ws://relay.test")
        steps = json.loads(output)["steps"]
        self.assertEqual(status, 0)
        self.assertEqual(steps["dns"]["addresses"], ["127.0.0.2", "127.0.0.1"])
        self.assertEqual(steps["tcp"]["address"], f"127.0.0.1:{relay.port}")
        self.assertEqual(steps["tcp"]["failed"], [f"127.0.0.2:{places[0][1]} refuses connections"])


def run_here(*arguments: str) -> tuple[int, str]:
    """Run the probe in this process, for what a process of its own could not be shown."""
    with mock.patch("sys.stdout") as output:
        output.isatty.return_value = False
        status = command.main(arguments)
    return status, "".join(call.args[0] for call in output.write.call_args_list)


class TLSTests(ProbeTestCase):
    """Certificates, good and bad, on a relay that ends TLS itself."""

    def test_a_good_one(self) -> None:
        """A certificate that is trusted and has the name: the report shows what it is."""
        relay, path = self.tls_relay("relay.test", "127.0.0.1")
        run = self.probe("--json", f"--ca-file={path}", f"https://127.0.0.1:{relay.port}")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        tls = json.loads(run.stdout)["steps"]["tls"]
        self.assertEqual((tls["version"], tls["verified"]), ("TLSv1.3", True))
        self.assertEqual((tls["issuer"], tls["days_left"]), ("Test CA", 59))
        self.assertEqual(tls["names"], ["relay.test", "127.0.0.1"])
        text = self.probe(
            f"--ca-file={path}", f"--connect=127.0.0.1:{relay.port}", "relay.test"
        ).stdout
        self.assertRegex(text, r"(?m)^ok +tls +TLSv1\.3, verified")
        self.assertRegex(text, r"(?m)^ +names +relay\.test, 127\.0\.0\.1$")
        self.assertRegex(text, r"(?m)^ +expires +\S+, 59 days left$")

    def test_nobody_trusts_it(self) -> None:
        """A self-signed one is refused with the way out, and ``--insecure`` is that."""
        relay, _ = self.tls_relay("127.0.0.1")
        url = f"wss://127.0.0.1:{relay.port}"
        self.fails(Status.TLS, "self-signed.*--ca-file.*--insecure", url)
        run = self.probe("--insecure", url)
        self.assertEqual(run.returncode, 0, run)
        self.assertIn("UNVERIFIED", run.stdout)

    def test_wrong_name(self) -> None:
        """A certificate for others is refused with the names that it has."""
        relay, path = self.tls_relay("relay.test", "other.test")
        url = f"wss://127.0.0.1:{relay.port}"
        sentence = r"for relay\.test, other\.test, not for 127\.0\.0\.1"
        self.fails(Status.TLS, sentence, f"--ca-file={path}", url)
        more = f"--connect=127.0.0.1:{relay.port}"
        self.fails(Status.TLS, "not for third.test", f"--ca-file={path}", more, "wss://third.test")

    def test_expired(self) -> None:
        """One that has ended is refused with when; the report still shows what it was."""
        since, until = timedelta(days=-90), timedelta(days=-2, hours=-1)
        end = datetime.now(UTC) + until
        relay, path = self.tls_relay("127.0.0.1", since=since, until=until)
        url = f"wss://127.0.0.1:{relay.port}"
        self.fails(Status.TLS, f"expired on {end.date()}, 3 days ago", f"--ca-file={path}", url)
        run = self.probe("--json", f"--ca-file={path}", url)
        found = json.loads(run.stdout)
        self.assertEqual(found["status"], Status.TLS)
        self.assertEqual(found["steps"]["tls"]["names"], ["127.0.0.1"])
        self.assertEqual(self.probe("--insecure", url).returncode, 0)
        self.fails(Status.TLS, "in -3 days", "--insecure", "--min-days=1", url)

    def test_not_yet(self) -> None:
        """One of the future is refused with a doubt about the clock."""
        relay, path = self.tls_relay("127.0.0.1", since=timedelta(days=1))
        url = f"wss://127.0.0.1:{relay.port}"
        self.fails(Status.TLS, "not valid yet.*clock", f"--ca-file={path}", url)

    def test_few_days_left(self) -> None:
        """``--min-days`` fails early enough for somebody to do something."""
        relay, path = self.tls_relay("127.0.0.1")
        more = (f"--ca-file={path}", f"wss://127.0.0.1:{relay.port}")
        self.assertEqual(self.probe("--min-days=59", *more).returncode, 0)
        self.fails(Status.TLS, r"expires on \S+, in 59 days", "--min-days=60", *more)

    def test_another_host(self) -> None:
        """A relay that ends TLS itself for other names says so."""
        issued = Authority().issue("relay.test")
        files = self.directory / "chain.pem", self.directory / "key.pem"
        issued.store(*files)
        tls = [f"--tls-cert={files[0]}", f"--tls-key={files[1]}", "--domain=relay.test"]
        relay = Relay(self.directory, [*tls, "--tls-listen=127.0.0.1:0"])
        self.addCleanup(self._end, relay)
        eventually("the relay serves", relay.addresses)
        place = ("--insecure", f"--connect=127.0.0.1:{relay.port}")
        self.assertEqual(self.probe("--quiet", *place, "wss://relay.test").returncode, 0)
        # Of a name that it does not have, the relay says so before there is any HTTP.
        self.fails(Status.TLS, "does it serve the name other.test", *place, "wss://other.test")
        self.fails(Status.NO_RELAY, "421.*host name", *place, "wss://127.0.0.1")

    def test_no_tls_there(self) -> None:
        """TLS to a plain port, and the other way round, is told as what it is."""
        relay, _ = self.tls_relay("127.0.0.1")
        sentence = r"no HTTP/1\.1 answer.*did you mean wss://"
        self.fails(Status.NO_RELAY, sentence, f"ws://127.0.0.1:{relay.port}")
        plain = self.relay("--header-timeout=0.5")
        self.fails(Status.TLS, "ws://", f"wss://127.0.0.1:{plain.port}")


class UnreachableTests(ProbeTestCase):
    """No relay at all."""

    def test_refused(self) -> None:
        """A port that refuses is named."""
        with socket.socket() as unheard:
            unheard.bind(("127.0.0.1", 0))
            port = unheard.getsockname()[1]
            for scheme in ("ws", "wss"):
                sentence = rf"127\.0\.0\.1:{port} refuses connections"
                self.fails(Status.UNREACHABLE, sentence, f"{scheme}://127.0.0.1:{port}")

    def test_no_such_name(self) -> None:
        """A name that nobody has is named. (Without a name server, the look-up itself fails.)"""
        self.fails(Status.UNREACHABLE, r"relay\.invalid", "wss://relay.invalid")

    def test_no_such_socket(self) -> None:
        """A UNIX socket that is not there is named."""
        place = f"--connect={self.directory}/none"
        self.fails(Status.UNREACHABLE, "none.*No such file", place, "ws://relay.test")

    def test_a_name_server_that_does_not_answer(self) -> None:
        """The look-up of a name, which cannot be interrupted, does not outlast the deadline."""
        forever = threading.Event()
        self.addCleanup(forever.set)
        with mock.patch.object(socket, "getaddrinfo", side_effect=lambda *_, **__: forever.wait()):
            started = time.monotonic()
            status, output = run_here("--timeout=0.3", "ws://relay.test")
        self.assertEqual(status, Status.TIMEOUT)
        self.assertIn("Time is up after 0.3 s, in the step 'dns'.", output)
        self.assertLess(time.monotonic() - started, DEADLINE / 2)


class StrangerTests(ProbeTestCase):
    """Ports where something else listens."""

    def test_silence(self) -> None:
        """What accepts and says nothing costs the time-out, and no more."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            port = silent.getsockname()[1]
            for scheme, step in (("ws", "upgrade"), ("wss", "tls")):
                more = ("--timeout=0.5", f"{scheme}://127.0.0.1:{port}")
                self.fails(Status.TIMEOUT, f"after 0.5 s, in the step '{step}'", *more)

    def test_dribble(self) -> None:
        """What answers a byte at a time, for ever, does not hold the probe either."""
        stop = threading.Event()
        self.addCleanup(stop.set)

        def dribble(sock: socket.socket) -> None:
            sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
            while not stop.wait(0.05):
                sock.sendall(b"X")

        with answering(dribble) as url:
            self.fails(Status.TIMEOUT, "in the step 'upgrade'", "--timeout=1", url)

    def test_a_web_server(self) -> None:
        """A plain HTTP server is no relay."""

        class Quiet(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.send_error(404)

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        with ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
            self.addCleanup(server.shutdown)
            self.fails(Status.NO_RELAY, "404", f"http://127.0.0.1:{server.server_port}")
            server.shutdown()

    def test_answers(self) -> None:
        """Each refusal of an upgrade has its sentence; BUSY is what passes by itself."""
        for status, head, verdict, pattern in (
            (400, "", Status.NO_RELAY, "400.*drops headers"),
            (404, "", Status.NO_RELAY, "404.*no relay"),
            (421, "", Status.NO_RELAY, "421.*host name"),
            (426, "Upgrade: websocket\r\n", Status.NO_RELAY, "426.*drops headers"),
            (429, "Retry-After: 6\r\n", Status.BUSY, "429: too many.*in 6 s"),
            (503, "Retry-After: 5\r\n", Status.BUSY, "503: the relay is draining.*in 5 s"),
            (503, "Retry-After: soon\r\n", Status.BUSY, r"503: the relay is draining, or full"),
            (301, "Location: https://else.test/\r\n", Status.NO_RELAY, "301, not 101"),
            (500, "", Status.NO_RELAY, "500, not 101"),
            (200, "", Status.NO_RELAY, "200, not 101"),
        ):
            answer = f"HTTP/1.1 {status} x\r\n{head}Content-Length: 0\r\n\r\n".encode()
            with answering(answer) as url:
                self.fails(verdict, pattern, url)

    def test_garbage(self) -> None:
        """Bytes that are no HTTP, an answer that is no upgrade, or none at all."""
        for answer, pattern in (
            (b"220 mail.test ESMTP\r\n", "no HTTP/1.1 answer"),
            (b"\0" * 100_000, "no HTTP/1.1 answer"),
            (b"", "no HTTP/1.1 answer"),
            (b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n", "violates RFC 6455"),
        ):
            with answering(answer) as url:
                self.fails(Status.NO_RELAY, pattern, url)


@contextlib.contextmanager
def answering(answer: bytes | Callable[[socket.socket], None]) -> Iterator[str]:
    """Have a port where every connection is read from once, answered and closed."""
    server = socket.create_server(("127.0.0.1", 0))

    def converse(sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(DEADLINE)
            sock.recv(65536)
            if isinstance(answer, bytes):
                sock.sendall(answer)
            else:
                answer(sock)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=converse, args=(server.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"ws://127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.close()


class BusyTests(ProbeTestCase):
    """A relay that refuses for now."""

    def test_draining(self) -> None:
        """A relay that drains is busy, not broken: the answer is 503."""
        relay = self.relay("--drain-timeout=20", "--close-timeout=20")
        stays = BarePeer(relay, "/v1/server", binary_fields("stays"))
        self.addCleanup(stays.sock.close)
        # Its listeners close at once, so the connections are there already when it drains.
        waiting = [dial(relay.address) for _ in range(2)]
        relay.health()  # accepted after those
        relay.signal(signal.SIGTERM)
        eventually("it drains", lambda: " draining " in relay.log())
        with forwarding(waiting) as url:
            self.fails(Status.BUSY, "503: the relay is draining.*in 5 s", url)

    def test_too_many(self) -> None:
        """Tried too often, it is told when to try again; that may come in mid-probe as well."""
        relay = self.relay("--upgrade-rate=1", "--upgrade-burst=6")
        self.assertEqual(self.probe("--quiet", relay.url).returncode, 0)
        self.fails(Status.BUSY, r"429: too many upgrades.*try again in \d+ s", relay.url)

    def test_no_room(self) -> None:
        """A relay that is full is busy."""
        relay = self.relay("--max-connections-per-address=1")
        with BarePeer(relay, "/v1/server", binary_fields("first")):
            self.fails(Status.BUSY, r"503: the relay is draining, or full.*in 30 s", relay.url)

    def test_it_begins_to_drain(self) -> None:
        """A relay that begins to drain in the middle of a probe is busy too."""
        relay = self.relay("--log-level=debug")
        probe = self.child(PROBE, "--quiet", "--timeout=60", "--count=10000", relay.url)
        eventually("the round trips begin", lambda: "phone_registered" in relay.log())
        self.assertEqual(relay.stop(), 0)
        self.assertEqual(probe.wait(), Status.BUSY, probe.errors())
        self.assertIn("'1001 shutting down'", probe.errors())


@contextlib.contextmanager
def forwarding(onward: list[socket.socket]) -> Iterator[str]:
    """Have a port whose connections go on over these sockets, one each."""
    server = socket.create_server(("127.0.0.1", 0))

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while part := source.recv(65536):
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with contextlib.suppress(OSError):
            for there in onward:
                here, _ = server.accept()
                for pair in ((here, there), (there, here)):
                    threading.Thread(target=pump, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"ws://127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.close()
        for each in onward:
            each.close()


class FakeRelay:
    """Does what a relay does with one probe, but for what it is told to do wrong.

    ``wakes`` returns the answer to a push wake; without it there is none.
    """

    def __init__(self, wrong: str = "", wakes: Callable[[Any], str] | None = None) -> None:
        self.wrong = wrong
        self.wakes = wakes
        self.binary: ServerConnection | None = None
        self.ended = threading.Event()

    def note(self, peer: ServerConnection, request: Request) -> None:
        """Note who claims first, before anybody else is there."""
        if self.binary is None and request.path == "/v1/server":
            self.binary, self.claimed = peer, request.headers["X-Pyrycode-Server"]

    def __call__(self, peer: ServerConnection) -> None:
        request = peer.request
        assert request is not None
        server_id = request.headers["X-Pyrycode-Server"]
        if peer is self.binary:
            self.ended.wait(DEADLINE)
        elif request.path == "/v1/server":
            self.turn_away(peer)
        elif server_id == self.claimed:
            self.serve_phone(peer, json.dumps(f"client-{server_id}-00000000"))
        elif self.wrong == "unknown":
            peer.close(1000)
        else:
            peer.close(4404, "no server with that id")

    def turn_away(self, peer: ServerConnection) -> None:
        if self.wrong == "takes both":
            peer.send("{}")
        elif self.wrong == "reason":
            peer.close(4409, "\x1b[31mno")
        else:
            peer.close(4409, "server-id already claimed")

    def serve_phone(self, phone: ServerConnection, conn_id: str) -> None:
        assert self.binary is not None
        if self.wrong == "drops the binary":
            self.binary.close(1011, "internal error")
            self.ended.wait(DEADLINE)
        elif self.wrong == "drops the phone":
            phone.close(1011, "internal error")
        for frame in phone:
            shown = json.dumps(json.loads(frame)) if self.wrong == "encodes anew" else str(frame)
            told = {
                "no envelope": shown,
                "no object": "[]",
            }.get(self.wrong, f'{{"conn_id":{conn_id},"frame":{shown}}}')
            self.binary.send(told)
            if self.wrong == "drops frames":
                continue
            envelope = self.binary.recv()
            assert isinstance(envelope, str)
            back = envelope.partition('"frame":')[2][:-1]
            phone.send(back.replace(" ", "") if self.wrong == "back" else back)
        code = 1001 if self.wrong == "notice" else 1000
        self.binary.send(f'{{"conn_id":{conn_id},"close_code":{code}}}')
        if self.wakes is not None:
            self.binary.send(self.wakes(json.loads(self.binary.recv())["push_wake"]))


class FakeRelayTestCase(ProbeTestCase):
    def against(self, wrong: str = "", wakes: Callable[[Any], str] | None = None) -> int:
        """Have a fake relay, and return its port."""
        fake = FakeRelay(wrong, wakes)
        server = serve(fake, "127.0.0.1", 0, compression=None, process_request=fake.note)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.shutdown)
        self.addCleanup(fake.ended.set)
        return int(server.socket.getsockname()[1])


class MisbehaviourTests(FakeRelayTestCase):
    """What looks like a relay, and does something wrong."""

    def test_the_fake_is_good(self) -> None:
        """Told to do nothing wrong, the fake passes: the other tests are about one thing each."""
        run = self.probe(f"ws://127.0.0.1:{self.against('')}")
        self.assertEqual(run.returncode, 0, run.stdout)

    def test_misbehaviour(self) -> None:
        """Whatever is wrong is told in a sentence, without what the peer said in it raw."""
        for wrong, pattern in {
            "unknown": "closed with '1000' instead of '4404 no server with that id'",
            "reason": r"closed with '4409 \?\[31mno' instead of",
            "takes both": "sent a message instead of closing with 4409",
            "drops the binary": "closed the binary's connection with '1011 internal error'",
            "drops the phone": "closed the phone's connection with '1011 internal error'",
            "encodes anew": "A frame was changed on its way to the binary",
            "no envelope": "received a message that is not an envelope",
            "no object": "received a message that is not an envelope",
            "back": "A frame was changed on its way to the phone",
            "notice": "did not receive its phone's close notice with code 1000",
        }.items():
            self.fails(Status.MISBEHAVES, pattern, f"ws://127.0.0.1:{self.against(wrong)}")

    def test_frames_that_do_not_come(self) -> None:
        """A frame that is lost costs the time-out."""
        url = f"ws://127.0.0.1:{self.against('drops frames')}"
        self.fails(Status.TIMEOUT, "in the step 'round trips'", "--timeout=1", url)


class WakeTests(FakeRelayTestCase):
    """``--wake`` sends one push wake; the status is 0 only if the relay has sent it."""

    TOKEN = "wake-secret:4711"

    def wake(self, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a probe with a wake. The token is in nothing that the probe prints."""
        run = self.probe(f"--wake=fcm:{self.TOKEN}", *arguments, url)
        self.assertNotIn("wake-secret", run.stdout + run.stderr)
        return run

    def result(self, outcome: str) -> int:
        """Have a fake relay whose wakes have this outcome, and return its port."""

        def answer(wake: Any) -> str:
            self.assertEqual((wake["platform"], wake["token"]), ("fcm", self.TOKEN))
            return json.dumps({"push_result": {"reply": wake["reply"], "outcome": outcome}})

        return self.against(wakes=answer)

    def test_sent(self) -> None:
        """A wake that was sent is a step of the report like the others."""
        run = self.wake(f"ws://127.0.0.1:{self.result('sent')}")
        self.assertEqual((run.returncode, run.stderr), (0, ""), run)
        self.assertRegex(run.stdout, r"(?m)^ok +wake +sent by fcm +[\d.]+ ms$")
        found = json.loads(self.wake(f"ws://127.0.0.1:{self.result('sent')}", "--json").stdout)
        step = found["steps"]["wake"]
        self.assertEqual((step["ok"], step["platform"], step["outcome"]), (True, "fcm", "sent"))
        self.assertEqual([*found["steps"]], [*ALL_STEPS, "wake"])

    def test_not_sent(self) -> None:
        """Each other outcome is a sentence that says what to do or where to look."""
        for outcome, pattern in {
            "unregistered": "token is dead; the device must register again",
            "failed": "push_wake_failed in its log says why",
            "dropped": "push is off, .*push_wake_dropped in its log",
        }.items():
            url = f"ws://127.0.0.1:{self.result(outcome)}"
            run = self.wake(url, "--json")
            found = json.loads(run.stdout)
            self.assertEqual((run.returncode, found["status"]), (Status.NOT_WOKEN,) * 2)
            self.assertRegex(found["problem"], pattern)
            step = found["steps"]["wake"]
            self.assertEqual((step["ok"], step["outcome"]), (False, outcome))

    def test_wrong_answers(self) -> None:
        """An answer to another wake, with an unknown outcome, or of another form is no outcome."""
        for answer in (
            '{"push_result":{"reply":"another","outcome":"sent"}}',
            '{"push_result":{"reply":"REPLY","outcome":"wake-secret"}}',
            '{"push_result":{"reply":"REPLY","outcome":["sent"]}}',
            '{"push_result":{"reply":"REPLY"}}',
            '{"push_result":null}',
            "[]",
            "wake-secret",
        ):

            def reply(wake: dict[str, Any], answer: str = answer) -> str:
                return answer.replace("REPLY", wake["reply"])

            port = self.against(wakes=reply)
            run = self.wake(f"ws://127.0.0.1:{port}", "--quiet")
            self.assertEqual(run.returncode, Status.MISBEHAVES, answer)
            self.assertIn("The answer to the push wake is not a push_result.", run.stderr)

    def test_no_answer(self) -> None:
        """A relay that does not answer costs the time-out; the sentence says what it may be."""
        run = self.wake(f"ws://127.0.0.1:{self.against()}", "--quiet", "--timeout=1")
        self.assertEqual(run.returncode, Status.TIMEOUT)
        self.assertRegex(run.stderr, "after 1 s, in the step 'wake': .*still trying.*older one")

    def test_push_off(self) -> None:
        """A relay without push says that it dropped the wake, and why in its log."""
        relay = self.relay()
        run = self.wake(relay.url, "--quiet")
        self.assertEqual(run.returncode, Status.NOT_WOKEN)
        self.assertIn("The relay refused the push wake, because push is off", run.stderr)
        self.assertRegex(
            relay.log(), r"warn push_wake_dropped server_id=pyrycode-relay-probe-.*not configured"
        )
        self.assertNotIn("wake-secret", relay.log())

    def test_through_fcm(self) -> None:
        """A relay with push tells the probe what its provider said."""
        needs.module("google.auth", "pyrycode-relay[push]")
        google = FcmServer(self.directory)
        self.addCleanup(google.close)
        relay = self.relay(*google.options)
        self.assertEqual(self.wake(relay.url, "--quiet").returncode, 0)
        [sent] = google.requests(SEND)
        self.assertIn(self.TOKEN, json.dumps(sent))
        for step, pattern in (
            (error(404, "NOT_FOUND", fcm_error("UNREGISTERED")), "token is dead"),
            (error(403, "PERMISSION_DENIED"), "push_wake_failed in its log"),
        ):
            google.next(SEND, step)
            run = self.wake(relay.url, "--quiet")
            self.assertEqual(run.returncode, Status.NOT_WOKEN)
            self.assertRegex(run.stderr, pattern)
        google.next(SEND, misdeed("hang"))
        run = self.wake(relay.url, "--quiet", "--timeout=1")
        self.assertEqual(run.returncode, Status.TIMEOUT)
        self.assertIn("the relay is still trying", run.stderr)
        self.assertNotIn("wake-secret", relay.log())

    def test_a_file(self) -> None:
        """The token can come from a file; then it is not in the list of processes."""
        path = self.directory / "token"
        path.write_text(f"{self.TOKEN}\n", encoding="utf-8")
        port = self.result("sent")
        run = self.probe(f"--wake=fcm:@{path}", f"ws://127.0.0.1:{port}")
        self.assertEqual(run.returncode, 0, run)

    def test_wrong_usage(self) -> None:
        """A mistake costs a sentence without the token, however the token got there."""
        binary = self.directory / "binary"
        binary.write_bytes(b"\xff\xfe")
        for arguments, pattern in (
            (["--wake=wake-secret"], "--wake is invalid; allowed: PLATFORM:TOKEN or"),
            (["--wake=wake secret:x"], "--wake is invalid"),
            (["--wake=fcm:"], "token of --wake is empty"),
            ([f"--wake=fcm:{'wake-secret' * 400}"], "over 4096 bytes"),
            (["--wake=fcm:@wake-secret"], "file of --wake cannot be read: No such file"),
            ([f"--wake=fcm:@{binary}"], "cannot be read: it is not text"),
            (["--wake", "fcm", "wake-secret"], "unrecognized arguments"),
            (["--wake=fcm:x", "wake-secret"], "unrecognized arguments"),
            (["--wakes=fcm:wake-secret"], "unrecognized arguments: --wakes"),
        ):
            run = self.probe("ws://relay.invalid", *arguments)
            self.assertEqual((run.returncode, run.stdout), (Status.USAGE, ""), run)
            self.assertRegex(run.stderr.splitlines()[-1], pattern)
            self.assertNotIn("wake-secret", run.stderr)


class CommandTests(ProbeTestCase):
    """The command line itself."""

    def test_help(self) -> None:
        """``--help`` is a page: what it does, every option, every status, and examples."""
        run = self.probe("--help")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        options = set(re.findall(r"--[a-z-]+", run.stdout.partition("\n\n")[0]))
        self.assertGreater(len(options), 8)
        for name in options:
            self.assertIn(f"\n  {name}", run.stdout)
        for status, meaning in MEANINGS.items():
            self.assertIn(f"\n  {status.value:<3}  {meaning}\n", run.stdout)
        self.assertLess(max(map(len, run.stdout.splitlines())), 100)

    def test_statuses_in_the_manual(self) -> None:
        """The manual has every status."""
        manual = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
        section = manual.partition("## Probe\n")[2].partition("\n## ")[0]
        self.assertEqual(
            re.findall(r"(?m)^\| (\d+) \|", section), [str(int(each)) for each in Status]
        )

    def test_version(self) -> None:
        """``--version`` is the package's."""
        self.assertEqual(self.probe("--version").stdout, f"pyrycode-relay-probe {__version__}\n")

    def test_wrong_usage(self) -> None:
        """What cannot be is status 2 and a sentence; nothing is connected to."""
        for arguments, pattern in (
            ([], "URL"),
            (["ftp://relay.test"], "scheme 'ftp'"),
            (["ws://a", "ws://b"], "ws://b"),
            (["ws://a", "--timeout=0"], "--timeout: 0 is not in 0.1 to 3600"),
            (["ws://a", "--timeout=nan"], "--timeout: nan is not in"),
            (["ws://a", "--timeout=soon"], "--timeout: invalid number value: 'soon'"),
            (["ws://a", "--count=0"], "--count: 0 is not in 1 to 10000"),
            (["ws://a", "--count=1.5"], "--count"),
            (["ws://a", "--insecure", "--ca-file=x"], "not allowed with"),
            (["ws://a", "--ca-file=none.pem"], "'none.pem': No such file"),
            (["ws://a", f"--ca-file={__file__}"], "no PEM certificates"),
            (["ws://a", "--connect=here"], "--connect is 'here'; allowed: "),
            (["ws://a", "--fast"], "--fast"),
        ):
            run = self.probe(*arguments)
            self.assertEqual((run.returncode, run.stdout), (2, ""), run)
            self.assertRegex(run.stderr.splitlines()[-1], re.escape(pattern))

    def test_no_token_and_no_secret(self) -> None:
        """Neither the report nor the relay's log shows a token, nor what a URL had in it."""
        relay = self.relay("--log-level=debug")
        run = self.probe("--json", relay.url)
        self.assertNotIn("token", (run.stdout + run.stderr + relay.log()).lower())
        run = self.probe("wss://me:hunter2@relay.test")
        self.assertNotIn("hunter2", run.stdout + run.stderr)

    def test_the_relay_does_without(self) -> None:
        """A relay's process never loads the client, only that library's compiled masking."""
        program = """if True:
            import sys
            from pyrycode_relay import tap
            options = tap.Options()
            options.parseOptions(["--insecure-listen=127.0.0.1:0"])
            tap.makeService(options)
            masking = {f"websockets{each}" for each in ("", ".imports", ".speedups", ".version")}
            loaded = [each for each in sys.modules
                if each.startswith(("websockets", "pyrycode_relay.probe"))]
            print([each for each in loaded if each not in masking])
        """
        listed = self.child(sys.executable, "-c", program)
        self.assertEqual((listed.wait(), listed.output()), (0, "[]\n"), listed.errors())
