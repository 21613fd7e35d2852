"""One certificate: read from its files, and checked before any client is served with it."""

from __future__ import annotations

import os
import re
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from pyrycode_relay.startup_error import StartupError

_MAX_FILE: Final = 2**20
"""Largest file, in bytes: chains have a few thousand."""
_TRIAL: Final = b"pyrycode-relay"
"""The bytes that a key signs in a test of whether it can."""
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_ACL_ENTRY: Final = struct.Struct("<HHI")
"""An entry of an access list: tag, permissions, and the user or group that it names (acl(5))."""
_ACL_USER: Final = 0x02
_ACL_HARMLESS: Final = frozenset({0x01, 0x10, 0x20})
"""The owner; the mask; all others, whose permissions are those of the mode."""
_BEGIN: Final = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----")
_KEY: Final = re.compile(
    rb"-----BEGIN ((?:[A-Z]+ )?PRIVATE KEY)-----.*?-----END \1-----", re.DOTALL
)
MALFORMED: Final = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""The exceptions that cryptography raises for a certificate that it cannot read completely."""


@dataclass(frozen=True, slots=True)
class Pair:
    """The file of a certificate and the chain behind it, and the file of its key.

    Both may be the same file.
    """

    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that can be served: its chain, leaf first, and its key.

    ``names`` are its DNS names and wildcards, in lower case; a certificate that is only for IP
    addresses has none. Times are in seconds since 1970.
    """

    pair: Pair
    chain: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes
    names: frozenset[str]
    not_before: float
    not_after: float

    @classmethod
    def read(cls, pair: Pair, now: float) -> Certificate:
        """Read and check a pair. Raises `StartupError`."""
        chain = _chain(pair.certificate)
        key = read_private_key(pair.key)
        leaf = chain[0]
        if not is_for(leaf, key):
            raise StartupError(_mismatch(pair, chain, key))
        if not _signs(key):
            raise StartupError(f"The key {pair.key} is damaged: its signatures are not valid.")
        names, addresses = _names(pair.certificate, leaf)
        if not names and not addresses:
            raise StartupError(
                f"The certificate in {pair.certificate} has no names; have it issued with a "
                "subjectAltName, because clients look at nothing else."
            )
        not_before = leaf.not_valid_before_utc.timestamp()
        not_after = leaf.not_valid_after_utc.timestamp()
        if not_after <= now:
            raise StartupError(
                f"The certificate in {pair.certificate} expired on {_day(not_after)}; renew it."
            )
        if not_before > now:
            raise StartupError(
                f"The certificate in {pair.certificate} is not valid before "
                f"{leaf.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; wait, or set the clock."
            )
        return cls(pair, chain, key, names, not_before, not_after)

    @property
    def kind(self) -> type[PrivateKeyTypes]:
        """The type of its key: a client may accept one type and not another."""
        return type(self.key)

    def covers(self, name: str) -> bool:
        """Whether it is for ``name``, which is in lower case; a wildcard stands for one label."""
        return name in self.names or wildcard(name) in self.names

    def __str__(self) -> str:
        names = ",".join(sorted(self.names)) or "addresses"
        return f"{names} until {_day(self.not_after)}"


def read_authorities(path: Path, fix: str) -> list[x509.Certificate]:
    """Read certificates to trust from a file.

    Raises `StartupError` if there are none; ``fix`` is the end of its sentence.
    """
    data, _ = _contents(path)
    try:
        return x509.load_pem_x509_certificates(data)
    except MALFORMED:
        raise StartupError(
            f"{path} has no certificate in PEM form, or a damaged one; {fix}"
        ) from None


def is_for(certificate: x509.Certificate, key: PrivateKeyTypes) -> bool:
    """Whether a certificate is for ``key``; False if its own key has an unknown type."""
    try:
        return certificate.public_key() == key.public_key()
    except MALFORMED:
        return False


def wildcard(name: str) -> str:
    """Return the wildcard that covers ``name``."""
    return "*." + name.partition(".")[2]


def _day(time: float) -> str:
    """Return the day of a time in seconds since 1970, in UTC."""
    return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d}"


def _chain(path: Path) -> tuple[x509.Certificate, ...]:
    data, _ = _contents(path)
    try:
        chain = tuple(x509.load_pem_x509_certificates(data))
        if len(chain) < len(_BEGIN.findall(data)):
            # The last one is cut off, and cryptography ignored it.
            raise ValueError
    except MALFORMED:
        raise StartupError(
            f"{path} has no certificate in PEM form, or a damaged one; give the CA's fullchain.pem."
        ) from None
    for number, (issued, issuer) in enumerate(pairwise(chain), 2):
        try:
            issued.verify_directly_issued_by(issuer)
        except (ValueError, InvalidSignature):
            raise StartupError(
                f"Certificate {number} in {path} is not the issuer of the one before it; put the "
                "server's own first, then its issuer, and so on."
            ) from None
        except (TypeError, UnsupportedAlgorithm):
            # cryptography does not know the algorithm. Clients may.
            continue
    return chain


