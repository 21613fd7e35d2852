"""``--production``: an unsafe relay does not start, and the sentence has the fix."""

from __future__ import annotations

import re
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from tests import needs
from tests.peers.waiting import eventually
from tests.system.harness import TWISTD, passing
from tests.system.test_command_line import CommandLineTestCase

NOBODY = "65534"
EXPOSED = "--production allows nothing unencrypted beyond this machine, but --insecure-listen is "
ROOT = "--production refuses to run as root; "


class ProductionTests(CommandLineTestCase):
    """Starts as root; its privileges must be gone before the relay serves."""

    def setUp(self) -> None:
        super().setUp()
        needs.root()
        needs.programs("setpriv")
        # Where nobody can make a socket, too.
        self.directory.chmod(0o777)

    def test_root(self) -> None:
        """Root is refused, in every way of asking for it, and no listener stays open."""
        self.refused(self.twistd(self.listen, "--production"), ROOT, output=True)
        environment = {"PYRYCODE_RELAY_PRODUCTION": "1"}
        self.refused(self.twistd(self.listen, environment=environment), ROOT, output=True)
        self.assertFalse(self.socket.exists())

    def test_way_back(self) -> None:
        """A process that could become root again is refused."""
        run = self.twistd(
            self.listen, "--production", twistd=("--pidfile=", "-n", f"--uid={NOBODY}", "--euid")
        )
        self.refused(run, ROOT, output=True)

    def test_a_daemon(self) -> None:
        """A daemon does not start either; terminal and log have the reason."""
        run = self.twistd(self.listen, "--production", twistd=("--pidfile=pid", "--logfile=log"))
        self.assertNotEqual(run.returncode, 0)
        self.assertIn("refuses to run as root", run.stdout + run.stderr)
        log = self.directory / "log"
        eventually("the log says why", lambda: ROOT in log.read_text(encoding="utf-8"))
        self.assertNotIn("Traceback", run.stdout + run.stderr + log.read_text(encoding="utf-8"))

    def test_capabilities(self) -> None:
        """Another user with a capability of root is refused."""
        # Just this one, because the test's Python may lie where not everybody may read.
        keep = "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"
        run = self.child(
            *("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *keep, "--"),
            *(TWISTD, "--pidfile=", "-n", "pyrycode-relay", self.listen, "--production"),
        )
        self.assertEqual(run.wait(), 2)
        self.assertRegex(
            run.errors(),
            r"\Apyrycode-relay: --production allows only CAP_NET_BIND_SERVICE, but the process has "
            r"more capabilities \(`capsh --decode=4` names them\); drop them, [^\n]*\.\n\Z",
        )

    def test_given_up(self) -> None:
        """Starting as root is allowed if twistd changes the user; the relay runs as nobody."""
        relay = self.relay(
            *("--production", "--admin-listen="),
            launcher=(sys.executable, "-c", _UNPRIVILEGED),
        )
        status = Path(f"/proc/{relay.pid}/status").read_text(encoding="ascii")
        self.assertRegex(status, rf"(?m)^Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t")
        self.assertEqual(relay.health()["status"], "ok")
        self.assertEqual(relay.stop(), 0)


_UNPRIVILEGED = (
    "import os, sys\n"
    "twistd, pidfile, foreground, *rest = sys.argv[1:]\n"
    f"os.execv(twistd, [twistd, pidfile, foreground, '--uid={NOBODY}', '--gid={NOBODY}', *rest])\n"
)


class ExposureTests(CommandLineTestCase):
    """Addresses that serve plain WebSockets."""

    def exposed(self, addresses: Sequence[str], *more: str) -> None:
        """Check that these addresses are refused."""
        run = self.twistd(
            *(f"--insecure-listen={each}" for each in addresses), "--production", *more
        )
        self.refused(run, *(re.escape(f"{EXPOSED}{each!r}; ") for each in addresses))

    def test_exposed(self) -> None:
        """Each address beyond this machine is a sentence, before anything is bound."""
        self.exposed([":8080", "0.0.0.0:8080", "[::]:8080", "tcp:8080", "192.0.2.1:80"])

    def test_check_config(self) -> None:
        """``--check-config`` reports them too."""
        self.exposed(["0.0.0.0:8080"], "--check-config")

    def test_a_socket_of_systemd(self) -> None:
        """A socket that a service manager passes on is checked too."""
        address = "systemd:domain=INET:index=0"
        with socket.create_server(("0.0.0.0", 0)) as passed:
            start = passing(passed)
            run = self.child(
                *start.pop("launcher"),
                *(TWISTD, "--pidfile=", "-n", "pyrycode-relay", f"--insecure-listen={address}"),
                "--production",
                **start,
            )
            self.assertEqual(run.wait(), 2)
        self.assertIn(f"{EXPOSED}{address!r}; ", run.errors())
        self.assertNotIn("Traceback", run.output() + run.errors())

    def test_without(self) -> None:
        """Without ``--production`` every address is allowed."""
        relay = self.relay(listen=":0")
        self.assertEqual(relay.stop(signal.SIGINT), 0)
