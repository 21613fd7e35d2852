"""Certificates in files: what is taken, and that each mistake is one sentence with its fix."""

from __future__ import annotations

import base64
import os
import shutil
import struct
import tempfile
import time
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from pyrycode_relay.startup_error import StartupError
from pyrycode_relay.tls.certificate import (
    Certificate,
    Pair,
    wildcard,
)
from tests.ca import DAY, Authority, Issued, rsa_key
from tests.unit.bench import Cases, cases, examples

AUTHORITY = Authority()
GOOD = AUTHORITY.issue("Relay.Example", "*.relay.example")
OTHER = AUTHORITY.issue("other.example")
NOBODY = 2**32 - 1
"""The id in an entry of an access list that names nobody."""


class CertificateCase(Cases):
    def setUp(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="certificates-"))
        self.addCleanup(shutil.rmtree, self.directory)
        self.pair = Pair(self.directory / "chain.pem", self.directory / "key.pem")

    def read(self, certificate: bytes | None = None, key: bytes | None = None) -> Certificate:
        """Read a pair of files with these contents, or with those of the good pair."""
        self.pair.certificate.write_bytes(GOOD.pem if certificate is None else certificate)
        self.pair.key.touch(0o600)
        self.pair.key.write_bytes(GOOD.key_pem() if key is None else key)
        return Certificate.read(self.pair, time.time())

    def problem(self, certificate: bytes | None = None, key: bytes | None = None) -> str:
        """Return what is wrong with a pair of files with these contents."""
        error: StartupError = self.assertRaises(StartupError, self.read, certificate, key)
        [problem] = error.problems
        self.assertEqual(len(problem.splitlines()), 1)
        self.assertTrue(problem.endswith("."), problem)
        self.assertIn(str(self.directory), problem)
        return problem

    def refused(self, issued: Issued) -> str:
        """Return what is wrong with a certificate that fits its key."""
        return self.problem(issued.pem, issued.key_pem())


class ReadTests(CertificateCase):
    def test_good(self) -> None:
        """A pair is read with its chain, its names in lower case, and its end."""
        certificate = self.read()
        self.assertEqual(certificate.chain, GOOD.chain)
        self.assertEqual(certificate.names, {"relay.example", "*.relay.example"})
        self.assertLess(abs(certificate.not_after - time.time() - 60 * 86400), 3600)
        for name, covered in {
            "relay.example": True,
            "a.relay.example": True,
            "b.a.relay.example": False,
            "example": False,
            "": False,
        }.items():
            self.assertEqual(certificate.covers(name), covered, name)
        self.assertRegex(str(certificate), r"\A\*\.relay\.example,relay\.example until 20\d\d-")

    @cases({"rsa": (rsa_key(),), "ed25519": (ed25519.Ed25519PrivateKey.generate(),)})
    def test_kinds(self, key: object) -> None:
        """Keys of other types are read too, and told apart by it."""
        issued = AUTHORITY.issue("relay.example", key=key)
        certificate = self.read(issued.pem, issued.key_pem())
        self.assertNotEqual(certificate.kind, self.read().kind)

    def test_one_file(self) -> None:
        """Both may stand in one file, in any order, with remarks between them."""
        for parts in ((GOOD.key_pem(), GOOD.pem), (GOOD.pem, b"the key:\n", GOOD.key_pem())):
            path = self.directory / "both.pem"
            path.touch(0o600)
            path.write_bytes(b"".join(parts))
            self.assertEqual(Certificate.read(Pair(path, path), time.time()).chain, GOOD.chain)

    def test_parameters(self) -> None:
        """What ``openssl ecparam`` writes before a key does no harm."""
        before = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
        self.read(key=before + GOOD.key_pem())

    def test_leaf_alone(self) -> None:
        """A certificate without a chain is taken: a CA's own root may have issued it."""
        self.read(Issued(GOOD.chain[:1], None).pem)

    def test_wildcard(self) -> None:
        """A wildcard stands for a name's first label."""
        self.assertEqual(wildcard("a.b.c"), "*.b.c")


