"""VAPID: the header as a push service checks it, the tokens that are kept, and the key."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from pyrycode_relay.push.vapid import MAX_ORIGINS, Vapid, public_half, read_key
from pyrycode_relay.startup_error import StartupError
from tests.unit.bench import Cases

ORIGIN = "https://push.example.org"
SUBJECT = "mailto:ops@example.org"
DAY = 24 * 3600


def decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def claims(header: str) -> dict[str, object]:
    """Return the claims of a header whose signature and form are right (RFC 8292, section 3)."""
    found = re.fullmatch(r"vapid t=([\w-]+)\.([\w-]+)\.([\w-]+), k=([\w-]+)", header, re.ASCII)
    assert found is not None, header
    head, body, signature, key = found.groups()
    assert json.loads(decoded(head)) == {"alg": "ES256", "typ": "JWT"}, head
    raw = decoded(signature)
    assert len(raw) == 64
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")
    ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), decoded(key)).verify(
        encode_dss_signature(r, s), f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256())
    )
    found_claims = json.loads(decoded(body))
    assert isinstance(found_claims, dict)
    return found_claims


class VapidTests(Cases):
    def setUp(self) -> None:
        self.now = 1_700_000_000.5
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.vapid = Vapid(self.key, SUBJECT, lambda: self.now)

    def test_header(self) -> None:
        """The signature is the key's, and the claims are those of RFC 8292."""
        header = self.vapid.header(ORIGIN)
        end = 1_700_000_000 + DAY // 2
        self.assertEqual(claims(header), {"aud": ORIGIN, "exp": end, "sub": SUBJECT})
        self.assertTrue(header.endswith(f", k={public_half(self.key)}"))

    def test_kept(self) -> None:
        """A token is used again for its origin, until an hour before its end."""
        first = self.vapid.header(ORIGIN)
        self.now += 11 * 3600 - 1
        self.assertEqual(self.vapid.header(ORIGIN), first)
        self.now += 2
        self.assertNotEqual(self.vapid.header(ORIGIN), first)

    def test_clock_set_back(self) -> None:
        """No token is sent that ends in more than a day."""
        self.vapid.header(ORIGIN)
        self.now -= 30 * DAY
        end = claims(self.vapid.header(ORIGIN))["exp"]
        self.assertEqual(end, int(self.now) + DAY // 2)

    def test_each_origin_has_its_own(self) -> None:
        """A push service gets no token that another one would accept."""
        self.assertEqual(claims(self.vapid.header("https://[::1]"))["aud"], "https://[::1]")
        self.assertEqual(claims(self.vapid.header(ORIGIN))["aud"], ORIGIN)

    def test_bounded(self) -> None:
        """Few origins are kept, and those that are used are not the ones that go."""
        first = self.vapid.header(ORIGIN)
        for number in range(3 * MAX_ORIGINS):
            self.vapid.header(f"https://{number}.example.org")
            self.assertEqual(self.vapid.header(ORIGIN), first)
        self.assertEqual(self.vapid.kept, MAX_ORIGINS)


class KeyTests(Cases):
    def setUp(self) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="relay-")
        self.addCleanup(self.folder.cleanup)
        self.path = Path(self.folder.name) / "webpush.pem"

    def write(self, key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, mode: int = 0o600) -> None:
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self.path.write_bytes(pem)
        self.path.chmod(mode)

    def refusal(self) -> str:
        with self.assertRaises(StartupError) as caught:
            read_key(self.path)
        return str(caught.exception)

    def test_read(self) -> None:
        """A key is read, and its public half is a point of 65 bytes."""
        key = ec.generate_private_key(ec.SECP256R1())
        self.write(key)
        point = decoded(public_half(read_key(self.path)))
        self.assertEqual((len(point), point[0]), (65, 4))
        self.assertEqual(public_half(read_key(self.path)), public_half(key))

    def test_traditional_form(self) -> None:
        """A key as ``openssl ecparam -genkey`` writes it, parameters first, is read too."""
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
        parameters = (
            b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"
        )
        self.path.write_bytes(parameters + pem)
        self.path.chmod(0o600)
        self.assertEqual(public_half(read_key(self.path)), public_half(key))

    def test_refused(self) -> None:
        """A key of another kind, for all to read, or none at all, is refused in one sentence."""
        self.assertIn("cannot be read", self.refusal())
        self.path.write_text("nothing")
        self.assertIn("no private key", self.refusal())
        self.write(rsa.generate_private_key(65537, 2048))
        self.assertIn("not an ECDSA key on the curve P-256", self.refusal())
        self.write(ec.generate_private_key(ec.SECP384R1()))
        self.assertIn("not an ECDSA key on the curve P-256", self.refusal())
        self.write(ec.generate_private_key(ec.SECP256R1()), 0o640)
        self.assertIn("chmod 600", self.refusal())
