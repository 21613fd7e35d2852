"""``twistd pyrycode-relay`` as an operator sees it: options, mistakes, listeners, logs, daemons."""

from __future__ import annotations

import ast
import asyncio
import configparser
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from websockets.asyncio.client import unix_connect

import pyrycode_relay
from pyrycode_relay import __version__
from pyrycode_relay.config import help_page
from pyrycode_relay.config.options import OPTIONS
from pyrycode_relay.config.values import (
    ADDRESS,
    ADDRESS_OR_NONE,
    ALLOWED_HOST,
    DIRECTORY,
    DOMAIN,
    EMAIL,
    FILE_OR_NONE,
    HTTPS,
    PATH,
    SECRET,
    SOURCE,
    SUBJECT,
    SWITCH,
    TLS_ADDRESS,
)
from tests import needs
from tests.peers.requests import phone_fields
from tests.peers.waiting import DEADLINE, eventually
from tests.system.harness import (
    COMMAND,
    ROOT,
    TWISTD,
    BarePeer,
    Relay,
    SystemTestCase,
    binary,
    clean_environment,
    echo,
    fetch,
    passing,
    round_trip,
    run_program,
)

LISTEN = "insecure-listen"

WRONG = {
    "a number of seconds above 0, up to 86400": ["", "x", "0", "-1", "86401", "nan", "inf", "30 s"],
    "a number of bytes above 0, such as 4096, 64K or 256M": ["", "0", "-1", "1.5K", "K", "64X"],
    "a number of bytes, such as 4096 or 64K, or 0": ["", "-1", "x", "1e3", "2000G"],
    "a whole number from 1 to 1000000": ["", "0", "-1", "1.5", "1000001", "many"],
    "a whole number from 0 to 1000000": ["", "-1", "0.5", "1000001", "none"],
    "a whole number from 1 to 16, or auto": ["", "0", "-1", "17", "1.5", "all"],
    "a number from 0.01 to 1000000, or 0": ["", "-1", "1000001", "nan", "inf", "10/min", "5e-324"],
    "a share from 0 to 0.9": ["", "-0.1", "0.91", "nan", "10%", "half"],
    ADDRESS.allowed: [":x", "", ":65536"],
    ADDRESS_OR_NONE.allowed: [":x", "off", "127.0.0.1"],
    SWITCH.allowed: ["perhaps", "2", "-"],
    SOURCE.allowed: ["", "10.0.0.1/8", "localhost", "::1%lo", "10.0.0.0/33"],
    TLS_ADDRESS.allowed: [":x", "", "ssl:443"],
    PATH.allowed: [""],
    FILE_OR_NONE.allowed: ["none.pem", "/", "/dev/null", "x" * 5000],
    HTTPS.allowed: [
        *("", "http://ca.example/dir", "https://", "ca.example", "https://me@ca.example/dir"),
        *("https://ca.example/a b", "https://ca.example:0/", "https://ca.example:x/"),
    ],
    EMAIL.allowed: ["ops", "@example.org", "a@b, c@d", "a@b@c", "a b@c", "a@b\nx"],
    ALLOWED_HOST.allowed: ["", ".", "*.example.org", "example.org:443", "https://example.org"],
    SUBJECT.allowed: ["ops@example.org", "mailto:", "mailto:a@b,c@d", "http://example.org"],
    DOMAIN.allowed: ["", "*.example.org", "192.0.2.1", "relay.example.org:443"],
    "evict or keep": ["", "Evict", "both"],
    "text or json": ["", "JSON", "xml"],
    "debug, info, warn or error": ["", "verbose", "20"],
}
"""Wrong texts for each kind of value, by the words for what is allowed."""