class ProblemTests(CertificateCase):
    def test_no_certificate(self) -> None:
        """A file without a certificate, or with half of one, is refused."""
        for data in (b"", b"\xff\0", GOOD.key_pem(), GOOD.pem[:300], GOOD.pem[:-40]):
            self.assertIn("no certificate in PEM form, or a damaged one", self.problem(data))

    def test_no_key(self) -> None:
        """A file without a key, or with half of one, is refused."""
        for data in (b"", b"\xff\0", GOOD.pem, GOOD.key_pem()[:100]):
            self.assertIn("key.pem has no private key in PEM form", self.problem(key=data))
        lines = GOOD.key_pem().splitlines(keepends=True)
        self.assertIn("damaged", self.problem(key=b"".join([lines[0], b"AAAA\n", lines[-1]])))

    @cases(
        {
            # prime239v3 where there was P-256
            "curve": (b"\x2a\x86\x48\xce\x3d\x03\x01\x07", b"\x2a\x86\x48\xce\x3d\x03\x01\x06"),
            "version": (b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05"),
            # a name of a kind that nobody uses, and a second subjectAltName
            "name": (b"\x82\x0dother.example", b"\xa5\x0dother.example"),
            "twice": (b"\x06\x03\x55\x1d\x0e", b"\x06\x03\x55\x1d\x11"),
        }
    )
    def test_curiosity(self, usual: bytes, curious: bytes) -> None:
        """A certificate with what cryptography has no word for is a sentence like any other."""
        der = OTHER.chain[0].public_bytes(Encoding.DER)
        self.assertEqual(der.count(usual), 1)
        body = base64.encodebytes(der.replace(usual, curious))
        pem = b"-----BEGIN CERTIFICATE-----\n%s-----END CERTIFICATE-----\n" % body
        self.problem(pem, OTHER.key_pem())

    def test_another_key(self) -> None:
        """A key that is another certificate's is refused, and the CA's place is explained."""
        self.assertIn("does not belong to the certificate in", self.problem(key=OTHER.key_pem()))
        swapped = Issued((GOOD.chain[0],), None).pem + OTHER.pem
        self.assertIn("Certificate 2 in", self.problem(swapped))

    def test_order(self) -> None:
        """A chain in the wrong order, or of someone else, is refused."""
        self.assertIn(
            "put the server's own first", self.problem(Issued(GOOD.chain[::-1], None).pem)
        )
        stranger = Issued((GOOD.chain[0], Authority().intermediate), None)
        self.assertIn("is not the issuer of the one before it", self.problem(stranger.pem))

    def acl(self, *entries: tuple[int, int, int]) -> None:
        """Give the key an access list: tag, permissions and id of each entry (acl(5))."""
        packed = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)
        os.setxattr(self.pair.key, "system.posix_acl_access", packed)

    def test_credential_of_systemd(self) -> None:
        """A key may have bits for its group if they are for this process's user alone."""
        self.read()
        own = (2, 4, os.geteuid())
        self.acl((1, 6, NOBODY), own, (4, 0, NOBODY), (16, 4, NOBODY), (32, 0, NOBODY))
        self.assertEqual(self.pair.key.stat().st_mode & 0o777, 0o640)
        self.read()

    @cases(
        {
            "other_user": ((2, 4, os.geteuid() + 1), (4, 0, NOBODY), (16, 4, NOBODY)),
            "group": ((4, 4, NOBODY), (16, 4, NOBODY)),
            "other_group": ((4, 0, NOBODY), (8, 4, 1234), (16, 4, NOBODY)),
        }
    )
    def test_access_list(self, *entries: tuple[int, int, int]) -> None:
        """It may not if the list names others."""
        self.read()
        self.acl((1, 6, NOBODY), *entries, (32, 0, NOBODY))
        self.assertIn("(mode 640)", self.problem())

    @cases({"group": (0o640, "640"), "others": (0o604, "604"), "write": (0o620, "620")})
    def test_readable_key(self, mode: int, shown: str) -> None:
        """A key that others than its owner can use is refused with the command that helps."""
        self.read()
        self.pair.key.chmod(mode)
        problem = self.problem()
        self.assertIn(f"(mode {shown})", problem)
        self.assertIn(f"chmod 600 {self.pair.key}.", problem)

    def test_systemd_credential(self) -> None:
        """A key that systemd passes is readable by its group, as far as the mode shows.

        In another directory, or with more permissions, that is refused.
        """
        self.read()
        self.patch(os, "environ", os.environ | {"CREDENTIALS_DIRECTORY": str(self.directory)})
        self.pair.key.chmod(0o440)
        self.assertEqual(Certificate.read(self.pair, time.time()).chain, GOOD.chain)
        for mode in (0o460, 0o444):
            self.pair.key.chmod(mode)
            self.assertRaises(StartupError, Certificate.read, self.pair, time.time())
        os.environ["CREDENTIALS_DIRECTORY"] = str(self.directory.parent)
        self.pair.key.chmod(0o440)
        self.assertRaises(StartupError, Certificate.read, self.pair, time.time())

    def test_damaged_rsa_key(self) -> None:
        """An RSA key with the right public part and a wrong private one is refused."""
        issued = AUTHORITY.issue("relay.example", key=rsa_key())
        good = issued.key.private_numbers()
        numbers = rsa.RSAPrivateNumbers(
            good.p, good.q, good.d ^ 4, good.dmp1 ^ 4, good.dmq1 ^ 4, good.iqmp, good.public_numbers
        )
        bad = Issued(issued.chain, numbers.private_key(unsafe_skip_rsa_key_validation=True))
        self.assertIn("is damaged: its signatures are not valid.", self.refused(bad))

    def test_passphrase(self) -> None:
        """A key with a passphrase is refused: nobody is there to type it."""
        self.assertIn("has a passphrase", self.problem(key=GOOD.key_pem(b"secret")))

    def test_expired(self) -> None:
        """A certificate that has ended is refused with the day."""
        problem = self.refused(AUTHORITY.issue("a.example", since=-9 * DAY, until=-DAY))
        self.assertRegex(problem, r"expired on \d{4}-\d\d-\d\d; renew it\.")

    def test_future(self) -> None:
        """A certificate that has not begun is refused with the time."""
        problem = self.refused(AUTHORITY.issue("a.example", since=timedelta(hours=1)))
        self.assertRegex(problem, r"is not valid before \d{4}-\d\d-\d\d \d\d:\d\d UTC")

    def test_no_names(self) -> None:
        """A certificate without names where clients look is refused."""
        self.assertIn("subjectAltName", self.refused(AUTHORITY.issue()))

    def test_missing(self) -> None:
        """Files that are not there, or cannot be read, are refused in the system's words."""
        self.read()
        self.pair.key.unlink()
        self.assertRegex(self.again(), r"key\.pem cannot be read: No such file or directory\.")
        self.pair.certificate.unlink()
        self.assertRegex(self.again(), r"chain\.pem cannot be read: No such file or directory\.")
        self.pair.certificate.mkdir()
        self.assertRegex(self.again(), r"chain\.pem cannot be read: Is a directory\.")

    def again(self) -> str:
        """Return what is wrong with the files as they are."""
        error = self.assertRaises(StartupError, Certificate.read, self.pair, time.time())
        return str(error)

    def test_no_file(self) -> None:
        """A pipe or a device holds nobody up and fills no memory, nor does a huge file."""
        self.read()
        self.pair.key.unlink()
        os.mkfifo(self.pair.key, 0o600)
        self.assertIn("key.pem is not a file", self.again())
        self.pair.key.unlink()
        pair = Pair(Path("/dev/zero"), self.pair.certificate)
        error = self.assertRaises(StartupError, Certificate.read, pair, time.time())
        self.assertIn("/dev/zero is not a file", str(error))
        self.assertIn("over 1048576 bytes", self.problem(GOOD.pem + b"\n" * 2**20))

    @examples(60)
    @given(st.data())
    def test_damage(self, data: st.DataObject) -> None:
        """Whatever has happened to a file's bytes, it is a certificate or one sentence."""
        which = data.draw(st.booleans())
        good = GOOD.pem if which else GOOD.key_pem()
        at = data.draw(st.integers(0, len(good)))
        end = data.draw(st.integers(at, min(at + 80, len(good))))
        bad = good[:at] + data.draw(st.binary(max_size=8)) + good[end:]
        try:
            self.read(*((bad, None) if which else (None, bad)))
        except StartupError as error:
            self.assertEqual(len(error.problems), 1)
