"""Which worker owns a server-id."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

_MASK: Final = (1 << 64) - 1
_ODD: Final = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: multiplying by it spreads neighbouring numbers."""


class Ownership:
    """Assigns each server-id to one of ``workers``, by rendezvous hashing.

    Every worker scores the server-id, and the highest score owns it. All processes with the same
    ``key`` (at most 64 bytes) agree. The key is secret, so nobody can choose server-ids that all
    fall to one worker.

    Source: Thaler and Ravishankar, "Using Name-Based Mappings to Increase Hit Rates", 1998.
    """

    def __init__(self, workers: int, key: bytes) -> None:
        self._key = key
        self._salts = [self._hash(b"worker %d" % index) for index in range(workers)]

    def owner(self, server_id: str) -> int:
        """Return the index of the worker that owns ``server_id``."""
        number = self._hash(server_id.encode())
        scores = [_mixed(number ^ salt) for salt in self._salts]
        return scores.index(max(scores))

    def _hash(self, text: bytes) -> int:
        return int.from_bytes(blake2b(text, digest_size=8, key=self._key).digest(), "little")


def _mixed(number: int) -> int:
    """Return a number of 64 bits, each of which depends on each bit of ``number``."""
    number = number * _ODD & _MASK
    number = (number ^ number >> 32) * _ODD & _MASK
    return number ^ number >> 29
