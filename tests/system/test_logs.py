"""Where the log goes: pipes that nobody reads, full disks, the journal, files that are rotated."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import select
import signal
import stat
import sys
from pathlib import Path

from tests import needs
from tests.peers.requests import binary_fields, upgrade_request
from tests.peers.waiting import DEADLINE, eventually
from tests.system.harness import ROOT, Relay, SystemTestCase, dial, fetch

RECIPE = ROOT / "deploy" / "logrotate" / "pyrycode-relay"

STARTED, STOPPED = ["starting", "listening", "ready"], ["draining", "drained"]
"""The events of a relay that nobody uses."""

_TO_FIFO = ("sh", "-c", 'fifo=$1; shift; exec "$@" >"$fifo"', "sh")
"""Starts a program whose standard output is a FIFO."""

_AS_JOURNAL = """if True:
    import os, sys
    status = os.fstat(1)
    os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino}"
    os.execv(sys.argv[1], sys.argv[1:])
"""
"""Starts a program whose standard output passes for the journal."""


class LogCase(SystemTestCase):
    """Starts relays on a UNIX socket, so that a test need not read the log to find them."""

    def setUp(self) -> None:
        super().setUp()
        self.socket = str(self.directory / "socket")

    def quiet_relay(self, *options: str, **more: object) -> Relay:
        """Start a relay and wait until it serves."""
        listen = f"--insecure-listen=unix:{self.socket}"
        relay = Relay(self.directory, [listen, *options], **more)  # type: ignore[arg-type]
        self.addCleanup(relay.kill)
        eventually("it serves", lambda: os.path.exists(self.socket) and self.ready())
        return relay

    def ready(self) -> bool:
        """Whether the relay serves."""
        with contextlib.suppress(OSError):
            return fetch(self.socket, "/readyz")[0] == 200
        return False

    def claim(self, server_id: str) -> None:
        """Come and go as a binary with a long version, which makes a line of 4 KB."""
        fields = {**binary_fields(server_id), "X-Pyrycode-Version": "1." + "0" * 4000}
        with dial(self.socket) as sock:
            sock.sendall(upgrade_request("/v1/server", fields))
            self.assertTrue(sock.recv(4096).startswith(b"HTTP/1.1 101 "))


class StuckTests(LogCase):
    """A log that nobody takes."""

    claims = 400

    def test_a_pipe_that_nobody_reads(self) -> None:
        """The relay serves on; what fits is kept, and the log says how much does not fit."""
        fifo = self.directory / "fifo"
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reading)
        relay = self.quiet_relay(launcher=(*_TO_FIFO, str(fifo)))
        for number in range(self.claims):
            self.claim(f"binary-{number}")
        self.assertEqual(fetch(self.socket, "/readyz")[0], 200)
        os.set_blocking(reading, True)
        written = bytearray()
        while b" log_lines_dropped lines=" not in written:
            written += os.read(reading, 65536)
        relay.signal(signal.SIGTERM)
        while part := os.read(reading, 65536):
            written += part
        self.assertEqual(relay.wait(), 0)
        lines = written.decode().splitlines()
        events = [line.split()[2] for line in lines]
        [dropped] = [line for line in lines if " log_lines_dropped " in line]
        count = int(re.fullmatch(r".* warn log_lines_dropped lines=(\d+)", dropped)[1])  # type: ignore[index]
        self.assertGreater(len(lines), 200)
        made = len(STARTED) + 2 * self.claims  # a claim and a release each
        ends = ["log_lines_dropped", *STOPPED]
        self.assertEqual(events[-3:], ends)
        self.assertEqual(len(events) - len(ends) + count, made)

    def test_a_stop_with_a_pipe_that_nobody_reads(self) -> None:
        """The end of the process waits for the log for a moment only."""
        fifo = self.directory / "fifo"
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        self.addCleanup(os.close, reading)
        fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, 4096)
        relay = self.quiet_relay(launcher=(*_TO_FIFO, str(fifo)))
        for number in range(4):
            self.claim(f"binary-{number}")
        self.assertEqual(relay.stop(), 0)
        self.assertTrue(select.select([reading], [], [], 0)[0])

    def test_a_reader_that_leaves(self) -> None:
        """A broken pipe costs lines only."""
        fifo = self.directory / "fifo"
        os.mkfifo(fifo)
        reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
        relay = self.quiet_relay(launcher=(*_TO_FIFO, str(fifo)))
        os.close(reading)
        self.claim("binary")
        self.assertEqual(fetch(self.socket, "/readyz")[0], 200)
        self.assertEqual((relay.stop(), relay.errors()), (0, ""))

    def test_a_full_disk(self) -> None:
        """A disk without room costs lines only, and the metrics count them."""
        admin = self.directory / "admin"
        relay = self.quiet_relay(
            f"--admin-listen=unix:{admin}", "--admin-allow-remote", logfile=Path("/dev/full")
        )
        self.claim("binary")

        def dropped() -> bool:
            _, metrics = fetch(str(admin), "/metrics")
            [count] = re.findall(rb"(?m)^pyrycode_relay_log_lines_dropped_total (\S+)$", metrics)
            return float(count) >= 2

        eventually("lines are dropped", dropped)
        self.assertEqual((relay.stop(), relay.errors()), (0, ""))


class JournalTests(LogCase):
    def test_priorities(self) -> None:
        """In the journal each line has its priority, and nowhere else."""
        for launcher, pattern in (
            ((sys.executable, "-c", _AS_JOURNAL), r"<6>\d{4}-\S+ info \w+.*"),
            ((), r"\d{4}-\S+ info \w+.*"),
        ):
            relay = self.quiet_relay(launcher=launcher)
            self.assertEqual(relay.stop(), 0)
            lines = relay.output().splitlines()
            self.assertEqual(len(lines), len([*STARTED, *STOPPED]))
            for line in lines:
                self.assertRegex(line, rf"\A{pattern}\Z")


class FileTests(LogCase):
    """``--logfile``."""

    def events(self, *logs: Path) -> list[str]:
        """Return the names of all events in files, which are JSON."""
        return [
            json.loads(line)["event"]
            for log in logs
            for line in log.read_text(encoding="utf-8").splitlines()
        ]

    def test_rotated(self) -> None:
        """After a rename, SIGUSR1 goes on in a new file, which is not for everybody to read."""
        log = self.directory / "relay.log"
        relay = self.quiet_relay("--log-format=json", logfile=log)
        self.assertEqual(stat.S_IMODE(log.stat().st_mode), 0o640)
        aside = log.with_name("relay.log.1")
        eventually("it has started", lambda: b'"ready"' in log.read_bytes())
        log.rename(aside)
        relay.signal(signal.SIGUSR1)
        eventually("there is a new file", log.exists)
        self.assertEqual(relay.stop(), 0)
        self.assertEqual(stat.S_IMODE(log.stat().st_mode), 0o640)
        self.assertEqual((self.events(aside), self.events(log)), (STARTED, STOPPED))
        self.assertEqual(relay.output() + relay.errors(), "")

    def test_nothing_to_rotate(self) -> None:
        """SIGUSR1 does not end a relay that logs to standard output."""
        relay = self.quiet_relay()
        relay.signal(signal.SIGUSR1)
        self.claim("binary")
        self.assertEqual(relay.stop(), 0)

    def test_logrotate(self) -> None:
        """The shipped recipe, carried out by logrotate, loses no line, time and again."""
        logrotate = needs.program("logrotate")
        logs, pidfile = self.directory / "logs", self.directory / "pid"
        logs.mkdir(mode=0o750)
        log = logs / "relay.log"
        relay = self.quiet_relay("--log-format=json", logfile=log)
        pidfile.write_text(str(relay.pid))
        recipe = RECIPE.read_text(encoding="utf-8")
        for place, here in {
            "/var/log/pyrycode-relay": str(logs),
            "/run/pyrycode-relay.pid": str(pidfile),
            "    compress\n": "",
        }.items():
            self.assertIn(place, recipe)
            recipe = recipe.replace(place, here)
        config = self.directory / "logrotate.conf"
        config.write_text(recipe)
        config.chmod(0o644)
        for turn in range(3):
            self.claim(f"binary-{turn}")
            released = f'"server_id": "binary-{turn}"'
            eventually("it is logged", lambda s=released: log.read_text().count(s) == 2)
            run = self.child(*(logrotate, "--force", f"--state={self.directory / 'state'}", config))
            self.assertEqual((run.wait(), run.errors()), (0, ""))
            eventually("there is a new file", log.exists)
        self.assertEqual(relay.stop(), 0)
        olds = [log.with_name(f"relay.log.{number}") for number in (3, 2, 1)]
        turn_events = ["server_claimed", "server_released"]
        self.assertEqual(self.events(*olds, log), [*STARTED, *turn_events * 3, *STOPPED])

    def test_no_place(self) -> None:
        """A log file that cannot be opened is one sentence, and status 2."""
        relay = Relay(
            self.directory,
            [f"--insecure-listen=unix:{self.socket}"],
            logfile=self.directory / "none" / "relay.log",
        )
        self.addCleanup(relay.kill)
        self.assertEqual(relay.wait(DEADLINE), 2)
        why = r"Cannot write the log to .*relay\.log: No such file or directory; give --logfile"
        self.assertRegex(relay.errors(), rf"\Apyrycode-relay: {why} another path\.\n\Z")
