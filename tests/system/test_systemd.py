"""The units in ``deploy/systemd``: that systemd takes them, and that what they start works.

A service manager is not needed: the relay is started with what one gives it, which is the
unit's command, environment, user, capabilities and sockets, and a socket to report to.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import sys
from pathlib import Path

from pyrycode_relay.http.capacity import Capacity
from pyrycode_relay.limits import Limits
from tests import needs
from tests.ca import Authority
from tests.peers.waiting import DEADLINE, eventually
from tests.system.harness import ROOT, TWISTD, SystemTestCase, run_program

UNITS = ROOT / "deploy" / "systemd"
SERVICE = UNITS / "pyrycode-relay.service"
PROBE = TWISTD.with_name("pyrycode-relay-probe")
STATE = "/var/lib/pyrycode-relay"

_LAUNCH = """if True:
    import fcntl, os, sys
    sockets, command = sys.argv[1].split(","), sys.argv[2:]
    aside = [fcntl.fcntl(int(each), fcntl.F_DUPFD_CLOEXEC, 100) for each in sockets]
    for number, each in enumerate(aside, 3):
        os.dup2(each, number)
    os.environ["LISTEN_PID"] = os.environ["WATCHDOG_PID"] = str(os.getpid())
    os.execvp(command[0], command)
"""
"""Becomes the service, as its manager would have it: sockets from 3 on, and who is meant."""

_OPEN = """
layer=$1 closed=$2
shift 2
mount -t tmpfs tmpfs $layer
for each in $closed; do
    mkdir -p $layer$each/upper $layer$each/work
    mount -t overlay -o lowerdir=$each,upperdir=$layer$each/upper,workdir=$layer$each/work \\
        overlay $each
    chmod a+x $each
done
exec "$@"
"""
"""Lets everybody through to a Python that lies in somebody's home, as far as the child sees."""


def closed_folders() -> list[str]:
    """Return the folders on the way to this Python that only their owner gets through."""
    ways = {*Path(sys.base_prefix).parents, *TWISTD.parents}
    return sorted(str(each) for each in ways if not each.stat().st_mode & 1)


def settings(unit: Path, name: str) -> list[str]:
    """Return the values of a setting in a unit, in their order."""
    text = re.sub(r"\\\n", "", unit.read_text(encoding="utf-8"))
    return re.findall(rf"(?m)^{name}=(.*)$", text)


class UnitTests(SystemTestCase):
    """What systemd itself says of the units."""

    def analyze(self, kinds: str, *arguments: str) -> str:
        """Have systemd look at copies of the units that name this machine's twistd."""
        for unit in UNITS.iterdir():
            text = unit.read_text(encoding="utf-8")
            copy = self.directory / unit.name
            copy.write_text(text.replace("/opt/pyrycode-relay/bin/twistd", str(TWISTD)))
        copies = sorted(self.directory.glob(kinds))
        run = run_program("systemd-analyze", *arguments, *copies, directory=self.directory)
        self.assertEqual(run.returncode, 0, run.stdout + run.stderr)
        return run.stdout + run.stderr

    def test_verify(self) -> None:
        """systemd takes the units, and has nothing to remark."""
        self.assertEqual(self.analyze("*.s*", "verify"), "")

    def test_security(self) -> None:
        """The service's exposure is 1.7 of 10: it serves the network, and does nothing else."""
        said = self.analyze("*.service", "security", "--offline=true", "--threshold=18")
        self.assertIn("Overall exposure level", said)

    def test_settings(self) -> None:
        """The settings beside the unit serve as they are, and the unit sets none itself."""
        names = [each.partition("=")[0] for each in settings(SERVICE, "Environment")]
        self.assertEqual([each for each in names if each.startswith("PYRYCODE_RELAY_")], [])
        shipped = (UNITS / "relay.toml").read_text(encoding="utf-8")
        copy = self.directory / "relay.toml"
        copy.write_text(shipped.replace("127.0.0.1:8080", "127.0.0.1:0"), encoding="utf-8")
        relay = self.relay(f"--config={copy}", listen=None)
        self.assertEqual(relay.fetch("/healthz")[0], 200)

    def test_wrong_settings(self) -> None:
        """Settings that cannot be used end with the status after which systemd does not retry."""
        [status] = settings(SERVICE, "RestartPreventExitStatus")
        run = run_program(TWISTD, "-n", "pyrycode-relay", "--grace=soon", directory=self.directory)
        self.assertEqual(run.returncode, int(status))

    def test_times(self) -> None:
        """The relay is given more time to stop than it takes."""
        [seconds] = settings(SERVICE, "TimeoutStopSec")
        self.assertGreater(int(seconds), Limits().drain_timeout)

    def test_room(self) -> None:
        """There is memory for as many peers as the files let in, so that a crowd kills nothing.

        What each takes is the manual's, which also says what it comes to, and gives containers
        the same.
        """
        [files], [memory] = settings(SERVICE, "LimitNOFILE"), settings(SERVICE, "MemoryMax")
        manual = (ROOT / "docs" / "limits.md").read_text(encoding="utf-8")
        recipes = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
        found = re.search(
            r"\| the process, idle \| about (\d+) MiB \|\n"
            r"\| an idle connection \| .* TLS about (\d+) \|\n"
            r"\| a connection whose handshake .* TLS up to (\d+) KiB; ",
            manual,
        )
        assert found is not None
        idle, each, early = map(int, found.groups())
        room = Capacity.within(int(files), Limits())
        self.assertGreater(room.connections, 10_000)
        peers = (room.connections * each + room.waiting * early) / 1024
        needed = idle + peers + Limits().memory_budget / 2**20
        self.assertEqual(memory, "1G")
        self.assertLess(needed, 1024)
        for said in (
            f"{room.connections:,} \N{MULTIPLICATION SIGN} {each} KiB",
            f"{room.waiting:,} \N{MULTIPLICATION SIGN} {early} KiB",
            f"{int(needed)} MiB",
        ):
            self.assertIn(said, manual)
        self.assertIn(f"--ulimit=nofile={files} --memory=1g", recipes)


