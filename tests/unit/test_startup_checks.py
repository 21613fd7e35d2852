"""Checks at start: libraries, open files, addresses without encryption, and privileges."""

from __future__ import annotations

import os
import resource
import tempfile
from dataclasses import replace
from pathlib import Path

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from pyrycode_relay import internals, startup_checks
from pyrycode_relay.config.settings import Settings
from pyrycode_relay.events import Event
from pyrycode_relay.startup_error import StartupError
from tests.unit.bench import Cases, cases


class LibraryTests(Cases):
    def test_libraries(self) -> None:
        """The installed libraries have the names that the relay uses, those for ACME included."""
        startup_checks.check_libraries(acme=True)

    def test_missing(self) -> None:
        """A name that is missing ends the start with one sentence."""
        twisted = ("Twisted", "twisted.internet.abstract")
        lost = internals.Internal(*twisted, "FileDescriptor", "_gone", "websocket.transports")
        self.patch(internals, "INTERNALS", (lost, *internals.INTERNALS))
        error = self.assertRaises(StartupError, startup_checks.check_libraries, acme=False)
        (problem,) = error.problems
        self.assertEqual(problem, lost.problem())


class CertificateTests(Cases):
    def saw(self, event: Event, **fields: object) -> None:
        """Take no note of an event."""

    def test_none(self) -> None:
        """Without certificates of the operator's there is nothing to check."""
        self.assertEqual(startup_checks.check_certificates(Settings(("tcp:0",)), self), [])

    def test_of_a_ca(self) -> None:
        """A certificate from a CA is named with its CA."""
        settings = Settings(domain=("a.example.org", "b.example.org"))
        [found] = startup_checks.check_certificates(settings, self)
        self.assertEqual(found, f"a.example.org,b.example.org from {settings.acme_directory}")

    def test_all(self) -> None:
        """All problems with files and folders are found at once."""
        settings = Settings(
            tls_listen=(":443",),
            tls_cert=(Path("/none/chain.pem"),),
            tls_key=(Path("/none/key.pem"),),
            tls_dir=(Path("/none"),),
        )
        error = self.assertRaises(StartupError, startup_checks.check_certificates, settings, self)
        files, folder = error.problems
        self.assertIn("--tls-cert and --tls-key: /none/chain.pem cannot be read", files)
        self.assertIn("--tls-dir: /none cannot be read", folder)


class OpenFilesTests(Cases):
    def limits(self, soft: int, hard: int, forbidden: bool = False) -> list[tuple[int, int]]:
        """Make the system report these limits; return the limits that are set."""
        set_to: list[tuple[int, int]] = []

        def setrlimit(_: int, pair: tuple[int, int]) -> None:
            if forbidden:
                raise ValueError("not allowed to raise maximum limit")
            set_to.append(pair)

        self.patch(resource, "getrlimit", lambda _: (soft, hard))
        self.patch(resource, "setrlimit", setrlimit)
        return set_to

    def test_raised(self) -> None:
        """The soft limit is raised to the hard one, which does not change."""
        set_to = self.limits(1024, 50_000)
        self.assertEqual((startup_checks.raise_open_files(), set_to), (50_000, [(50_000, 50_000)]))

    def test_as_high_as_it_goes(self) -> None:
        """A soft limit that equals the hard one is left alone."""
        set_to = self.limits(4096, 4096)
        self.assertEqual((startup_checks.raise_open_files(), set_to), (4096, []))

    def test_no_end(self) -> None:
        """Without a limit, the relay takes the kernel's maximum."""
        set_to = self.limits(1024, resource.RLIM_INFINITY)
        self.assertEqual(startup_checks.raise_open_files(), 1_048_576)
        self.assertEqual(set_to, [(1_048_576, resource.RLIM_INFINITY)])

    def test_forbidden(self) -> None:
        """If the limit cannot be raised, it stays."""
        self.limits(1024, 50_000, forbidden=True)
        self.assertEqual(startup_checks.raise_open_files(), 1024)


