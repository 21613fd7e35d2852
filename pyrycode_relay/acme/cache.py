"""The folder with an ACME account's key and the certificates of one CA.

    <cache>/                                0700
      acme-v02.api.letsencrypt.org-1f6d.../ one CA: another directory has another account
        account.pem                         the account's key
        live -> issued-k3v9x2a1             what is in use
        issued-k3v9x2a1/                    fullchain.pem and privkey.pem of one issue

A new pair is written to its own folder, and is in use once the link is replaced. So a key never
stands beside another key's certificate, even after a power cut.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pyrycode_relay.acme.schedule import Lifetime
from pyrycode_relay.startup_error import StartupError
from pyrycode_relay.tls.certificate import MALFORMED, is_for

_FULLCHAIN: Final = "fullchain.pem"
_PRIVKEY: Final = "privkey.pem"

_ACCOUNT: Final = "account.pem"
_LIVE: Final = "live"
_ISSUED: Final = "issued-"
_TEMPORARY: Final = ".new-"
_LARGEST: Final = 1 << 20
"""Bytes of a file that are read. A chain has some thousands."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate from a CA: its names, its lifetime, and its chain as PEM."""

    names: frozenset[str]
    lifetime: Lifetime
    chain: bytes

    @classmethod
    def of(cls, chain: bytes, key: bytes) -> Issued:
        """Read a chain and the key of its first certificate. Raises `ValueError` for other data."""
        private = serialization.load_pem_private_key(key, None)
        try:
            leaf = x509.load_pem_x509_certificates(chain)[0]
            san = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (*MALFORMED, x509.ExtensionNotFound) as error:
            raise ValueError("the certificate has no names, or is malformed") from error
        if not is_for(leaf, private):
            raise ValueError("the key belongs to another certificate")
        names = frozenset(name.lower() for name in san.get_values_for_type(x509.DNSName))
        lifetime = Lifetime(
            leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
        )
        return cls(names, lifetime, chain)


def new_key() -> bytes:
    """Return a new private key as PEM: ECDSA on P-256, which every CA and client accepts."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


class CertCache:
    """The part of the cache at ``root`` for the CA at ``directory``.

    All methods but `prepare` and `current` may wait for the disk, so they belong in a thread.
    """

    def __init__(self, root: Path, directory: str) -> None:
        self._root = root
        host = re.sub(r"[^a-z0-9.-]", "_", urlsplit(directory).netloc.lower())
        digest = hashlib.sha256(directory.encode()).hexdigest()
        self._home = root / f"{host}-{digest[:12]}"

    @property
    def fullchain(self) -> Path:
        """The file of the chain in use. It may not exist yet."""
        return self._home / _LIVE / _FULLCHAIN

    @property
    def privkey(self) -> Path:
        """The file of its key."""
        return self._home / _LIVE / _PRIVKEY

    def prepare(self) -> list[Path]:
        """Create the folders; return those that had to be closed to other users.

        A folder is closed if it has only the relay's files in it. Another folder, such as a home
        directory, is left as it is, and `StartupError` is raised if others can enter it.
        """
        try:
            self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            tightened = [*self._tighten(self._root)]
            self._home.mkdir(mode=0o700, exist_ok=True)
            tightened += self._tighten(self._home)
            self._clean()
            if (self._home / _ACCOUNT).exists():
                self.account_key()
        except OSError as error:
            raise StartupError(
                f"The certificate cache {self._root} cannot be used: {error.strerror}; give "
                "--cert-cache a folder that the relay can write to."
            ) from error
        return tightened

    def _tighten(self, folder: Path) -> Iterator[Path]:
        status = folder.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise StartupError(
                f"The certificate cache {folder} is not a folder; give --cert-cache a folder."
            )
        if status.st_uid != os.geteuid():
            raise StartupError(
                f"The certificate cache {folder} belongs to user {status.st_uid}, not to the "
                f"relay's; chown it to {os.geteuid()}, or give --cert-cache another folder."
            )
        if not status.st_mode & 0o077:
            return
        if not all(self._is_ours(each) for each in folder.iterdir()):
            raise StartupError(
                f"The certificate cache {folder} has mode {stat.S_IMODE(status.st_mode):04o} and "
                f"other files in it; chmod 700 {folder}, or give --cert-cache an empty folder."
            )
        folder.chmod(0o700)
        yield folder

    def _is_ours(self, entry: Path) -> bool:
        """Whether the relay made an entry: a CA's folder, or anything inside one.

        An account's key that another user has put there is not the relay's.
        """
        if entry.lstat().st_uid != os.geteuid():
            return False
        name = entry.name
        if name in {_ACCOUNT, _LIVE} or name.startswith((_ISSUED, _TEMPORARY)):
            return True
        return re.search(r"-[0-9a-f]{12}\Z", name) is not None and entry.is_dir()

    def _clean(self) -> None:
        """Remove files whose writing was interrupted."""
        for each in self._home.glob(_TEMPORARY + "*"):
            _remove(each)

    def account_key(self) -> bytes:
        """Return the account's key as PEM, and create it the first time.

        Raises `StartupError` if the file is not such a key.
        """
        path = self._home / _ACCOUNT
        try:
            key = _read(path)
        except FileNotFoundError:
            key = new_key()
            _write(self._home, _ACCOUNT, key)
        try:
            private = serialization.load_pem_private_key(key, None)
        except (ValueError, TypeError):
            private = None
        if isinstance(private, ec.EllipticCurvePrivateKey) and private.key_size == 256:
            return key
        raise StartupError(
            f"The ACME account's key {path} is not an ECDSA key on P-256; remove it, and the relay "
            "creates a new account."
        )

    def current(self) -> Issued | None:
        """Return the certificate in use, or None if no readable one exists."""
        try:
            return Issued.of(_read(self.fullchain), _read(self.privkey))
        except (OSError, ValueError, TypeError):
            return None

    def begin(self) -> Pending:
        """Begin a new pair. Its new key is on the disk when this returns."""
        key = new_key()
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self._home))
        _write(folder, _PRIVKEY, key)
        return Pending(self._home, folder, key)


@dataclass(frozen=True, slots=True)
class Pending:
    """A pair with a key and without a chain. Call `discard` at the end, also after `complete`."""

    home: Path
    folder: Path
    key: bytes

    def complete(self, chain: bytes) -> None:
        """Put the pair into use. The pair before it is kept, older ones are removed."""
        _write(self.folder, _FULLCHAIN, chain)
        issued = self.home / (_ISSUED + self.folder.name.removeprefix(_TEMPORARY))
        self.folder.rename(issued)
        live = self.home / _LIVE
        before = live.resolve().name
        link = self.home / (_TEMPORARY + _LIVE)
        link.unlink(missing_ok=True)
        link.symlink_to(issued.name)
        link.replace(live)
        _sync(self.home)
        for each in self.home.glob(_ISSUED + "*"):
            if each.name not in {issued.name, before}:
                _remove(each)

    def discard(self) -> None:
        """Remove the pair if it is not in use."""
        _remove(self.folder)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_LARGEST)


def _write(folder: Path, name: str, content: bytes) -> None:
    """Write a file that only its owner can read. It is there completely or not at all."""
    # Files of mkstemp have mode 0600 from the beginning.
    descriptor, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=folder)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
    Path(temporary).rename(folder / name)
    _sync(folder)


def _sync(folder: Path) -> None:
    """Write a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
