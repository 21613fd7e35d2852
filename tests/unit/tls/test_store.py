"""The certificates that are served: read, chosen, replaced, warned of."""

from __future__ import annotations

import gc
import os
import shutil
import ssl
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import cast

from cryptography import x509
from OpenSSL import SSL
from twisted.internet.task import Clock

from pyrycode_relay.events import Event
from pyrycode_relay.startup_error import StartupError
from pyrycode_relay.tls.certificate import Pair
from pyrycode_relay.tls.contexts import TICKET_KEYS_LIFE
from pyrycode_relay.tls.sources import Files, Folder, Source
from pyrycode_relay.tls.store import POLL, RETRY, Certificates
from tests.ca import DAY, Issued, rsa_key
from tests.unit.bench import Cases, cases
from tests.unit.tls.handshake import AUTHORITY, Handshake, Refused, trusting

RSA = rsa_key()
A_DAY = 86400.0


def shake(
    made: Certificates,
    name: str | None,
    client: ssl.SSLContext | None = None,
    session: ssl.SSLSession | None = None,
) -> Handshake:
    """Shake hands with what these certificates serve."""
    return Handshake(made.serverConnectionForTLS(None), name, client, session)  # type: ignore[arg-type]


class Faulty:
    """A source of one pair with a bug that shows while it is ``broken``."""

    awaited = broken = False
    option = "--tls-dir"

    def __init__(self, pair: Pair) -> None:
        self.pair = pair

    def pairs(self) -> list[Pair]:
        if self.broken:
            raise ZeroDivisionError
        return [self.pair]


class TLSCase(Cases):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tls-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.clock = Clock()
        self.wall = time.time()
        self.events: list[tuple[Event, dict[str, object]]] = []

    def saw(self, event: Event, **fields: object) -> None:
        """Take note of an event, as observers do."""
        self.events.append((event, fields))

    def told(self) -> list[Event]:
        """Return the events seen since this was asked last."""
        events = [event for event, _ in self.events]
        self.events.clear()
        return events

    def pair(self, name: str) -> Pair:
        """Return the files of a pair by that name."""
        return Pair(self.directory / f"{name}.pem", self.directory / f"{name}.key")

    def store(self, name: str, issued: Issued) -> Pair:
        """Write a pair by that name."""
        pair = self.pair(name)
        issued.store(pair.certificate, pair.key)
        return pair

    def issue(self, name: str, *names: str, **more: object) -> Issued:
        """Issue and store a certificate for ``names``."""
        issued = AUTHORITY.issue(*names, **more)  # type: ignore[arg-type]
        self.store(name, issued)
        return issued

    def certificates(self, *sources: Source, domains: tuple[str, ...] = ()) -> Certificates:
        """Return the certificates of these sources, not yet read."""
        made = Certificates(sources, domains, self, self.clock, lambda: self.wall)
        self.addCleanup(made.stop)
        return made

    def loaded(self, *names: str, domains: tuple[str, ...] = ()) -> Certificates:
        """Return the certificates of pairs by these names, read."""
        made = self.certificates(*(Files(self.pair(name)) for name in names), domains=domains)
        made.load()
        return made

    def pass_time(self, seconds: float) -> None:
        """Let time pass, look for look."""
        self.wall += seconds
        self.clock.pump([POLL] * int(seconds / POLL))