class Manager:
    """Stands in for systemd's end of ``sd_notify``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o666)
        self._socket.settimeout(DEADLINE)

    def close(self) -> None:
        self._socket.close()

    def hear(self) -> str:
        """Return the next message."""
        return self._socket.recv(4096).decode()

    def hear_of(self, beginning: str) -> str:
        """Return the next message that begins so; only signs of life may come before it."""
        while (message := self.hear()) == "WATCHDOG=1":
            pass
        assert message.startswith(beginning), message
        return message


class ServiceTests(SystemTestCase):
    """The service, as its unit starts it."""

    def setUp(self) -> None:
        super().setUp()
        needs.namespaces()
        needs.programs("setpriv")
        needs.ipv6()
        self.directory.chmod(0o755)
        self.manager = Manager(self.directory / "notify")
        self.addCleanup(self.manager.close)
        self.authority = Authority()
        self.user = "10001"
        (self.directory / "roots.pem").write_bytes(self.authority.pem)
        self.tls = self.directory / "tls"
        self.tls.mkdir()
        self.issue()

    def issue(self) -> None:
        """Put a new certificate where the relay looks for it."""
        files = self.tls / "relay.pem", self.tls / "relay.key"
        self.authority.issue("relay.test").store(*files)
        for file in files:
            os.chown(file, int(self.user), int(self.user))

    def sockets(self) -> dict[str, socket.socket]:
        """Open what the socket units say, on loopback, by their descriptors' names."""
        found = {}
        for unit in UNITS.glob("*.socket"):
            [name] = settings(unit, "FileDescriptorName")
            listening = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
            self.addCleanup(listening.close)
            found[name] = listening
        return found

    def configuration(self, used: str) -> Path:
        """Write the settings that a socket unit tells its reader to use."""
        [unit] = [each for each in UNITS.glob("*.socket") if f'name={used}"' in each.read_text()]
        [line] = re.findall(r"(?m)^#   (\S+-listen = .*)$", unit.read_text(encoding="utf-8"))
        path = self.directory / "relay.toml"
        path.write_text(f'{line}\ntls-dir = ["{self.tls}"]\nadmin-listen = "127.0.0.1:0"\n')
        return path

    def test_service(self) -> None:
        """It serves on the socket it is handed, tells its manager how it is, and drains."""
        sockets = self.sockets()
        state, layer = self.directory / "state", self.directory / "layer"
        state.mkdir()
        layer.mkdir()
        os.chown(state, int(self.user), int(self.user))
        places = {
            "/opt/pyrycode-relay/bin/twistd": str(TWISTD),
            "/etc/pyrycode-relay/relay.toml": str(self.configuration("tls")),
            STATE: str(state),
        }
        [command] = settings(SERVICE, "ExecStart")
        [capability] = settings(SERVICE, "AmbientCapabilities")
        environment = dict(each.split("=", 1) for each in settings(SERVICE, "Environment"))
        for place, here in places.items():
            command = command.replace(place, here)
            environment = {k: v.replace(place, here) for k, v in environment.items()}
        kept = f"+{capability.removeprefix('CAP_').lower()}"
        numbers = [str(each.fileno()) for each in sockets.values()]
        environment |= {
            "LISTEN_FDS": str(len(sockets)),
            "LISTEN_FDNAMES": ":".join(sockets),
            "NOTIFY_SOCKET": str(self.manager.path),
            "WATCHDOG_USEC": "600000",
        }
        relay = self.child(
            *("unshare", "--mount", "--propagation=private", "sh", "-euc", _OPEN, "sh"),
            *(layer, " ".join(closed_folders())),
            *("setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"),
            *(f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set=-all,{kept}"),
            *("--no-new-privs", sys.executable, "-c", _LAUNCH, ",".join(numbers)),
            *shlex.split(command),
            environment=environment,
            pass_fds=[each.fileno() for each in sockets.values()],
        )
        self.assertEqual(self.manager.hear_of("READY=1"), "READY=1", relay.errors())
        port = sockets["tls"].getsockname()[1]
        self.assertEqual(self.probe(port), 0)
        self.assertEqual(self.manager.hear(), "WATCHDOG=1")

        self.issue()
        relay.signal(signal.SIGHUP)
        self.manager.hear_of("RELOADING=1\nMONOTONIC_USEC=")
        self.manager.hear_of("READY=1")
        eventually("it is reloaded", lambda: "tls_reloaded" in relay.output())

        relay.signal(signal.SIGTERM)
        self.manager.hear_of("STOPPING=1")
        self.assertEqual((relay.wait(), relay.errors()), (0, ""))

    def probe(self, port: int) -> int:
        """Return what the probe makes of the relay."""
        return run_program(
            *(PROBE, "--quiet", f"--ca-file={self.directory / 'roots.pem'}"),
            *(f"--connect=127.0.0.1:{port}", "wss://relay.test"),
        ).returncode
