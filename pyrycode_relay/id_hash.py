"""Hashes that stand for server-ids and addresses on the status page and in the log.

A hash shows which entries are about the same server-id and does not reveal the id. Server-ids and
addresses can be guessed, so the hash has a key that only the process knows.
"""

from __future__ import annotations

import hashlib
import os
from typing import Final

_KEY_BYTES: Final = 32
_HASH_BYTES: Final = 4
"""Eight hex digits: enough to tell the few names on a page apart, and to find one in the log."""


class IdHash:
    """Hashes names with a key.

    Args:
        key: At most 64 bytes. Without one, the key is random and lasts as long as the process:
            the page and the log agree, and nobody can compute the hashes of an old log or picture
            later. Several processes that shall agree get the same key.

    """

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or os.urandom(_KEY_BYTES)

    def of(self, name: str) -> str:
        """Return the hash of a server-id or an address."""
        data = name.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, key=self._key, digest_size=_HASH_BYTES).hexdigest()