class ServingTests(TLSCase):
    def test_chain(self) -> None:
        """A client that trusts the root alone verifies chain and name."""
        issued = self.issue("a", "relay.example")
        shaken = shake(self.loaded("a"), "relay.example")
        self.assertEqual(shaken.certificate, issued.chain[0])

    def test_names(self) -> None:
        """The name asked for decides, whatever its case; wildcards come after whole names."""
        one = self.issue("a", "one.example", "*.relay.example")
        two = self.issue("b", "two.example")
        made = self.loaded("a", "b")
        for name, issued in {
            "one.example": one,
            "two.example": two,
            "TWO.example": two,
            "a.relay.example": one,
        }.items():
            self.assertEqual(shake(made, name).certificate, issued.chain[0], name)

    def test_default(self) -> None:
        """A client that asks for no name, or for one without a certificate, gets the first."""
        first = self.issue("a", "one.example")
        self.issue("b", "two.example")
        made = self.loaded("a", "b")
        self.assertEqual(shake(made, None).certificate, first.chain[0])
        self.assertRaises(ssl.SSLCertVerificationError, shake, made, "three.example")

    def test_domains(self) -> None:
        """With domains, a client that asks for another name is refused, one for none is not."""
        self.issue("a", "one.example", "two.example")
        made = self.loaded("a", domains=("one.example",))
        shake(made, "ONE.example")
        shake(made, None)
        for name in ("two.example", "localhost", "x" * 60 + ".example"):
            error = self.assertRaises(Refused, shake, made, name)
            self.assertIn("HANDSHAKE_FAILURE", str(error))

    def test_side_by_side(self) -> None:
        """With an RSA and an ECDSA certificate for one name, each client gets what it can use."""
        curve = self.issue("a", "relay.example")
        old = self.issue("b", "relay.example", key=RSA)
        for names in (("a", "b"), ("b", "a")):
            made = self.loaded(*names)
            self.assertEqual(shake(made, "relay.example").certificate, curve.chain[0])
            client = trusting()
            client.maximum_version = ssl.TLSVersion.TLSv1_2
            client.set_ciphers("ECDHE-RSA-AES128-GCM-SHA256")
            self.assertEqual(shake(made, "relay.example", client).certificate, old.chain[0])

    def test_not_after(self) -> None:
        """When certificates end is known by name: of several, the first end."""
        self.issue("a", "one.example", "two.example", until=30 * DAY)
        self.issue("b", "two.example", key=RSA, until=10 * DAY)
        ends = self.loaded("a", "b").not_after()
        self.assertEqual(set(ends), {"one.example", "two.example"})
        for name, days in {"one.example": 30, "two.example": 10}.items():
            self.assertLess(abs(ends[name] - self.wall - days * A_DAY), 3600)


class SessionTests(TLSCase):
    @cases({"1_2": (ssl.TLSVersion.TLSv1_2,), "1_3": (ssl.TLSVersion.TLSv1_3,)})
    def test_resumption(self, version: ssl.TLSVersion) -> None:
        """A second handshake resumes, across a reload too, until the ticket keys change."""
        self.issue("a", "relay.example")
        made = self.loaded("a")
        made.watch()
        client = trusting()
        client.minimum_version = client.maximum_version = version

        def resume(session: ssl.SSLSession | None) -> Handshake:
            return shake(made, "relay.example", client, session)

        first = resume(None)
        second = resume(first.client.session)
        self.assertEqual((first.client.session_reused, second.client.session_reused), (False, True))
        fresh = self.issue("a", "relay.example")
        self.assertTrue(made.reload())
        self.assertEqual(resume(None).certificate, fresh.chain[0])
        third = resume(second.client.session)
        self.assertTrue(third.client.session_reused)
        self.clock.advance(TICKET_KEYS_LIFE)
        fourth = resume(third.client.session)
        self.assertFalse(fourth.client.session_reused)
        self.assertTrue(resume(fourth.client.session).client.session_reused)


