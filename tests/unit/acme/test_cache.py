"""The certificate cache: whom it belongs to, what is in it at any moment, and what survives."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import stat
import tempfile
from pathlib import Path
from unittest import mock

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate
from twisted.trial.unittest import SynchronousTestCase

from pyrycode_relay.acme.cache import CertCache, Issued, new_key
from pyrycode_relay.startup_error import StartupError
from tests.ca import Authority, ecdsa_key, rsa_key

DIRECTORY = "https://ca.example/directory"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


class CertCacheTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="certs-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.root = self.folder / "deep" / "certs"
        self.cache = CertCache(self.root, DIRECTORY)
        self.authority = Authority()

    def issue(self, cache: CertCache, *names: str) -> bytes:
        """Bring a certificate for ``names`` into the cache; return its chain."""
        pair = cache.begin()
        chain = self.chain(pair.key, *names)
        pair.complete(chain)
        pair.discard()
        return chain

    def chain(self, key: bytes, *names: str) -> bytes:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        return self.authority.issue(*names, key=load_pem_private_key(key, None)).pem

    def refused(self, cache: CertCache) -> str:
        """Return the sentence that a cache is refused with."""
        return str(self.assertRaises(StartupError, cache.prepare))


class FolderTests(CertCacheTestCase):
    def test_made(self) -> None:
        """Missing folders are made for their owner alone, so nothing has to be tightened."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        self.assertEqual(self.cache.prepare(), [])
        [home] = self.root.iterdir()
        self.assertEqual((mode(self.root), mode(home)), (0o700, 0o700))
        self.assertTrue(home.name.startswith("ca.example-"))

    def test_files_are_the_owners_alone(self) -> None:
        """Whatever the umask says, no file can be read by others, and no folder entered."""
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        self.cache.prepare()
        self.cache.account_key()
        self.issue(self.cache, "a.example")
        for path in self.root.rglob("*"):
            expected = 0o700 if path.is_dir() else 0o600
            self.assertEqual(mode(path), expected, path)

    def test_own_folder_is_tightened(self) -> None:
        """A cache that others could enter, with nothing foreign in it, is closed and named."""
        self.cache.prepare()
        self.cache.account_key()
        self.issue(self.cache, "a.example")
        [home] = self.root.iterdir()
        self.root.chmod(0o755)
        home.chmod(0o750)
        self.assertEqual(self.cache.prepare(), [self.root, home])
        self.assertEqual((mode(self.root), mode(home)), (0o700, 0o700))
        self.assertEqual(self.cache.prepare(), [])

    def test_an_empty_folder_is_tightened(self) -> None:
        """A folder made for the cache with ``mkdir`` is as good as one that the relay made."""
        self.root.mkdir(parents=True, mode=0o755)
        self.assertEqual(self.cache.prepare(), [self.root])

    def test_a_foreign_folder_is_not(self) -> None:
        """A loose folder with other files in it is refused, and left as it is."""
        self.root.mkdir(parents=True)
        self.root.chmod(0o755)
        (self.root / "letter.txt").touch()
        sentence = self.refused(self.cache)
        self.assertIn(f"{self.root} has mode 0755", sentence)
        self.assertIn(f"chmod 700 {self.root}", sentence)
        self.assertEqual(mode(self.root), 0o755)

    def test_a_planted_key(self) -> None:
        """A loose folder with a key that another user has put there is refused."""
        self.cache.prepare()
        self.cache.account_key()
        [home] = self.root.iterdir()
        home.chmod(0o777)
        status = os.stat_result([0o100644, 0, 0, 1, os.geteuid() + 1, *[0] * 5])
        with mock.patch.object(Path, "lstat", return_value=status):
            self.assertIn(f"{home} has mode 0777", self.refused(self.cache))
        self.assertEqual(mode(home), 0o777)

    def test_a_closed_foreign_folder(self) -> None:
        """A folder that nobody else can enter may have other files in it."""
        self.root.mkdir(parents=True)
        self.root.chmod(0o700)
        (self.root / "letter.txt").touch()
        self.assertEqual(self.cache.prepare(), [])

    def test_another_users(self) -> None:
        """A folder of another user's is refused, however tight."""
        self.root.mkdir(parents=True, mode=0o700)
        with mock.patch.object(os, "geteuid", return_value=os.geteuid() + 1):
            self.assertIn("belongs to user", self.refused(self.cache))

    def test_no_folder(self) -> None:
        """A file where the cache should be is a sentence."""
        self.root.parent.mkdir()
        self.root.touch()
        self.assertIn("--cert-cache", self.refused(self.cache))

    def test_a_folder_that_cannot_be_made(self) -> None:
        """So is a place where nothing can be made."""
        self.root.parent.touch()
        self.assertIn("cannot be used: Not a directory", self.refused(self.cache))

    def test_where_nothing_can_be_made(self) -> None:
        """And one where the system allows nobody to write."""
        self.assertIn("cannot be used: ", self.refused(CertCache(Path("/proc/c"), DIRECTORY)))