class CommandLineTestCase(SystemTestCase):
    """Runs the command, which exits."""

    def setUp(self) -> None:
        super().setUp()
        self.socket = self.directory / "s"
        self.listen = f"--insecure-listen=unix:{self.socket}"

    def twistd(
        self,
        *options: str,
        twistd: Sequence[str] = ("--pidfile=", "-n"),
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run the command until it exits."""
        return run_program(
            TWISTD,
            *twistd,
            "pyrycode-relay",
            *options,
            directory=self.directory,
            environment=environment,
        )

    def refused(
        self, run: subprocess.CompletedProcess[str], *patterns: str, output: bool = False
    ) -> None:
        """Check that a run failed with one sentence for each pattern, and printed nothing else."""
        self.assertNotIn(run.returncode, {0, -signal.SIGTERM}, run)
        lines = run.stderr.splitlines()
        self.assertEqual(len(lines), len(patterns), run.stderr)
        for line, pattern in zip(lines, patterns, strict=True):
            self.assertRegex(line, rf"\Apyrycode-relay: .*{pattern}.*")
            self.assertRegex(line, r"[.?]\Z")
        if not output:
            self.assertEqual(run.stdout, "")
        self.assertFalse(self.socket.exists(), "something was bound")


class OptionTests(CommandLineTestCase):
    """Options that print something, and mistakes in options."""

    def test_version(self) -> None:
        """``--version`` prints the version and exits with 0."""
        run = self.twistd("--version")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        self.assertEqual(run.stdout, f"pyrycode-relay {__version__}\n")

    def test_library_without_a_private_name(self) -> None:
        """A library that lacks a name that the relay uses is named with its version."""
        (self.directory / "sitecustomize.py").write_text(
            "from twisted.protocols.tls import TLSMemoryBIOProtocol\n"
            "del TLSMemoryBIOProtocol._checkHandshakeStatus\n"
        )
        run = self.twistd(self.listen, environment={"PYTHONPATH": str(self.directory)})
        version = re.escape(metadata.version("Twisted"))
        lost = r"TLSMemoryBIOProtocol\._checkHandshakeStatus"
        self.refused(run, f"Twisted {version} has no {lost}, used by pyrycode_relay")

    def test_help(self) -> None:
        """``--help`` prints the whole help and ``-h`` the short one; both exit with 0."""
        for option, lines in (("--help", help_page.whole()), ("-h", help_page.short())):
            run = self.twistd(option)
            self.assertEqual((run.returncode, run.stderr), (0, ""))
            self.assertEqual(run.stdout.splitlines(), [*lines])

    def test_help_that_nobody_reads(self) -> None:
        """A reader that ends before the help does costs no traceback."""
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, "wb") as output:
            child = subprocess.run(
                [TWISTD, "pyrycode-relay", "--help"],
                stdout=output,
                stderr=subprocess.PIPE,
                env=clean_environment(),
                timeout=DEADLINE,
                check=False,
            )
        self.assertEqual((child.returncode, child.stderr), (0, b""))

    def test_check_config(self) -> None:
        """``--check-config`` prints every setting and binds nothing."""
        run = self.twistd(
            self.listen,
            "--insecure-listen=:8080",
            "--check-config",
            "--memory-budget=256M",
            "--hold-bytes=64k",
            "--outbox-bytes=1 MiB",
            "--send-buffer=0",
            "--grace=0.5",
            "--write-stall=2.5",
            "--on-reclaim=keep",
            "--log-format=json",
            "--log-level=WARN",
        )
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        printed = tomllib.loads(run.stdout)
        self.assertEqual(set(printed), {each.name for each in OPTIONS})
        first, second = printed[LISTEN]
        self.assertEqual(first, f"unix:{self.socket}")
        self.assertTrue(second.startswith("tcp:8080:"), second)
        expected = {
            "memory-budget": 256 * 2**20,
            "hold-bytes": 64 * 2**10,
            "outbox-bytes": 2**20,
            "send-buffer": 0,
            "grace": 0.5,
            "write-stall": 2.5,
            "on-reclaim": "keep",
            "log-format": "json",
            "log-level": "warn",
            "max-phones": 16,
            "limits-dry-run": False,
        }
        self.assertEqual({k: v for k, v in printed.items() if k in expected}, expected)
        self.assertRegex(run.stdout, r"(?m)^grace = 0.5 +# --grace$")
        self.assertRegex(run.stdout, r"(?m)^max-phones = 16 +# default$")
        self.assertTrue(run.stdout.endswith("\n\n# The configuration is fine.\n"))
        self.assertFalse(self.socket.exists())

    def test_what_is_printed_can_be_given(self) -> None:
        """The output of ``--check-config`` is a configuration file with the same settings."""
        first = self.twistd(self.listen, "--grace=2.25", "--limits-dry-run", "--check-config")
        path = self.directory / "printed.toml"
        path.write_text(first.stdout)
        again = self.twistd(f"--config={path}", "--check-config")
        self.assertEqual((again.returncode, again.stderr), (0, ""))
        self.assertEqual(tomllib.loads(again.stdout), tomllib.loads(first.stdout))
        # All but --admin-listen, which these tests turn off in the environment.
        self.assertEqual(again.stdout.count(f"# {path}\n"), len(OPTIONS) - 1)

    def test_configuration_file(self) -> None:
        """The environment wins over a file, and the command line over both."""
        path = self.directory / "relay.toml"
        path.write_text(
            f'insecure_listen = ["unix:{self.socket}"]  # here\ngrace = 5\nmax-phones = 6\n'
            "write-stall = 7\n"
        )
        environment = {
            "PYRYCODE_RELAY_CONFIG": str(path),
            "PYRYCODE_RELAY_MAX_PHONES": "8",
            "PYRYCODE_RELAY_WRITE_STALL": "9",
        }
        run = self.twistd("--check-config", "--write-stall=10", environment=environment)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        printed = tomllib.loads(run.stdout)
        found = [printed[name] for name in ("grace", "max-phones", "write-stall")]
        self.assertEqual(found, [5, 8, 10])
        self.assertRegex(run.stdout, rf"(?m)^grace = 5 +# {re.escape(str(path))}$")
        self.assertRegex(run.stdout, r"(?m)^max-phones = 8 +# PYRYCODE_RELAY_MAX_PHONES$")
        other = self.directory / "other.toml"
        other.write_text(f"grace = 1\n{LISTEN} = ':1'")
        run = self.twistd(f"--config={other}", "--check-config", environment=environment)
        self.assertEqual(tomllib.loads(run.stdout)["grace"], 1)
        relay = self.relay(listen=None, environment=environment)
        self.assertEqual(relay.address, str(self.socket))

    def test_wrong_configuration_files(self) -> None:
        """Each file that cannot be used is one sentence, with the line of the mistake."""
        path = self.directory / "relay.toml"
        option = f"--config={path}"
        self.refused(self.twistd(option), "Cannot read .*relay.toml: No such file or directory")
        self.refused(self.twistd(f"--config={self.directory}"), "Cannot read .*: Is a directory")
        for text, pattern in {
            b"grace = 1\ngrace = = 2": "relay.toml, line 2: ",
            b"grace = 1\n\xff": "relay.toml, line 2: not UTF-8",
            b"[limits]\ngrace = 1": "relay.toml: limits is a table; ",
            b"max_phone = 1": "relay.toml: max-phone is not a setting; did you mean max-phones\\?",
            b"grace = 'soon'": "relay.toml: grace is 'soon'; allowed: ",
        }.items():
            path.write_bytes(text)
            run = self.twistd(option, self.listen)
            self.assertEqual((run.returncode, run.stdout), (2, ""))
            [line] = run.stderr.splitlines()
            self.assertRegex(line, rf"\Apyrycode-relay: .*{pattern}")

    def test_example(self) -> None:
        """``--example-config`` prints the file in the repository, which has the defaults."""
        run = self.twistd("--example-config")
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        path = ROOT / "deploy" / "relay.toml"
        hint = "make deploy/relay.toml brings it up to date"
        self.assertEqual(path.read_text(encoding="utf-8"), run.stdout, hint)
        run = self.twistd(f"--config={path}", self.listen, "--check-config")
        # Not where it listens, nor the metrics, which these tests' environment turns off.
        self.assertEqual(run.stdout.count("# default\n"), len(OPTIONS) - 2)

    def test_wrong_values(self) -> None:
        """Every wrong value is one sentence that names option, value and what is allowed.

        All sentences come at once, and nothing is bound.
        """
        rounds = max(map(len, WRONG.values()))
        options = [each for each in OPTIONS if each.kind is not SECRET]
        self.assertEqual({option.kind.allowed for option in options}, set(WRONG))
        for number in range(rounds):
            values = {}
            for option in options:
                wrong = WRONG[option.kind.allowed]
                values[option.name] = wrong[number % len(wrong)]
            # A switch stands alone on the command line.
            switches = {each.variable: values.pop(each.name) for each in options if each.is_switch}
            run = self.twistd(
                *(f"--{name}={v}" for name, v in values.items()), environment=switches
            )
            given = {f"--{name}": v for name, v in values.items()} | switches
            sentences = [
                re.escape(f"{place} is {given[place]!r}; allowed: {each.kind.allowed}")
                for each in options
                for place in [each.variable if each.is_switch else f"--{each.name}"]
            ]
            self.refused(run, *sentences)

    def test_wrong_values_in_the_environment(self) -> None:
        """The sentence names the variable if the value is in the environment."""
        environment = {
            "PYRYCODE_RELAY_GRACE": "soon",
            "PYRYCODE_RELAY_MAX_PHONES": "0",
            "PYRYCODE_RELAY_LOG_LEVEL": "",
            "PYRYCODE_RELAY_INSECURE_LISTEN": "tcp:x :70000",
        }
        run = self.twistd("--hold-bytes=none", environment=environment)
        self.refused(
            run,
            "PYRYCODE_RELAY_INSECURE_LISTEN is 'tcp:x'",
            "PYRYCODE_RELAY_INSECURE_LISTEN is ':70000'",
            "PYRYCODE_RELAY_GRACE is 'soon'",
            "PYRYCODE_RELAY_MAX_PHONES is '0'",
            "--hold-bytes is 'none'",
            "PYRYCODE_RELAY_LOG_LEVEL is ''",
        )

    def test_wrong_addresses(self) -> None:
        """Each text that is no address is a sentence; so is a start without addresses."""
        wrong = [
            "",
            ":",
            ":x",
            ":-1",
            ":65536",
            "127.0.0.1:",
            "localhost",
            "ssl:x",
            "tcp:",
            "[::1:8",
            "localhost:",
            "localhost:65536",
        ]
        run = self.twistd(self.listen, *(f"--insecure-listen={each}" for each in wrong))
        self.refused(run, *(re.escape(f"--insecure-listen is {each!r}; ") for each in wrong))
        self.refused(self.twistd(), "--insecure-listen")
        run = self.twistd(environment={"PYRYCODE_RELAY_INSECURE_LISTEN": "  "})
        self.refused(run, "--insecure-listen")

    def test_unknown_options(self) -> None:
        """An unknown option is one sentence with the nearest one; so is one without its value."""
        self.refused(self.twistd(self.listen, "--gras=5"), r"--gras .*did you mean --grace\?")
        self.refused(self.twistd(self.listen, "--xyz"), "--xyz not recognized; --help lists them")
        self.refused(self.twistd(self.listen, "--check-config=yes"), "check-config")
        self.refused(self.twistd(self.listen, "--grace"), "grace requires argument; see --help")
        self.refused(self.twistd(self.listen, "-x"), "x")
        self.refused(self.twistd(self.listen, "now"), "'now'")

    def test_limits_that_contradict(self) -> None:
        """Limits that make no sense together are refused, a sentence for each."""
        run = self.twistd(
            self.listen, "--outbox-bytes=64K", "--memory-budget=1K", "--heartbeat-interval=0.1"
        )
        self.refused(
            run,
            "--outbox-bytes is 65536, but one message may count 262208 bytes",
            r"--memory-budget is 1024, .* 65536 bytes \(--outbox-bytes\)",
            r"--memory-budget is 1024, .* 1048576 bytes \(--hold-bytes\)",
            "--heartbeat-interval is 0.1, .*; give at least 1 second",
        )

    def test_unknown_variables(self) -> None:
        """An environment variable that looks like a setting and is none is refused by name.

        Kubernetes sets some for each of its services, and these are no mistakes.
        """
        kubernetes = {
            "PYRYCODE_RELAY_SERVICE_HOST": "10.0.0.1",
            "PYRYCODE_RELAY_SERVICE_PORT": "80",
            "PYRYCODE_RELAY_SERVICE_PORT_HTTP": "80",
            "PYRYCODE_RELAY_PORT": "tcp://10.0.0.1:80",
            "PYRYCODE_RELAY_PORT_80_TCP": "tcp://10.0.0.1:80",
            "PYRYCODE_RELAY_PORT_80_TCP_ADDR": "10.0.0.1",
            "PYRYCODE_RELAY_ADMIN_PORT_9090_TCP_PROTO": "tcp",
        }
        run = self.twistd(self.listen, "--check-config", environment=kubernetes)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        wrong = {"PYRYCODE_RELAY_GRCE": "secret", "PYRYCODE_RELAY_X": ""}
        run = self.twistd(self.listen, environment=kubernetes | wrong)
        self.refused(run, r"_GRCE .*did you mean PYRYCODE_RELAY_GRACE\?", "_X is not a setting")
        self.assertNotIn("secret", run.stderr)

    def test_environment(self) -> None:
        """Every option can be set in the environment, and the command line wins."""
        environment = {each.variable: each.default for each in OPTIONS}
        environment |= {
            "PYRYCODE_RELAY_INSECURE_LISTEN": f"unix:{self.socket} :0",
            "PYRYCODE_RELAY_GRACE": "7",
            "PYRYCODE_RELAY_MAX_PHONES": "3",
        }
        run = self.twistd("--check-config", "--max-phones=5", environment=environment)
        self.assertEqual((run.returncode, run.stderr), (0, ""))
        printed = tomllib.loads(run.stdout)
        self.assertEqual((printed["grace"], printed["max-phones"]), (7, 5))
        self.assertEqual(printed[LISTEN][0], f"unix:{self.socket}")
        self.assertEqual(len(printed[LISTEN]), 2)
        given = self.twistd("--check-config", self.listen, environment=environment)
        self.assertEqual(tomllib.loads(given.stdout)[LISTEN], [f"unix:{self.socket}"])

    def test_every_variable_is_read(self) -> None:
        """A wrong value in each option's variable is reported."""
        environment = {each.variable: "?" for each in OPTIONS}
        run = self.twistd(environment=environment)
        # To a path or a secret any text is right, and what is there is looked at later.
        wrong = [each for each in OPTIONS if each.kind not in {PATH, DIRECTORY, SECRET}]
        self.refused(run, *(f"{each.variable} is '\\?'; allowed: " for each in wrong))


class CommandTests(CommandLineTestCase):
    """The relay's own command, which runs in the foreground."""

    def command(
        self, *options: str, python: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run ``python -m pyrycode_relay`` to its end."""
        return run_program(
            sys.executable,
            *(python or ("-m", "pyrycode_relay")),
            *options,
            directory=self.directory,
        )

    def test_it_serves(self) -> None:
        """It runs the relay as ``twistd -n`` does: the same log, exit status 0, no pid file."""
        relay = self.child(needs.program(str(COMMAND)), self.listen)
        eventually("it serves", lambda: relay.output().endswith(" ready\n"))
        # The reactor begins to run, and to handle signals, behind the last line of the start.
        self.assertEqual(fetch(str(self.socket), "/readyz")[0], 200)
        relay.signal(signal.SIGTERM)
        self.assertEqual((relay.wait(), relay.errors()), (0, ""))
        with_twistd = self.relay(listen=f"unix:{self.socket}")
        self.assertEqual(with_twistd.stop(), 0)
        events = [
            [line.split()[2] for line in each.output().splitlines()]
            for each in (relay, with_twistd)
        ]
        self.assertEqual(*events)
        self.assertEqual(events[0][-1], "drained")
        self.assertEqual([*self.directory.glob("*.pid")], [])

    def test_the_same_options(self) -> None:
        """As a module it has the same options, the same sentences and the same exit status."""
        run = self.command("--version")
        self.assertEqual((run.returncode, run.stdout), (0, f"pyrycode-relay {__version__}\n"))
        self.refused(self.command("--grace=soon"), "--grace is 'soon'", "Nothing to listen on")
        run = self.command()
        self.refused(run, "Nothing to listen on")
        self.assertEqual(run.returncode, 2)

    def test_an_old_python(self) -> None:
        """An old Python is one sentence that names both versions; it can parse the module."""
        source = (Path(pyrycode_relay.__file__).with_name("__main__.py")).read_text()
        ast.parse(source, feature_version=(3, 4))
        for name, value, sentence in (
            ("sys.version_info", (3, 9, 2), "needs Python 3.11 or later, and this is Python 3.9.2"),
            ("sys.platform", "darwin", "needs Linux, because it uses epoll; this is darwin"),
        ):
            program = (
                f"import sys, select, runpy; {name} = {value!r}; del select.epoll; "
                "runpy.run_module('pyrycode_relay', run_name='__main__')"
            )
            run = self.command("--version", python=("-c", program))
            self.refused(run, sentence)
            self.assertEqual(run.returncode, 2)
        config = configparser.ConfigParser()
        config.read(ROOT / "setup.cfg")
        self.assertEqual(config["options"]["python_requires"], ">=3.11")


class ListenerTests(CommandLineTestCase):
    """Listeners, and addresses that cannot be listened on."""

    def test_admin_port_in_use(self) -> None:
        """An admin port in use is one sentence, and no other listener stays open."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            run = self.twistd(self.listen, f"--admin-listen=127.0.0.1:{port}")
        sentence = f"listen on 127.0.0.1:{port}: Address already in use; give --admin-listen"
        self.refused(run, sentence, output=True)

    def test_admin_for_others(self) -> None:
        """An address beyond this machine needs a permission, and works with it."""
        self.refused(self.twistd(self.listen, "--admin-listen=0.0.0.0:0"), "--admin-allow")
        relay = self.relay("--admin-listen=0.0.0.0:0", "--admin-allow-remote")
        self.assertIn("admin_listening listen=0.0.0.0:", relay.log())

    def test_a_port_in_use(self) -> None:
        """A port in use is one sentence with the reason; the other addresses are free again."""
        first = f"--insecure-listen=unix:{self.directory}/first"
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            run = self.twistd(first, f"--insecure-listen=127.0.0.1:{port}")
        self.refused(run, f"{port}.*: Address already in use", output=True)
        self.assertNotIn("Traceback", run.stdout)
        self.assertNotIn("starting", run.stdout)
        self.relay(first)

    def test_a_daemon_and_a_port_in_use(self) -> None:
        """A daemon that cannot listen does not start; terminal and log have the whole reason."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            run = self.twistd(
                self.listen,
                f"--admin-listen=127.0.0.1:{port}",
                twistd=("--pidfile=pid", "--logfile=log"),
            )
        self.assertEqual(run.returncode, 1)
        reason = f"Cannot listen on 127.0.0.1:{port}: Address already in use; give --admin-listen "
        reason += "another address, or an empty one."
        self.assertGreater(len(reason), 100)
        self.assertTrue(run.stderr.startswith(f"pyrycode-relay: {reason}\n"), run.stderr)
        self.assertNotIn("Traceback", run.stdout + run.stderr)
        # The daemon may still be exiting when the command that started it has exited.
        log, pidfile = self.directory / "log", self.directory / "pid"
        eventually("the log says why", lambda: reason in log.read_text())
        eventually("the pid is forgotten", lambda: not pidfile.exists())
        self.assertNotIn("starting", log.read_text(encoding="utf-8"))
        self.assertNotIn("Traceback", log.read_text(encoding="utf-8"))

    def test_a_directory_that_is_not_there(self) -> None:
        """A UNIX socket that cannot be created is one sentence."""
        run = self.twistd(f"--insecure-listen=unix:{self.directory}/none/s")
        self.refused(run, "Cannot listen on unix:.*No such file or directory", output=True)

    def test_a_unix_socket(self) -> None:
        """A UNIX socket carries peers; the relay removes its file at the end."""
        relay = self.relay(listen=f"unix:{self.socket}")

        async def scenario() -> None:
            server_headers = {"X-Pyrycode-Server": "b", "X-Pyrycode-Version": "1"}
            phone_headers = {"X-Pyrycode-Server": "b", "X-Pyrycode-Token": "t"}
            path, url = str(self.socket), "ws://relay/v1"
            async with (
                unix_connect(path, f"{url}/server", additional_headers=server_headers) as server,
                unix_connect(path, f"{url}/client", additional_headers=phone_headers) as handset,
            ):
                answering = asyncio.create_task(echo(server))
                await round_trip(handset, "through a file")
                self.assertEqual(relay.counts(), (1, 1))
                answering.cancel()

        self.perform(scenario())
        self.assertEqual(relay.stop(), 0)
        self.assertIn("remote=unix", relay.log())
        self.assertFalse(self.socket.exists())

    def test_several_addresses(self) -> None:
        """Peers of one address reach those of another: the relay is one."""
        relay = self.relay("--insecure-listen=127.0.0.1:0", f"--insecure-listen=unix:{self.socket}")
        first, second, third = relay.addresses()
        self.assertEqual(third, str(self.socket))
        self.assertNotEqual(first, second)

        async def scenario() -> None:
            async with binary(relay, "b"):
                for address in (first, second, third):
                    status, body = fetch(address, "/healthz")
                    self.assertEqual((status, json.loads(body)["connected_binaries"]), (200, 1))

        self.perform(scenario())

    def test_addresses_of_the_environment(self) -> None:
        """The variable's addresses are separated by spaces."""
        addresses = f"127.0.0.1:0 unix:{self.socket}"
        environment = {"PYRYCODE_RELAY_INSECURE_LISTEN": addresses}
        relay = self.relay(listen=None, environment=environment)
        self.assertEqual(len(relay.addresses()), 2)
        self.assertEqual(fetch(str(self.socket), "/readyz")[0], 200)

    def test_every_interface(self) -> None:
        """``:0`` is a port that the system chooses, over IPv4 and IPv6."""
        needs.ipv6()
        relay = self.relay(listen=":0")
        self.assertEqual(fetch(("127.0.0.1", relay.port), "/readyz")[0], 200)
        self.assertEqual(fetch(("::1", relay.port), "/readyz")[0], 200)

        async def scenario() -> None:
            async with binary(relay, "b"):
                pass

        self.perform(scenario())
        eventually("an IPv4 peer is logged", lambda: "remote=127.0.0.1" in relay.log())
        self.assertNotIn("ffff", relay.log())

    def test_what_it_serves(self) -> None:
        """The start has a line for each listener, with its URL, and ends with the word ready."""
        relay = self.relay(
            f"--insecure-listen=unix:{self.socket}",
            "--admin-listen=127.0.0.1:0",
            listen=":0",
        )
        lines = [line.partition(" info ")[2] for line in relay.log().splitlines()]
        self.assertEqual(lines[1], f"listening url=ws://localhost:{relay.port}")
        self.assertEqual(lines[2], f"listening url=ws+unix:{self.socket}")
        found = re.fullmatch(r"admin_listening listen=(\S+) url=http://(\S+)/", lines[3])
        assert found is not None, lines[3]
        self.assertEqual(found[1], found[2])
        self.assertEqual(lines[4:], ["ready"])

    def test_a_host_name(self) -> None:
        """``localhost:0`` is the IPv4 loopback, which is safe in production and for the admin."""
        relay = self.relay("--admin-listen=localhost:0", listen="localhost:0")
        self.assertEqual(relay.address[0], "127.0.0.1")
        self.assertEqual(relay.health()["status"], "ok")

    def test_ipv6_only(self) -> None:
        """``[::1]:0`` is the loopback of IPv6."""
        needs.ipv6()
        relay = self.relay(listen="[::1]:0")
        self.assertEqual(relay.address[0], "::1")
        self.assertEqual(relay.health()["status"], "ok")

    def test_a_socket_of_systemd(self) -> None:
        """The relay serves a listening socket that the service manager passes on."""
        with socket.create_server(("127.0.0.1", 0)) as passed:
            port = passed.getsockname()[1]
            relay = self.relay(
                listen="systemd:domain=INET:index=0",
                **passing(passed),
            )
        self.assertEqual(relay.port, port)
        with BarePeer(relay, "/v1/client", phone_fields("nobody")) as peer:
            self.assertEqual(peer.ending(), (4404, "no server with that id"))

    def test_no_socket_of_systemd(self) -> None:
        """A socket that was not passed on is one sentence."""
        run = self.twistd("--insecure-listen=systemd:domain=INET:index=0")
        why = "systemd:domain=INET:index=0.* for a socket that systemd passes to this process"
        self.refused(run, why, output=True)


class ProcessTests(CommandLineTestCase):
    """Quiet logs, and daemons."""

    def test_quiet_levels(self) -> None:
        """At ``--log-level=warn`` an uneventful run writes nothing."""
        logfile = self.directory / "relay.log"
        relay = Relay(self.directory, [self.listen, "--log-level=warn"], logfile=logfile)
        self.addCleanup(relay.kill)
        eventually("it serves", lambda: self.socket.exists() and self.ready())
        self.assertEqual(relay.stop(), 0)
        self.assertEqual(relay.log() + relay.output() + relay.errors(), "")

    def ready(self) -> bool:
        """Whether a relay behind the UNIX socket serves."""
        with contextlib.suppress(OSError):
            return fetch(str(self.socket), "/readyz")[0] == 200
        return False

    def test_a_daemon(self) -> None:
        """Without ``-n`` the relay is a daemon; SIGTERM ends it, its pid file and its socket."""
        pidfile, logfile = self.directory / "relay.pid", self.directory / "relay.log"
        run = self.twistd(self.listen, twistd=(f"--pidfile={pidfile}", f"--logfile={logfile}"))
        self.assertEqual((run.returncode, run.stdout, run.stderr), (0, "", ""))
        pid = int(eventually("the pid is written", pidfile.read_text))
        self.addCleanup(self.end, pid)
        eventually("it serves", self.ready)
        os.kill(pid, signal.SIGTERM)
        eventually("the daemon has ended", lambda: self.ended(pid))
        self.assertFalse(pidfile.exists())
        self.assertFalse(self.socket.exists())
        events = [line.split()[2] for line in logfile.read_text(encoding="utf-8").splitlines()]
        self.assertEqual(events, ["starting", "listening", "ready", "draining", "drained"])

    def ended(self, pid: int) -> bool:
        """Whether a process that is not a child has ended, or is a zombie."""
        try:
            status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        except (FileNotFoundError, ProcessLookupError):
            return True
        return status.rpartition(")")[2].split()[0] == "Z"

    def end(self, pid: int) -> None:
        """Kill the daemon if it still runs."""
        if not self.ended(pid):
            os.kill(pid, signal.SIGKILL)