class LoadTests(TLSCase):
    def problems(self, *sources: Source, domains: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return what is wrong with sources, which have to be refused."""
        made = self.certificates(*sources, domains=domains)
        problems: tuple[str, ...] = self.assertRaises(StartupError, made.load).problems
        self.assertFalse(made.ready)
        return problems

    def test_all_at_once(self) -> None:
        """Everything wrong with all sources is told together, each with its option."""
        self.issue("b", "b.example")
        self.pair("b").key.chmod(0o644)
        first, second, third = self.problems(
            Files(self.pair("a")), Files(self.pair("b")), Folder(self.directory / "none")
        )
        self.assertRegex(first, r"\A--tls-cert and --tls-key: .*a\.pem cannot be read: ")
        self.assertRegex(second, r"\A--tls-cert and --tls-key: .*chmod 600 .*b\.key\.\Z")
        self.assertRegex(third, r"\A--tls-dir: .*none cannot be read: ")
        self.assertEqual(self.told(), [])

    def test_weak_key(self) -> None:
        """What OpenSSL would not serve is found before it is needed."""
        self.issue("a", "a.example", key=rsa_key(1024))
        [problem] = self.problems(Files(self.pair("a")))
        self.assertRegex(
            problem, r"OpenSSL does not serve the certificate in .*: ee key too small\."
        )

    def test_domain_without_certificate(self) -> None:
        """Each domain needs a certificate, and each certificate a domain."""
        self.issue("a", "a.example")
        [problem] = self.problems(Files(self.pair("a")), domains=("a.example", "b.example"))
        self.assertIn("No certificate is for b.example", problem)
        first, second = self.problems(Files(self.pair("a")), domains=("b.example",))
        self.assertIn("is for none of the names given as --domain", first)
        self.assertIn("No certificate is for b.example", second)

    def test_awaited(self) -> None:
        """Without the certificate that is awaited handshakes are refused, until it is there."""
        made = self.certificates(Files(self.pair("a"), awaited=True), domains=("a.example",))
        made.load()
        self.assertEqual((self.told(), made.ready, made.not_after()), ([], False, {}))
        for name in ("a.example", None):
            self.assertRaises(Refused, shake, made, name)
        issued = self.issue("a", "a.example")
        self.assertTrue(made.reload())
        self.assertEqual((self.told(), made.ready), ([Event.TLS_RELOADED], True))
        self.assertEqual(shake(made, "a.example").certificate, issued.chain[0])

    def test_awaited_and_bad(self) -> None:
        """An awaited certificate that cannot be used is reported, and counts as not there."""
        self.issue("a", "a.example", since=-9 * DAY, until=-DAY)
        made = self.certificates(Files(self.pair("a"), awaited=True), domains=("a.example",))
        made.load()
        self.assertEqual((self.told(), made.ready), ([Event.TLS_RELOAD_FAILED], False))
        self.assertRaises(Refused, shake, made, "a.example")


class ReloadTests(TLSCase):
    def setUp(self) -> None:
        super().setUp()
        self.old = self.issue("a", "relay.example")
        self.made = self.loaded("a", domains=("relay.example",))
        self.made.watch()

    def served(self) -> x509.Certificate:
        """Return what clients are served now."""
        return shake(self.made, "relay.example").certificate

    def test_change(self) -> None:
        """New files are taken without being asked to, within two looks; untouched ones never."""
        self.pass_time(3600)
        self.assertEqual((self.told(), self.served()), ([], self.old.chain[0]))
        fresh = self.issue("a", "relay.example")
        self.pass_time(2 * POLL)
        self.assertEqual((self.told(), self.served()), ([Event.TLS_RELOADED], fresh.chain[0]))
        self.assertEqual(self.made.last_reload, (self.wall, True))
        self.pass_time(3600)
        self.assertEqual(self.told(), [])

    def test_one_after_the_other(self) -> None:
        """Certificate and key that are replaced in two steps make one reload and no failure."""
        fresh = AUTHORITY.issue("relay.example")
        pair = self.pair("a")
        pair.key.write_bytes(fresh.key_pem())
        self.pass_time(POLL)
        pair.certificate.write_bytes(fresh.pem)
        self.pass_time(2 * POLL)
        self.assertEqual((self.told(), self.served()), ([Event.TLS_RELOADED], fresh.chain[0]))

    def test_link(self) -> None:
        """A link that leads elsewhere is a change, as certbot makes it."""
        pair = self.pair("a")
        fresh = self.issue("b", "relay.example")
        for path, target in (
            (pair.key, self.pair("b").key),
            (pair.certificate, self.pair("b").certificate),
        ):
            link = path.with_suffix(".link")
            link.symlink_to(target)
            os.replace(link, path)
        self.pass_time(2 * POLL)
        self.assertEqual((self.told(), self.served()), ([Event.TLS_RELOADED], fresh.chain[0]))

    @cases(
        {
            "key": (lambda case: case.pair("a").key.write_bytes(AUTHORITY.issue("x").key_pem()),),
            "chain": (lambda case: case.pair("a").certificate.write_bytes(b"?"),),
            "mode": (lambda case: case.pair("a").key.chmod(0o644),),
            "gone": (lambda case: case.pair("a").certificate.unlink(),),
            "expired": (lambda case: case.issue("a", "relay.example", since=-9 * DAY, until=-DAY),),
            "future": (lambda case: case.issue("a", "relay.example", since=DAY),),
            "name": (lambda case: case.issue("a", "other.example"),),
            "weak": (lambda case: case.issue("a", "relay.example", key=rsa_key(1024)),),
        }
    )
    def test_bad(self, spoil) -> None:  # type: ignore[no-untyped-def]
        """A bad pair is told once and costs nothing; a good one after it is taken."""
        spoil(self)
        self.pass_time(2 * POLL)
        told = self.told()
        self.assertEqual(set(told), {Event.TLS_RELOAD_FAILED})
        self.assertLessEqual(len(told), 2)
        self.assertEqual(self.served(), self.old.chain[0])
        self.assertEqual(self.made.last_reload, (self.wall, False))
        self.pass_time(10 * RETRY)
        self.assertEqual((self.told(), self.served()), ([], self.old.chain[0]))
        fresh = self.issue("a", "relay.example")
        self.pass_time(2 * POLL)
        self.assertEqual((self.told(), self.served()), ([Event.TLS_RELOADED], fresh.chain[0]))

    def test_mode_put_right(self) -> None:
        """``chmod`` alone, which changes no time and no inode, is a change."""
        fresh = self.issue("a", "relay.example")
        self.pair("a").key.chmod(0o640)
        self.pass_time(2 * POLL)
        self.assertEqual(self.told(), [Event.TLS_RELOAD_FAILED])
        self.pair("a").key.chmod(0o600)
        self.pass_time(2 * POLL)
        self.assertEqual((self.told(), self.served()), ([Event.TLS_RELOADED], fresh.chain[0]))

    def test_in_time(self) -> None:
        """A certificate that has not begun yet is taken once it has, without being touched."""
        fresh = self.issue("a", "relay.example", since=timedelta(minutes=10))
        self.pass_time(2 * POLL)
        self.assertEqual(self.told(), [Event.TLS_RELOAD_FAILED])
        self.pass_time(600)
        self.pass_time(RETRY)
        self.assertEqual(self.told(), [Event.TLS_RELOADED])
        self.assertEqual(
            self.made.not_after(),
            {"relay.example": fresh.chain[0].not_valid_after_utc.timestamp()},
        )

    def test_asked(self) -> None:
        """A reload that was asked for reports its result at once, each time."""
        self.assertTrue(self.made.reload())
        self.pair("a").key.unlink()
        self.assertFalse(self.made.reload())
        self.assertFalse(self.made.reload())
        failed = Event.TLS_RELOAD_FAILED
        self.assertEqual(self.told(), [Event.TLS_RELOADED, failed, failed])
        self.pass_time(60)
        self.assertEqual(self.told(), [])

    def test_bug(self) -> None:
        """A bug costs one reload, or one look, and leaves a traceback; the certificates stay."""
        source = Faulty(self.pair("a"))
        made = self.certificates(cast(Source, source))
        made.load()
        source.broken = True
        self.assertFalse(made.reload())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        made.watch()
        self.pass_time(2 * POLL)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)
        self.assertEqual(shake(made, "relay.example").certificate, self.old.chain[0])
        source.broken = False
        fresh = self.issue("a", "relay.example")
        self.pass_time(2 * POLL)
        self.assertEqual(shake(made, "relay.example").certificate, fresh.chain[0])

    def test_nothing_kept(self) -> None:
        """Replaced contexts are freed: 100 reloads leave as many contexts as one."""

        def contexts() -> int:
            gc.collect()
            return sum(isinstance(each, SSL.Context) for each in gc.get_objects())

        # What is there already, of all tests, need not be gone through.
        gc.freeze()
        self.addCleanup(gc.unfreeze)
        self.made.reload()
        before = contexts()
        for _ in range(100):
            self.made.reload()
        self.assertEqual(contexts(), before)

    def test_stop(self) -> None:
        """After a stop nobody looks at the files."""
        self.made.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FolderTests(TLSCase):
    def setUp(self) -> None:
        super().setUp()
        self.one = self.issue("one", "one.example")
        self.two = self.issue("two", "two.example")
        self.made = self.certificates(Folder(self.directory))
        self.made.load()
        self.made.watch()

    def test_served(self) -> None:
        """Every pair of a directory is served to whom asks for its name."""
        for name, issued in {"one.example": self.one, "two.example": self.two}.items():
            self.assertEqual(shake(self.made, name).certificate, issued.chain[0])

    def test_comes_and_goes(self) -> None:
        """A pair that is new is served, one that is removed is not."""
        three = self.issue("three", "three.example")
        self.pair("two").certificate.unlink()
        self.pass_time(2 * POLL)
        self.assertEqual(self.told(), [Event.TLS_RELOADED])
        self.assertEqual(shake(self.made, "three.example").certificate, three.chain[0])
        self.assertEqual(set(self.made.not_after()), {"one.example", "three.example"})

    def test_one_is_bad(self) -> None:
        """A bad pair holds up nobody else's change."""
        fresh = self.issue("one", "one.example")
        self.pair("two").key.write_bytes(b"?")
        self.assertFalse(self.made.reload())
        self.assertEqual(self.told(), [Event.TLS_RELOAD_FAILED])
        self.assertEqual(shake(self.made, "one.example").certificate, fresh.chain[0])
        self.assertEqual(shake(self.made, "two.example").certificate, self.two.chain[0])

    def test_key_is_gone(self) -> None:
        """A certificate whose key is gone for a while is served on, and by its own name."""
        self.pair("two").key.unlink()
        self.pass_time(2 * POLL)
        self.assertEqual(self.told(), [Event.TLS_RELOAD_FAILED])
        self.assertEqual(shake(self.made, "two.example").certificate, self.two.chain[0])
        self.assertEqual(set(self.made.not_after()), {"one.example", "two.example"})
        self.pair("two").key.write_bytes(self.two.key_pem())
        self.pair("two").key.chmod(0o600)
        self.pass_time(2 * POLL)
        self.assertEqual(self.told(), [Event.TLS_RELOADED])

    def test_emptied(self) -> None:
        """When all is gone, what was there is served on."""
        for path in self.directory.iterdir():
            path.unlink()
        self.pass_time(2 * POLL)
        self.assertEqual(self.told(), [Event.TLS_RELOAD_FAILED])
        self.assertEqual(shake(self.made, "one.example").certificate, self.one.chain[0])


class ExpiryTests(TLSCase):
    def warnings(self, days: int) -> int:
        """Let days pass, with a few looks each; return how many warnings there were."""
        self.events.clear()
        for _ in range(4 * days):
            self.wall += A_DAY / 4
            self.clock.advance(POLL)
        return self.told().count(Event.TLS_EXPIRES)

    def test_long_life(self) -> None:
        """In a certificate's last 14 days there is a warning a day, and it is served to the end."""
        self.issue("a", "relay.example", until=60 * DAY)
        made = self.loaded("a")
        made.watch()
        self.assertEqual(self.warnings(45), 0)
        self.assertIn(self.warnings(10), range(9, 12))
        self.assertIn(self.warnings(10), range(9, 12))
        self.assertTrue(made.ready)
        shake(made, "relay.example")

    def test_short_life(self) -> None:
        """A certificate for a week is late in its last quarter, and not on its first day."""
        self.issue("a", "relay.example", since=timedelta(0), until=8 * DAY)
        self.loaded("a").watch()
        self.assertEqual(self.warnings(5), 0)
        self.assertGreater(self.warnings(2), 0)