class AccountTests(CertCacheTestCase):
    def test_kept(self) -> None:
        """The account's key is made once, and is there for the next process."""
        self.cache.prepare()
        key = self.cache.account_key()
        again = CertCache(self.root, DIRECTORY)
        again.prepare()
        self.assertEqual(again.account_key(), key)

    def test_each_ca_its_own(self) -> None:
        """Two directories share neither account nor certificate, were they on one host."""
        other = CertCache(self.root, DIRECTORY + "/staging")
        for cache in (self.cache, other):
            cache.prepare()
        self.assertNotEqual(self.cache.account_key(), other.account_key())
        self.issue(self.cache, "a.example")
        self.assertIsNone(other.current())

    def test_unreadable(self) -> None:
        """A file that is not a key is refused at the start, and not overwritten."""
        self.cache.prepare()
        self.cache.account_key()
        [home] = self.root.iterdir()
        for garbage in (b"", b"garbage", self.authority.pem, self.rsa()):
            (home / "account.pem").write_bytes(garbage)
            self.assertIn("remove it", self.refused(self.cache))
            self.assertEqual((home / "account.pem").read_bytes(), garbage)

    def rsa(self) -> bytes:
        return self.authority.issue("a.example", key=rsa_key()).key_pem()


class PairTests(CertCacheTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.cache.prepare()

    def test_nothing(self) -> None:
        """A new cache has no certificate."""
        self.assertIsNone(self.cache.current())

    def test_issued(self) -> None:
        """A pair that is complete is in use, with its names, its lifetime and its key."""
        chain = self.issue(self.cache, "a.example", "B.example")
        certificate = self.cache.current()
        assert certificate is not None
        self.assertEqual(certificate.chain, chain)
        self.assertEqual(certificate.names, {"a.example", "b.example"})
        self.assertAlmostEqual(
            certificate.lifetime.end - certificate.lifetime.start, 61 * 86400, delta=2
        )
        self.assertEqual(self.cache.fullchain.read_bytes(), chain)
        Issued.of(chain, self.cache.privkey.read_bytes())

    def test_not_before_it_is_complete(self) -> None:
        """A pair without its chain is nothing, and its end leaves nothing behind."""
        first = self.issue(self.cache, "a.example")
        pair = self.cache.begin()
        certificate = self.cache.current()
        assert certificate is not None
        self.assertEqual(certificate.chain, first)
        pair.discard()
        [home] = self.root.iterdir()
        self.assertEqual(len([*home.iterdir()]), 2)

    def test_the_last_but_one_is_kept(self) -> None:
        """After many pairs, the one in use and the one before it are kept."""
        for _ in range(5):
            last = self.issue(self.cache, "a.example")
        [home] = self.root.iterdir()
        self.assertEqual(len([*home.glob("issued-*")]), 2)
        self.assertEqual(self.cache.fullchain.read_bytes(), last)

    def test_an_end_at_any_moment(self) -> None:
        """Wherever the process ends while it writes, the pair in use is whole; no litter stays.

        Every call that changes the disk is made to fail once, as at a power cut.
        """

        class Cut(Exception):
            pass

        def cut_at(number: int) -> None:
            left = [number]

            def counted(function):  # type: ignore[no-untyped-def]
                def call(*arguments, **more):  # type: ignore[no-untyped-def]
                    left[0] -= 1
                    if left[0] < 0:
                        raise Cut
                    return function(*arguments, **more)

                return call

            patches = [
                *((os, name) for name in ("fsync", "open", "rename", "replace", "symlink")),
                (tempfile, "mkdtemp"),
                (tempfile, "mkstemp"),
            ]
            with contextlib.ExitStack() as stack:
                for place, name in patches:
                    stack.enter_context(
                        mock.patch.object(place, name, counted(getattr(place, name)))
                    )
                self.issue(self.cache, "a.example")

        self.issue(self.cache, "a.example")
        cuts = 0
        while True:
            try:
                cut_at(cuts)
            except Cut:
                cuts += 1
            else:
                break
            cache = CertCache(self.root, DIRECTORY)
            cache.prepare()
            self.assertIsNotNone(cache.current(), f"cut at step {cuts}")
            [home] = self.root.iterdir()
            self.assertEqual([*home.glob(".*")], [])
        self.assertGreater(cuts, 8)

    def test_a_broken_cache(self) -> None:
        """Whatever stands in the files, there is no certificate rather than an error."""
        self.issue(self.cache, "a.example")
        good, key = self.cache.fullchain.read_bytes(), self.cache.privkey.read_bytes()
        nameless = self.authority.issue(key=ecdsa_key())
        for chain, private in (
            (b"", key),
            (good, b""),
            (b"\xff" * 100, key),
            (good[:200], key),
            (good, new_key()),
            (self.authority.pem, key),
            (nameless.pem, nameless.key_pem()),
        ):
            self.cache.fullchain.write_bytes(chain)
            self.cache.privkey.write_bytes(private)
            self.assertIsNone(self.cache.current())
        self.cache.fullchain.unlink()
        self.assertIsNone(self.cache.current())
        self.issue(self.cache, "a.example")
        self.assertIsNotNone(self.cache.current())

    def test_a_certificate_from_the_future(self) -> None:
        """One of a version that there is not yet counts as none, and stops nobody."""
        self.cache.prepare()
        self.issue(self.cache, "a.example")
        path = self.cache.fullchain
        leaf = load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
        odd = leaf.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05")
        text = base64.encodebytes(odd)
        path.write_bytes(b"-----BEGIN CERTIFICATE-----\n%s-----END CERTIFICATE-----\n" % text)
        self.assertIsNone(self.cache.current())