def read_private_key(path: Path) -> PrivateKeyTypes:
    """Read a private key that only its owner may use. Raises `StartupError`."""
    data, mode = _contents(path)
    found = _KEY.search(data)
    if found is None:
        raise StartupError(f"{path} has no private key in PEM form.")
    if mode & _forbidden(path):
        raise StartupError(
            f"The key {path} is accessible to users other than its owner (mode {mode & 0o777:o}); "
            f"run: chmod 600 {path}."
        )
    try:
        # The full check of an RSA key would block the relay for up to 250 ms. `_signs` checks
        # what matters in a hundredth of that.
        return serialization.load_pem_private_key(
            found[0], None, unsafe_skip_rsa_key_validation=True
        )
    except TypeError:
        raise StartupError(
            f"The key {path} has a passphrase; store it without one, as in: openssl pkey."
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        if found[1] == b"ENCRYPTED PRIVATE KEY":
            raise StartupError(
                f"The key {path} has a passphrase; store it without one, as in: openssl pkey."
            ) from None
        raise StartupError(f"The key {path} is damaged, or of an unknown type.") from None


def _forbidden(path: Path) -> int:
    """Return the bits that the mode of a key's file must not have.

    systemd lets a service's user read a credential by an ACL, whose mask shows as the permission of
    a group that has none. Nobody else gets through the credentials' directory. Source:
    https://github.com/systemd/systemd/issues/29435.
    """
    credentials = os.environ.get("CREDENTIALS_DIRECTORY")
    if credentials and path.parent == Path(credentials):
        return _OTHERS & ~stat.S_IRGRP
    return _OTHERS


def _signs(key: PrivateKeyTypes) -> bool:
    """Whether the private part of a key belongs to its public part."""
    try:
        if isinstance(key, rsa.RSAPrivateKey):
            signature = key.sign(_TRIAL, padding.PKCS1v15(), hashes.SHA256())
            key.public_key().verify(signature, _TRIAL, padding.PKCS1v15(), hashes.SHA256())
        elif isinstance(key, ec.EllipticCurvePrivateKey):
            signature = key.sign(_TRIAL, ec.ECDSA(hashes.SHA256()))
            key.public_key().verify(signature, _TRIAL, ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, ValueError, InternalError):
        return False
    # Other types of keys derive the public part from the private one.
    return True


def _contents(path: Path) -> tuple[bytes, int]:
    """Return the bytes and the mode of a file. Both are of one file even if it is replaced.

    The mode has no bits for the group if an access list gives them to this process's user.
    """
    try:
        with open(path, "rb", opener=_open_at_once) as file:
            status = os.fstat(file.fileno())
            mode = status.st_mode
            if mode & stat.S_IRWXG and _is_for_this_user(file.fileno()):
                mode &= ~stat.S_IRWXG
            if not stat.S_ISREG(status.st_mode):
                raise StartupError(f"{path} is not a file.")
            data = file.read(_MAX_FILE + 1)
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error.strerror}.") from error
    if len(data) > _MAX_FILE:
        raise StartupError(f"{path} has over {_MAX_FILE} bytes, too many for a PEM file.")
    return data, mode


def _is_for_this_user(descriptor: int) -> bool:
    """Whether a file's access list names nobody but its owner and this process's user.

    Then the bits of the group, which are the list's mask, permit nothing to the group. The files
    of systemd's LoadCredential= are so: mode 440, for the service's user.
    """
    try:
        acl = os.getxattr(descriptor, "system.posix_acl_access")
    except OSError:
        return False
    named = [entry for entry in _ACL_ENTRY.iter_unpack(acl[4:]) if entry[1]]
    return all(
        tag in _ACL_HARMLESS or (tag == _ACL_USER and user == os.geteuid())
        for tag, _, user in named
    )


def _open_at_once(path: str, flags: int) -> int:
    # A named pipe would block.
    return os.open(path, flags | os.O_NONBLOCK)


def _mismatch(pair: Pair, chain: Sequence[x509.Certificate], key: PrivateKeyTypes) -> str:
    if any(is_for(each, key) for each in chain[1:]):
        return (
            f"The certificate for {pair.key} is not the first in {pair.certificate}; put it there."
        )
    return (
        f"The key {pair.key} does not belong to the certificate in {pair.certificate}; give the "
        "key that it was issued for."
    )


def _names(path: Path, leaf: x509.Certificate) -> tuple[frozenset[str], int]:
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return frozenset(), 0
    except MALFORMED:
        raise StartupError(
            f"The certificate in {path} is damaged, or of an unknown type."
        ) from None
    names = extension.value.get_values_for_type(x509.DNSName)
    addresses = extension.value.get_values_for_type(x509.IPAddress)
    return frozenset(each.lower() for each in names), len(addresses)
