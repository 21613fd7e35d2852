"""A TLS client's records made by hand, for what no library lets a client send.

A client shakes hands by Python's ``ssl``, which tells the secrets in its key log. From there on
`Forger` encrypts records of its own, with the cipher suites that the relay prefers.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

HANDSHAKE, APPLICATION_DATA = 22, 23

KEY_UPDATE = b"\x18\x00\x00\x01\x01"
"""The handshake message by which a client changes its keys and requests the same of the server."""

CLIENT_HELLO = b"\x01\x00\x00\x29\x03\x03" + bytes(32) + b"\x00\x00\x02\xc0\x2b\x01\x00"
"""A handshake message that requests renegotiation, in TLS 1.2."""

TLS13_SUITE, TLS12_SUITE = "TLS_AES_128_GCM_SHA256", "ECDHE-ECDSA-AES128-GCM-SHA256"


class Forger:
    """Encrypts a client's records.

    Args:
        modern: Whether the version is TLS 1.3; otherwise it is 1.2.
        key_log: What a client context wrote that made one connection.
        greeting: What the server sent first, in plain. The keys of TLS 1.2 depend on it.
        sent: How many records the client has encrypted itself with its last key.

    """

    def __init__(self, modern: bool, key_log: Path, greeting: bytes, sent: int) -> None:
        self._modern = modern
        self._number = sent
        secrets = {}
        for line in key_log.read_text(encoding="ascii").splitlines():
            if not line.startswith("#"):
                label, random, secret = line.split()
                secrets[label] = bytes.fromhex(random), bytes.fromhex(secret)
        if self._modern:
            self._take(secrets["CLIENT_TRAFFIC_SECRET_0"][1])
        else:
            client_random, master = secrets["CLIENT_RANDOM"]
            seed = b"key expansion" + greeting[11:43] + client_random
            block = _prf(master, seed, 40)
            self._cipher, self._iv = AESGCM(block[:16]), block[32:36]

    def _take(self, secret: bytes) -> None:
        self._secret = secret
        self._cipher = AESGCM(_expand(secret, b"key", 16))
        self._iv = _expand(secret, b"iv", 12)

    def record(self, kind: int, content: bytes) -> bytes:
        """Return one record with ``content`` of one content type."""
        number = struct.pack("!Q", self._number)
        self._number += 1
        if self._modern:
            header = struct.pack("!BHH", APPLICATION_DATA, 0x0303, len(content) + 17)
            nonce = (int.from_bytes(self._iv, "big") ^ int.from_bytes(number, "big")).to_bytes(
                12, "big"
            )
            return header + self._cipher.encrypt(nonce, content + bytes([kind]), header)
        header = struct.pack("!BHH", kind, 0x0303, len(content) + 24)
        bound = number + struct.pack("!BHH", kind, 0x0303, len(content))
        return header + number + self._cipher.encrypt(self._iv + number, content, bound)

    def key_update(self) -> bytes:
        """Return a record that changes the keys, and requests the same of the server."""
        data = self.record(HANDSHAKE, KEY_UPDATE)
        self._take(_expand(self._secret, b"traffic upd", 32))
        self._number = 0
        return data


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    label = b"tls13 " + label
    info = struct.pack("!HB", size, len(label)) + label + b"\x00"
    return HKDFExpand(SHA256(), size, info).derive(secret)


def _prf(secret: bytes, seed: bytes, size: int) -> bytes:
    found, at = b"", seed
    while len(found) < size:
        at = hmac.digest(secret, at, hashlib.sha256)
        found += hmac.digest(secret, at + seed, hashlib.sha256)
    return found[:size]
