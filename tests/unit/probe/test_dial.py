"""What the probe reads from a certificate."""

from __future__ import annotations

from datetime import timedelta

from cryptography.hazmat.primitives.serialization import Encoding

from pyrycode_relay.probe.dial import certificate
from tests.ca import Authority
from tests.unit.bench import Cases


class CertificateTests(Cases):
    def test_read(self) -> None:
        """Names, issuer, end and days left are the certificate's."""
        until = timedelta(days=12, hours=1)
        leaf = Authority().issue("relay.test", "10.0.0.1", until=until).chain[0]
        self.assertEqual(
            certificate(leaf.public_bytes(Encoding.DER)),
            {
                "issuer": "Test CA",
                "names": ["relay.test", "10.0.0.1"],
                "not_after": leaf.not_valid_after_utc.date().isoformat(),
                "days_left": 12,
            },
        )

    def test_no_certificate(self) -> None:
        """What is no certificate is a `ValueError`, of which the probe makes a sentence."""
        self.assertRaises(ValueError, certificate, b"0\x03\x02\x01\x00")

    def test_without_names(self) -> None:
        """A certificate without names has none."""
        leaf = Authority().issue().chain[0]
        self.assertEqual(certificate(leaf.public_bytes(Encoding.DER))["names"], [])
