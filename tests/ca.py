"""A certificate authority for tests: its certificates live as long as the test's directory."""

from __future__ import annotations

import ipaddress
import os
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAY = timedelta(days=1)


class Issuer(NamedTuple):
    """A certificate, and the key that signs with it."""

    certificate: x509.Certificate
    key: Any


class Issued(NamedTuple):
    """A leaf with the chain behind it, and its key."""

    chain: tuple[x509.Certificate, ...]
    key: Any

    @property
    def pem(self) -> bytes:
        """The chain's PEM form, leaf first."""
        return b"".join(each.public_bytes(Encoding.PEM) for each in self.chain)

    def key_pem(self, passphrase: bytes | None = None) -> bytes:
        """Return the key's PEM form."""
        locked = NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
        return bytes(self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))

    def store(self, certificate: Path, key: Path) -> Issued:
        """Write both files, each in one instant, the key for its owner alone."""
        for path, data in ((key, self.key_pem()), (certificate, self.pem)):
            fresh = path.with_name(path.name + ".new")
            fresh.write_bytes(data)
            fresh.chmod(0o600)
            os.replace(fresh, path)
        return self


def ecdsa_key() -> ec.EllipticCurvePrivateKey:
    """Make a key as most public certificates have it."""
    return ec.generate_private_key(ec.SECP256R1())


@cache
def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    """Return a key as older certificates have it, one for each size: making one takes long."""
    return rsa.generate_private_key(65537, bits)


class Authority:
    """A root and an intermediate, which issues."""

    def __init__(self) -> None:
        key, self._key = ecdsa_key(), ecdsa_key()
        self.root = _sign("Test Root", key, Issuer(None, key), [], ca=True)  # type: ignore[arg-type]
        self.intermediate = _sign("Test CA", self._key, Issuer(self.root, key), [], ca=True)

    @property
    def pem(self) -> bytes:
        """The root, for clients to trust."""
        return self.root.public_bytes(Encoding.PEM)

    def issue(
        self,
        *names: str,
        key: Any = None,
        since: timedelta = -DAY,
        until: timedelta = 60 * DAY,
    ) -> Issued:
        """Issue a certificate for ``names``, valid from and to so long from now."""
        own = key or ecdsa_key()
        issuer = Issuer(self.intermediate, self._key)
        leaf = _sign(names[0] if names else "?", own, issuer, names, since=since, until=until)
        return Issued((leaf, self.intermediate), own)


def _sign(
    common_name: str,
    key: Any,
    issuer: Issuer,
    names: tuple[str, ...] | list[str],
    *,
    ca: bool = False,
    since: timedelta = -DAY,
    until: timedelta = 90 * DAY,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.now(UTC)
    above = issuer.key.public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer.certificate else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + since)
        .not_valid_after(now + until)
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(above), critical=False)
    )
    usage = dict.fromkeys(
        [
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ],
        False,
    )
    builder = builder.add_extension(
        x509.KeyUsage(digital_signature=True, key_cert_sign=ca, crl_sign=ca, **usage), critical=True
    )
    if names:
        alternative = x509.SubjectAlternativeName([_general(name) for name in names])
        builder = builder.add_extension(alternative, critical=False)
    if not ca:
        server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        builder = builder.add_extension(server, critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