class ExposedTests(Cases):
    @cases(
        {
            "ipv4": ("127.0.0.1:80",),
            "another_ipv4": ("127.9.9.9:80",),
            "ipv6": ("[::1]:80",),
            "tcp": ("tcp:80:interface=127.0.0.1",),
            "tcp_ipv6": (r"tcp6:80:interface=\:\:1",),
            "localhost": ("tcp:80:interface=localhost",),
            "unix": ("unix:/run/relay",),
        }
    )
    def test_at_home(self, address: str) -> None:
        """Loopback and UNIX sockets may be served without encryption."""
        settings = Settings(insecure_listen=(address,))
        self.assertEqual([*startup_checks.exposed_addresses(settings)], [])

    @cases(
        {
            "every": (":80",),
            "ipv4": ("192.0.2.1:80",),
            "any_ipv4": ("0.0.0.0:80",),
            "any_ipv6": ("[::]:80",),
            "ipv6": ("[2001:db8::1]:80",),
            "tcp": ("tcp:80",),
            "tcp_ipv6": ("tcp6:80",),
            "name": ("tcp:80:interface=example.org",),
        }
    )
    def test_exposed(self, address: str) -> None:
        """Any other address is a sentence with the address and the fix."""
        settings = Settings(insecure_listen=("127.0.0.1:1", address))
        [problem] = startup_checks.exposed_addresses(settings)
        self.assertIn(f"--insecure-listen is {address!r}", problem)
        self.assertIn("TLS", problem)
        self.assertTrue(problem.endswith("."))

    def test_each(self) -> None:
        """Each address has its own sentence."""
        settings = Settings(insecure_listen=(":80", "127.0.0.1:80", "0.0.0.0:81"))
        self.assertEqual(len([*startup_checks.exposed_addresses(settings)]), 2)

    def test_only_in_production(self) -> None:
        """Only in production an exposed address ends the start, with all its problems."""
        exposed = Settings(insecure_listen=(":80", ":81"))
        startup_checks.check_settings(exposed)
        startup_checks.check_process(exposed, [])
        exposed = replace(exposed, production=True)
        error = self.assertRaises(StartupError, startup_checks.check_settings, exposed)
        self.assertEqual(len(error.problems), 2)

    def test_sockets(self) -> None:
        """An open socket is judged by its address."""
        given = "systemd:domain=INET:index=0"
        for host, count in (
            (IPv4Address("TCP", "127.0.0.1", 80), 0),
            (IPv6Address("TCP", "::1", 80), 0),
            (UNIXAddress(b"/run/relay"), 0),
            (IPv4Address("TCP", "0.0.0.0", 80), 1),
            (IPv6Address("TCP", "::", 80), 1),
            (IPv6Address("TCP", "::ffff:192.0.2.1", 80), 1),
        ):
            self.assertEqual(len([*startup_checks.exposed_socket(given, host)]), count, host)


class PowerTests(Cases):
    def problems(self, status: str | None, uids: tuple[int, int, int] = (7, 7, 7)) -> list[str]:
        """Return the problems of a process with these users and this status."""
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        path = Path(folder.name, "status")
        if status is not None:
            path.write_text(status)
        self.patch(startup_checks, "_STATUS", path)
        self.patch(os, "getresuid", lambda: uids)
        return [*startup_checks.spare_power()]

    @staticmethod
    def status(permitted: int, effective: int, bounding: int = 0x1FFFFFFFFFF) -> str:
        """Return the status of a process with these capabilities."""
        return (
            f"Name:\ttwistd\nCapInh:\t{0:016x}\nCapPrm:\t{permitted:016x}\n"
            f"CapEff:\t{effective:016x}\nCapBnd:\t{bounding:016x}\nCapAmb:\t{0:016x}\n"
        )

    @cases({"none": (0, 0), "low_ports": (1 << 10, 1 << 10), "not_in_use": (1 << 10, 0)})
    def test_enough(self, permitted: int, effective: int) -> None:
        """The relay may bind low ports; the bounding set does not matter."""
        self.assertEqual(self.problems(self.status(permitted, effective)), [])

    @cases({"used": (1 << 13, 1 << 13), "permitted": (1 << 13, 0), "many": (0x1FFFFFFFFFF, 0)})
    def test_too_much(self, permitted: int, effective: int) -> None:
        """Any other capability is a sentence, even if it is not in use."""
        [problem] = self.problems(self.status(permitted, effective))
        self.assertIn(f"capsh --decode={permitted:x}", problem)
        self.assertIn("CapabilityBoundingSet=", problem)

    @cases(
        {
            "all": ((0, 0, 0),),
            "real": ((0, 7, 7),),
            "effective": ((7, 0, 7),),
            "saved": ((7, 7, 0),),
        }
    )
    def test_root(self, uids: tuple[int, int, int]) -> None:
        """Root is a sentence, even as the saved user that a process could return to."""
        [problem] = self.problems(self.status(0, 0), uids)
        self.assertIn("--uid=", problem)

    def test_unknown(self) -> None:
        """Unknown capabilities are a sentence."""
        for status in (None, "Name:\ttwistd\n"):
            [problem] = self.problems(status)
            self.assertIn("/proc", problem)
